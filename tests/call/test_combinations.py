"""Every feature at once: packed, in two layers and both directions, projected, under autocast."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN

Make = Callable[..., FlexRNN]
T, B, I = 6, 4, 3
EVERY: dict[str, Any] = {
    "num_layers": 2,
    "bidirectional": True,
    "zoneout": 0.2,
    "recurrent_dropout": 0.3,
    "learn_initial_state": True,
    "checkpoint_every": 4,
}


def all_of_it(make: Make, **options: Any) -> FlexRNN:
    """A layer with every feature that its cell takes."""
    layer = make(**EVERY, **options)
    if any(name.startswith("weight_hh") for name, _ in layer.named_parameters()):
        layer.weight_drop = 0.2
    for name, parameter in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_a_packed_sequence_is_the_same_as_lengths(
    make: Make, engine: str, hand: Any, training: bool
) -> None:
    layer, lengths = all_of_it(make).train(training), torch.tensor([6, 4, 4, 1])
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)

    def outcome(packed: bool) -> list[Tensor]:
        torch.manual_seed(7)
        if packed:
            output, state = layer(pack_padded_sequence(x, lengths))
            output, _ = pad_packed_sequence(output)
        else:
            output, state = layer(x, lengths=lengths)
        tensors = [output, *hand.fields(state)]
        loss = torch.stack([(t * t.detach().cos()).sum() for t in tensors]).sum()
        leaves = [x, *layer.parameters()]
        return [*tensors, *grad(loss, leaves, allow_unused=True, materialize_grads=True)]

    assert_close(outcome(True), outcome(False), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_it_keeps_to_the_tolerance_rule(
    make: Make, hand: Any, training: bool
) -> None:
    """Its mean error, measured by float64, is at most 1.2 times that of a layer in bfloat16.

    By the reference, as that one is, and by generated code; masks do not depend on the dtype.
    """
    half = all_of_it(make, dtype=torch.bfloat16).train(training)
    layer, exact = (
        all_of_it(make, dtype=dtype).train(training) for dtype in (torch.float32, torch.float64)
    )
    for other in (layer, exact):
        other.load_state_dict(half.state_dict())
    x, reset = torch.randn(T, B, I, dtype=torch.bfloat16), torch.rand(T, B) < 0.3

    def outcome(layer: FlexRNN, x: Tensor) -> list[Tensor]:
        torch.manual_seed(7)
        result = hand.run(layer, x, None, lengths=[3, 6, 0, 1], reset=reset)
        tensors = [result.output, *result.state, *result.states]
        loss = torch.stack([t.double().square().sum() for t in tensors]).sum()
        leaves = list(layer.parameters())
        gradients = grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return [tensor.detach() for tensor in (*tensors, *gradients)]

    with flexrnn.backend("reference"):
        golden, yardstick = outcome(exact, x.double()), outcome(half, x)
    with torch.autocast("cpu"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [outcome(layer, x.float())]
        with flexrnn.backend("reference"):
            found.append(outcome(layer, x.float()))

    def errors(tensors: list[Tensor]) -> Tensor:
        norms = [(t.double() - g).norm() / g.norm() for t, g in zip(tensors, golden, strict=True)]
        return torch.stack(norms).nan_to_num(0)  # 0 / 0: what a cell does not use

    for each in found:
        assert each[0].dtype == torch.bfloat16
        assert float(errors(each).mean()) <= 1.2 * float(errors(yardstick).mean())
