"""First and second derivatives of all three layers against finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

Layer = NaiveCustomLSTM | CustomLSTM


@pytest.fixture
def function(make: Callable[[int, int], Layer]) -> tuple[Callable[..., tuple[Tensor, ...]], list]:
    """The layer as a function of x, h_0, c_0 and every parameter, and a point to stand on."""
    B, T, I, H = 2, 3, 2, 3
    layer = make(I, H).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, h_0: Tensor, c_0: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        hidden_seq, (h_T, c_T) = functional_call(layer, given, (x, (h_0, c_0)))
        return hidden_seq, h_T, c_T

    point = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(B, T, I), (B, H), (B, H)]
    ]
    return run, point + [parameter.detach().requires_grad_() for parameter in parameters]


def test_gradcheck(function: tuple[Callable[..., tuple[Tensor, ...]], list]) -> None:
    assert torch.autograd.gradcheck(*function)


def test_gradgradcheck(function: tuple[Callable[..., tuple[Tensor, ...]], list]) -> None:
    assert torch.autograd.gradgradcheck(*function)


def test_backward_twice_through_one_graph(make: Callable[[int, int], Layer]) -> None:
    """Nothing is written in place, so a graph that is kept gives the same gradients again."""
    layer = make(3, 4)
    loss = layer(torch.randn(2, 5, 3))[0].square().sum()
    first = torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(layer.parameters()))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
