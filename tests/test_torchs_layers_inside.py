"""Torch's own layers for sequences inside a cell, over the few steps that a step has inside."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState, LSTMState
from tests.test_references import Base, H, I, assert_stays_the_loop, pair

T, B = 5, 2


class Sequence(Base):
    """One of torch's layers over one step, which finds its parameters in a list of its own."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.rnn = nn.GRU(I, H, **options)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.rnn(x[None], state.h[None])[1][0])


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_a_layer_of_torchs_inside_finds_its_parameters(engine: str) -> None:
    layer, cell, x = pair(Sequence)
    with flexrnn.backend(engine):
        assert_stays_the_loop(layer, cell, x)
        assert_stays_the_loop(layer.float().double(), cell.float().double(), x)


class Inside(flexrnn.Cell):
    """`h, c ← how(rnn, x, h, c)`, with any of torch's layers."""

    State = LSTMState

    def __init__(
        self, input_size, hidden_size, bias=True, device=None, dtype=None, of: Any = None, how=None
    ):
        super().__init__(input_size, hidden_size)
        self.rnn = of(input_size, hidden_size, bias=bias, dtype=dtype)
        self.how: Any = how

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        return LSTMState(*self.how(self.rnn, x, state.h, state.c))


def one(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step, its axis in front."""
    y, h = rnn(x.unsqueeze(0), h.unsqueeze(0))
    return y.squeeze(0), 0.5 * c + h.squeeze(0)


def one_behind(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    y, (h, c) = rnn(x[:, None], (h[None], c[None]))
    return y[:, 0] + 0.1 * h[-1], c[0]


def stacked(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    y, ends = rnn(x[None], torch.stack([h, c]))
    return ends[0] + y[0], ends[1]


def three(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Over a window of three steps, there and back."""
    y, ends = rnn(torch.stack([x, x.cos(), h[:, :I]], 1), torch.stack([h, c]))
    return y.mean(1)[:, :H] + y[:, 1, H:], ends.mean(0)


def from_zeros(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    ends, states = rnn(torch.stack([x, h[:, :I]]))[1]
    return 0.5 * h + ends[0], 0.5 * c + states[0]


def projected(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    y, (_, c) = rnn(x[None], (h[None, :, :2], c[None]))
    return torch.cat([y[0], c[0, :, :2]], -1), c[0]


WRITTEN: dict[str, tuple[Any, Callable[..., Any]]] = {
    "GRU": (nn.GRU, one),
    "RNN": (nn.RNN, one),
    "RNN, relu": (partial(nn.RNN, nonlinearity="relu"), one),
    "LSTM, the batch first": (partial(nn.LSTM, batch_first=True), one_behind),
    "two layers": (partial(nn.GRU, num_layers=2), stacked),
    "dropout before one layer": (partial(nn.GRU, num_layers=2, dropout=0.0), stacked),
    "two directions": (partial(nn.GRU, batch_first=True, bidirectional=True), three),
    "from zeros": (nn.LSTM, from_zeros),
    "a projection": (partial(nn.LSTM, proj_size=2), projected),
}


def layer_of(of: Any, how: Any, **options: Any) -> flexrnn.FlexRNN:
    torch.manual_seed(1)
    return flexrnn.FlexRNN(Inside, I, H, of=of, how=how, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_each_of_torchs_layers_is_a_program(name: str, bias: bool) -> None:
    layer = layer_of(*WRITTEN[name], bias=bias, dtype=torch.float64)
    for batch in (B, 1):
        x = torch.randn(T, batch, I, dtype=torch.float64, requires_grad=True)
        found = list[Any]()
        for engine in ("reference", "interpreter", "cpu"):
            with flexrnn.backend(engine):
                output, (h, c) = layer(x)
                loss = (output * torch.linspace(-1, 1, H, dtype=x.dtype)).sum() + c.sum()
                found.append((output, h, c, *torch.autograd.grad(loss, [x, *layer.parameters()])))
        for others in found[1:]:
            assert_close(others, found[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_every_mode(mode: Any, dtype: torch.dtype) -> None:
    layer = layer_of(nn.GRU, one, dtype=dtype)
    with mode():
        assert flexrnn.explain(layer, torch.randn(T, B, I, dtype=dtype)).engine == "cpu"


def packed(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return rnn(pack_padded_sequence(x[None], torch.ones(x.shape[0])), h[None])[1][0], c


def many(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return rnn(x.expand(65, *x.shape), h[None])[1][0], c


def packed_by_hand(rnn: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Without a state of its own, whose rows would have to be as many as a number says."""
    return h + rnn(PackedSequence(x, torch.tensor([B])))[1][0], c


REFUSED: dict[str, tuple[Any, Callable[..., Any], str]] = {
    "dropout": (partial(nn.GRU, num_layers=2, dropout=0.5), stacked, "it draws random numbers"),
    "many steps": (nn.GRU, many, "a step may run over 64 steps of its own"),
    "a packed sequence": (nn.GRU, packed_by_hand, "no packed sequences inside a step"),
    "over the batch": (nn.GRU, lambda rnn, x, h, c: (rnn(x)[0], c), "rows for steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_program_is_told(name: str) -> None:
    of, how, why = REFUSED[name]
    layer = layer_of(of, how)
    (step,) = flexrnn.explain(layer, torch.randn(T, B, I)).steps
    assert why in str(step.refusal)


def test_packed_sequences_are_told() -> None:
    layer = layer_of(nn.GRU, packed)
    (step,) = flexrnn.explain(layer, torch.randn(T, B, I)).steps
    assert "cannot be compiled" in str(step.refusal)
    assert f"at {__file__}" in str(step.refusal)
