"""Torch's own layers for sequences inside a cell, over one step: the reference runs them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState, LSTMState
from tests.test_references import Base, H, I, assert_is_the_loop, pair


class Sequence(Base):
    """One of torch's layers over one step, which finds its parameters in a list of its own."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.rnn = nn.GRU(I, H, **options)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.rnn(x[None], state.h[None])[1][0])


def test_a_layer_of_torchs_inside_runs_by_the_reference_and_says_why() -> None:
    layer, cell, x = pair(Sequence)
    with flexrnn.backend("reference"):
        assert_is_the_loop(layer, cell, x)
        assert_is_the_loop(layer.float().double(), cell.float().double(), x)
    for given in (layer, layer.double()):
        (step,) = flexrnn.explain(given, x).steps
        assert "a module such as nn.GRUCell is for a step" in str(step.refusal)


class Inside(flexrnn.Cell):
    """Any of torch's layers over one step."""

    State = LSTMState

    def __init__(
        self, input_size, hidden_size, bias=True, device=None, dtype=None, of: Any = None, **kind
    ):
        super().__init__(input_size, hidden_size)
        self.rnn = of(input_size, hidden_size, dtype=dtype, **kind)

    def step(self, x: Tensor, state: Any) -> Any:
        h, c = state.h[None], state.c[None]
        if isinstance(self.rnn, nn.LSTM):
            h, c = self.rnn(x[None], (h, c))[1]
            return LSTMState(h[0], c[0])
        return LSTMState(self.rnn(x[None], h)[1][0], state.c)


@pytest.mark.parametrize(
    "kind",
    [{"of": nn.LSTM}, {"of": nn.GRU}, {"of": nn.RNN}, {"of": nn.RNN, "nonlinearity": "relu"}],
    ids=str,
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_of_torchs_layers_is_told_so(
    kind: dict[str, Any], mode: Any, dtype: torch.dtype
) -> None:
    layer = flexrnn.FlexRNN(Inside, I, H, dtype=dtype, **kind)
    with mode():
        (step,) = flexrnn.explain(layer, torch.randn(5, 2, I, dtype=dtype)).steps
    assert "a module such as nn.GRUCell is for a step" in str(step.refusal)
