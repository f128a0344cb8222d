# pyright: reportIncompatibleMethodOverride=false
# A function of autograd's has the arguments that a person gives it.
"""A `forward` that asks whether its input is differentiated, to keep it or for something else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn


class Arctan(torch.autograd.Function):
    """A spike as libraries of spiking neurons have it, which keep nothing in vain."""

    apply: Any

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.alpha = alpha
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + (torch.pi / 2 * ctx.alpha * x).pow_(2)) * g, None


class Chooses(Arctan):
    """Computes something else where it is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        if x.requires_grad:
            return x.relu()
        return (x >= 0).to(x)


class Else(Arctan):
    """Keeps nothing, or writes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        y = (x >= 0).to(x)
        if x.requires_grad:
            ctx.save_for_backward(x)
        else:
            y.mul_(2)
        return y


class Computes(Arctan):
    """Writes while it keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        y = (x >= 0).to(x)
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.alpha = y.mul_(alpha)
        return y


class Reads(Arctan):
    """Looks at what it has kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = 1.0
        if x.requires_grad:
            ctx.alpha = alpha
        return (x >= 0).to(x) * ctx.alpha


class Other(Arctan):
    """Asks for what it has computed: the answer is always no."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = 1.0
        y = x * 2
        if y.requires_grad:
            ctx.alpha = alpha
        return (x >= 0).to(x)


class Two(Arctan):
    """Its backward is called for the other input, too, and sees what has been kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Any) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
        return (x >= 0).to(x) * alpha

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, g if ctx.saved_tensors else g * 2


def step(function: Any) -> Callable[..., Tensor]:
    return lambda c, x, h: torch.tanh(x).sum(1, True) * h + function.apply(h - 0.1, 2.0)


def test_what_keeps_its_input_where_it_is_differentiated(
    function_layer: Any, same_by_program: Any
) -> None:
    layer = function_layer(step(Arctan))
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x, torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True))
    same_by_program(layer, x.detach())


@pytest.mark.parametrize("function", [Chooses, Else, Computes, Reads, Other])
def test_what_else_depends_on_it_is_refused(function_layer: Any, function: Any) -> None:
    layer, x = function_layer(step(function)), torch.randn(2, 3, 3, dtype=torch.float64)
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match="requires_grad cannot"):
        layer(x)


def test_of_two_inputs_it_is_refused(function_layer: Any) -> None:
    layer = function_layer(lambda c, x, h: h + Two.apply(h, x.sum(1, True).expand_as(h)))
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match="requires_grad cannot"):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))
