# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false
# A function of autograd's has the arguments that a person gives it.
"""`torch.autograd.Function` in a step: its forward, and the backward that a person wrote for it."""

import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import flexrnn
from flexrnn.engine.compiler.spelt.unseen import seen

from .written import Cell


class Function(torch.autograd.Function):
    """One of torch's, with types that a person need not write."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError

    apply: Any


class Surrogate(Function):
    """A spike (Zenke & Ganguli 2018), as tutorials write it."""

    scale = 10.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.zeros_like(x)
        out[x > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        g = g.clone()
        return g / (Surrogate.scale * torch.abs(x) + 1.0) ** 2


spike = Surrogate.apply  # a name of one's own


class Stepped(Surrogate):
    """The same by a function that has no derivative, and here needs none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.heaviside(x, x.new_tensor(0.5))


def undifferentiated(x: Tensor, values: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.heaviside(x, values)


class Arctan(Function):
    """A spike with a number, which asks whether it is to be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return x.gt(0).to(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if not ctx.needs_input_grad[0]:
            return None, None
        x = ctx.saved_tensors[0]
        return ctx.alpha / 2 / (1 + (torch.pi / 2 * ctx.alpha * x).pow_(2)) * g, None


class Several(Function):
    """Two results of two inputs and a truth value, in the newer form."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, k: float = 2.0) -> Any:
        return x * w, (x + w).tanh().view(-1, 2, 2), x > 0, x.cos(), "a name"

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, ctx.k = inputs
        ctx.save_for_backward(x, w, output[1])
        ctx.mark_non_differentiable(output[2], output[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor, *others: Any) -> Any:
        x, w, y = ctx.saved_tensors
        d = (b * (1 - y * y)).flatten(1) * ctx.k
        return (a * w).clamp(-0.1, 0.1) + d, a * x + d, None


class Straight(Function):
    """A sign with the derivative of what it is of."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clipped(Function):
    """What it is given; its gradient is cut off, which is not linear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-0.2, 0.2)


class Nested(Function):
    """Applies another, forward and backward, and multiplies by a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return spike(x) @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return Clipped.apply(g @ w.t()) * Straight.apply(x), None


class Reversed(Function):
    """Gradients the other way round (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Constant(Function):
    """Nothing flows back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> None:
        return None


class Threshold(Function):
    """A learnt number for every unit, whose gradient has a row for every sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: Tensor) -> Tensor:
        ctx.save_for_backward(x, level)
        return (x > level).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, level = ctx.saved_tensors
        near = torch.where((x - level).abs() < 0.5, g.clamp(max=0.3), torch.zeros_like(g))
        return near, -near


def several(c: Any, x: Tensor, h: Tensor) -> Tensor:
    a, b, mask, turned, name = Several.apply(h + x @ c.W, c.b)
    assert name == "a name"
    return a * mask + b.flatten(1) * turned


def scripted_gate(a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(a) * torch.tanh(b)


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script")
    scripted: Any = torch.jit.script(scripted_gate)

ALIKE: dict[str, Callable[..., Tensor]] = {
    "by a name of one's own": lambda c, x, h: spike(x @ c.W + h @ c.U - 0.1),
    "by heaviside": lambda c, x, h: (
        Stepped.apply(x @ c.W + h @ c.U) + undifferentiated(h - h.clamp(min=0), h) * h),
    "by heaviside, straight through": lambda c, x, h: (
        x @ c.W + c.b * ((torch.heaviside(h - 0.1, c.one.detach()) - h.sigmoid()).detach()
                         + h.sigmoid())
        + h * torch.heaviside(h.detach() * 2, h.new_zeros(1))
        + c.b * torch.heaviside((h > 0).to(h.dtype), h.detach())),
    "twice": lambda c, x, h: spike(x @ c.W + h) + spike(h - x @ c.W) * h,
    "with a number": lambda c, x, h: Arctan.apply(x @ c.W + h @ c.U, 2.0),
    "several results": several,
    "of a parameter": lambda c, x, h: torch.tanh(x @ c.W + h @ Straight.apply(c.U)),
    "of a parameter that torch makes": lambda c, x, h: torch.tanh(
        x @ c.W + h @ Straight.apply(torch.linalg.matrix_exp(c.U) - 1)),
    "not linear": lambda c, x, h: torch.tanh(x @ c.W + Clipped.apply(h @ c.U)),
    "within another": lambda c, x, h: torch.tanh(x @ c.W + Nested.apply(h, c.U)),
    "reversed": lambda c, x, h: torch.tanh(Reversed.apply(x @ c.W) + h),
    "a constant": lambda c, x, h: torch.tanh(Constant.apply(h) + x @ c.W),
    "a learnt threshold": lambda c, x, h: Threshold.apply(x @ c.W + h @ c.U, c.b),
    "nobody differentiates": lambda c, x, h: torch.tanh(spike(h).detach() + x @ c.W),
    "written into": lambda c, x, h: spike(h + x @ c.W).mul_(0.5).add_(h),
    "of heads": lambda c, x, h: Clipped.apply(h.view(-1, 2, 2).mT).flatten(1) + x @ c.W,
    "scripted": lambda c, x, h: scripted(x @ c.W, h @ c.U),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_the_gradient_is_what_backward_says(judge: Callable[..., None], name: str) -> None:
    judge(ALIKE[name])


def test_gradients_of_gradients_are_refused() -> None:
    """Autograd, which differentiates a program once more, knows nothing of what backward says."""
    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=ALIKE["not linear"])
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="gradients of gradients"):
        torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with flexrnn.backend("reference"):
        torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)


class Short(Function):
    """One gradient of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: float) -> Tensor:
        return x * k

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Wide(Straight):
    """A gradient of another shape."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.sum(-1, keepdim=True)


class InPlace(Straight):
    """It writes where it reads."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.mark_dirty(w)
        return w.neg_()


class OfRowsAndAParameter(Function):
    """A product in which torch calls backward for each step, and a program once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return w * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, _ = ctx.saved_tensors
        return g.expand_as(x), g


class Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x @ w).sum(1, True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        g = g.expand(-1, 3)
        return g @ w.T, x.T @ g


class Shifted(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor) -> Tensor:
        return x + b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, g.sum(0)


class Centred(Straight):
    """Its backward sums along each row."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g - g.sum(dim=-1, keepdim=True) / 5 + torch.sum(g, -1, True)


def test_a_backward_sums_along_each_row(function_layer: Any, same_by_program: Any) -> None:
    layer = function_layer(lambda c, z, h: Centred.apply(z).tanh() + h)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "not linear, of a parameter": (lambda c, z, h: z + Clipped.apply(c.inner.bias) * h, "Clipped"),
    "too few gradients": (lambda c, z, h: Short.apply(z, 2.0) + h, "1 gradients of 2 arguments"),
    "of another shape": (lambda c, z, h: Wide.apply(z) + h, "Wide cannot be compiled: backward"),
    "heaviside": (lambda c, z, h: torch.heaviside(z, h) + z, "heaviside .* it has no derivative"),
    "what is summed for a weight": (
        lambda c, z, h: Linear.apply(z, c.inner.weight) + h[:, :3].sum(1, True),
        "matmul .* backward sums over the rows"),
    "what is summed for a bias": (
        lambda c, z, h: Shifted.apply(z, c.inner.bias) + h, "sum .* backward sums over the rows"),
    "it writes": (lambda c, z, h: InPlace.apply(z * 1) + h, "InPlace cannot be compiled: it wri"),
    "rows and none": (lambda c, z, h: OfRowsAndAParameter.apply(z, c.inner.bias) + h, "no rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(function_layer: Any, name: str) -> None:
    function, reason = REFUSED[name]
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=reason) as caught:
        function_layer(function)(torch.randn(2, 3, 3, dtype=torch.float64))
    assert __file__ in str(caught.value)


def test_heaviside_of_what_nobody_differentiates() -> None:
    x, h = torch.randn(4, 3, 5), torch.rand(3, 5)
    x[1], x[2, 1], x[3, 0] = 0.0, torch.nan, -torch.inf
    found = []
    for backend in ("reference", "cpu"):
        with torch.no_grad(), flexrnn.backend(backend):
            found.append(flexrnn.scan(torch.heaviside, h, x)[0])
            found.append(flexrnn.scan(lambda x, h: x.heaviside(h / 2), h, x)[0])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_others_apply_functions_meanwhile() -> None:
    """Only the thread that traces finds another `apply`, and afterwards nobody does."""
    x = torch.randn(4, requires_grad=True)
    applies = getattr(torch.autograd.Function.apply, "__code__", None)  # in C++ since torch 2.14
    call, own = torch._C.ScriptFunction.__call__, dict(vars(torch.autograd.function))
    setup_context = torch.autograd.Function.setup_context
    found: list[Tensor] = []

    def other() -> None:
        found.append(spike(x))
        found.append(scripted(x, x))
        with suppress(RuntimeError):  # torch takes none without setup_context
            found.append(torch.func.vmap(spike)(x))

    with seen():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "Surrogate" in str(found[0].grad_fn)
    assert found[1].requires_grad
    assert len(found) == 2
    assert getattr(torch.autograd.Function.apply, "__code__", None) is applies
    assert torch._C.ScriptFunction.__call__ is call
    assert vars(torch.autograd.function) == own
    assert torch.autograd.Function.setup_context is setup_context
    assert "setup_context" not in vars(torch.autograd.Function)
