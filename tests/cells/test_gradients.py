"""Finite differences: first and second derivatives of every cell with respect to everything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from flexrnn import FlexRNN

Function = tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def flat(result: Any) -> tuple[Tensor, ...]:
    output, state = result
    data = output if isinstance(output, Tensor) else output.data
    return (data, *((state,) if isinstance(state, Tensor) else state))


def as_function(layer: FlexRNN, x: Tensor, call: Callable[..., Any]) -> Function:
    """A function of x, every field of the initial state and every parameter; and those tensors.

    The state of `hx` is made as wide as the layer returns it; `call(module, x, hx)` runs it.
    """
    with torch.no_grad():
        fields = flat(call(layer, x, None))[1:]
    state = [leaf(*field.shape) for field in fields]
    names = [name for name, _ in layer.named_parameters()]
    leaves = [x, *state, *(p.detach().clone().requires_grad_() for p in layer.parameters())]

    def function(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = rest[: len(state)]
        hx = given[0] if len(given) == 1 else given
        parameters = dict(zip(names, rest[len(state) :], strict=True))

        class Called(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self) -> Any:
                return call(self.layer, x, hx)

        return flat(functional_call(Called(), {f"layer.{k}": v for k, v in parameters.items()}))

    return function, leaves


def sequence(layer: FlexRNN, x: Tensor, hx: Any) -> Any:
    return layer(x, hx)


def packed(layer: FlexRNN, x: Tensor, hx: Any) -> Any:
    lengths = torch.tensor([2, 3, 1])  # unsorted, so that both permutations are differentiated too
    return layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)


def one_step(layer: FlexRNN, x: Tensor, hx: Any) -> Any:
    return layer.step(x[0], hx)


def test_first_derivatives(make: Callable[..., FlexRNN]) -> None:
    function, leaves = as_function(make(2, 3), leaf(3, 2, 2), sequence)
    assert torch.autograd.gradcheck(function, leaves)


# torch scripts its own decompositions when forward mode is first used, and warns of that itself.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_first_derivatives_in_forward_mode(make: Callable[..., FlexRNN]) -> None:
    function, leaves = as_function(make(2, 3), leaf(2, 2, 2), sequence)
    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_backward_ad=False
    )


def test_second_derivatives(make: Callable[..., FlexRNN]) -> None:
    function, leaves = as_function(make(2, 3), leaf(2, 2, 2), sequence)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_derivatives_of_two_layers_and_directions_over_a_packed_sequence(
    make: Callable[..., FlexRNN],
) -> None:
    layer = make(2, 2, num_layers=2, bidirectional=True)
    function, leaves = as_function(layer, leaf(3, 3, 2), packed)
    assert torch.autograd.gradcheck(function, leaves)


def test_derivatives_of_a_streamed_step(make: Callable[..., FlexRNN]) -> None:
    function, leaves = as_function(make(2, 3, num_layers=2), leaf(1, 2, 2), one_step)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives_do_not_depend_on_the_mode(
    make: Callable[..., FlexRNN], training: bool
) -> None:
    layer = make(2, 3).train(training)
    function, leaves = as_function(layer, leaf(3, 2, 2), sequence)
    once = torch.autograd.grad(function(*leaves)[0].sum(), leaves, materialize_grads=True)
    layer.train(not training)
    again = torch.autograd.grad(function(*leaves)[0].sum(), leaves, materialize_grads=True)
    torch.testing.assert_close(once, again, rtol=0, atol=0)
