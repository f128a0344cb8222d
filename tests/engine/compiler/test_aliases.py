"""Views and copies: a write reaches what torch's would reach, and no derivative is lost by it."""

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import flexrnn

from .written import Cell, halves

ONE: Any = numpy.int64(1)


def writing(write: Callable[[Tensor, Tensor], Any]) -> Callable[..., Tensor]:
    """A step that writes to a value by way of something else."""

    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        y = torch.tanh(x @ c.W + h @ c.U) * 1.5
        write(y, h)
        return y

    return step


def through_flat(make: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A step that makes heads, and writes to them as one row."""

    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        z = make(halves(x @ c.W + h @ c.U))
        z.flatten(1)[:, 0] = 0.0
        z.view(z.shape[0], -1)[:, 1:3].mul_(2)
        return z.flatten(1).tanh()

    return step


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "atleast_1d": writing(lambda y, h: torch.atleast_1d(y).mul_(2)),
    "atleast_2d": writing(lambda y, h: torch.atleast_2d(y, h)[0].mul_(2)),
    "atleast_3d": writing(lambda y, h: torch.atleast_3d(y)[..., 0].mul_(2)),
    "squeeze": writing(
        lambda y, h: y[:, None].squeeze((1, -1))[None].squeeze(0)[..., None].squeeze(-1).mul_(2)),
    "squeeze in place": writing(lambda y, h: y[:, None].squeeze_(dim=ONE).mul_(2)),
    "type_as": writing(lambda y, h: y.type_as(h).mul_(2)),
    "broadcast_tensors": writing(lambda y, h: torch.broadcast_tensors(y, h[:, :1])[0].mul_(2)),
    "einsum of itself": writing(lambda y, h: torch.einsum("bi->bi", y).mul_(2)),
    "einsum that turns": writing(
        lambda y, h: torch.einsum("bij->bji", halves(y))[:, 0].mul_(2)),
    "a running sum": through_flat(lambda z: z.cumsum(-1)),
    "a running sum over heads": through_flat(lambda z: z.cumsum(1)),
    "units by number": through_flat(lambda z: z[:, :, torch.tensor([1, 0])]),
    "index_select": through_flat(lambda z: z.index_select(1, torch.tensor([1, 0]))),
    "sort": through_flat(lambda z: z.sort(1)[0]),
    "gather": through_flat(lambda z: z.gather(1, z.argsort(1))),
    "scatter": through_flat(lambda z: z.scatter(1, z.argmax(1, keepdim=True), 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_write_reaches_what_torchs_reaches(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


APART: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda d: d.mul_(2),
    "inplace": lambda d: F.relu(d, inplace=True),
    "inplace by place": lambda d: F.hardtanh(d, -0.5, 0.5, True),
    "a module inplace": nn.ReLU(inplace=True),
    "out": lambda d: torch.mul(d, 2, out=d),
    "T": lambda d: d.T.mul_(2),
    "mT": lambda d: d.mT.mul_(2),
    "ravel": lambda d: d.ravel().mul_(2),
    "tensor_split": lambda d: d.tensor_split(2, -1)[0].mul_(2),
    "swapdims": lambda d: d.swapdims(0, 1).mul_(2),
    "a view of a view": lambda d: d[:, 1:].unsqueeze(0).mul_(2),
    "vmap": lambda d: torch.vmap(lambda a: a[1:])(d).mul_(2),
    "detached again inside of vmap": lambda d: torch.vmap(lambda a: a.detach())(d).mul_(2),
    "inside of vmap": lambda d: torch.vmap(lambda a: a.mul_(2))(d),
}


@pytest.mark.parametrize("name", APART)
def test_a_write_where_no_derivative_passes_is_refused(name: str) -> None:
    """To the trace it would be a write to a value of its own; to autograd none has been."""

    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        y = torch.tanh(x @ c.W + h @ c.U) * 1.0
        APART[name](y.detach())
        return torch.tanh(y + h)

    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=step)
    with (
        flexrnn.backend("cpu"),
        pytest.raises(RuntimeError, match="writes where no derivative passes"),
    ):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize("view", [torch.detach, lambda y: y.data[:, :2], lambda y: y[:, :1]])
def test_a_view_from_no_grad_is_not_written_to(view: Callable[[Tensor], Tensor]) -> None:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        y = x @ c.W + h * 2
        with torch.no_grad():
            v = view(y)
        v.mul_(2)
        return y + h

    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=step)
    with (
        flexrnn.backend("cpu"),
        pytest.raises(RuntimeError, match="writes where no derivative passes"),
    ):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


def added_to_itself(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + h
    y.add_(y.detach()).mul_(2)
    y.view_as(y.detach()).mul_(0.5)
    return F.dropout(y, 0.5, False, True) + F.dropout(h.detach(), 0.5, False, True)


def test_what_has_a_derivative_may_be_written_to(judge: Callable[..., None]) -> None:
    judge(added_to_itself)


def by_vmap(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Inside of it something is made anew, detached, and written to while gradients are off."""

    def shifted(a: Tensor, b: Tensor) -> Tensor:
        z = torch.zeros_like(a)
        z[1:] = b[:-1]
        with torch.no_grad():
            w = a.clone()
            w.mul_(2)
        return z * a.detach() + w

    with torch.no_grad():
        doubled = torch.vmap(lambda a: a * 2)(h)
    return x @ c.W + torch.vmap(shifted)(h, (x @ c.W).detach()) * doubled.mul_(h)


def test_vmap_beside_what_has_no_derivative(judge: Callable[..., None]) -> None:
    judge(by_vmap)


def test_a_copy_of_what_has_no_derivative_may_be_written_to(judge: Callable[..., None]) -> None:
    judge(lambda c, x, h: x @ c.W + h @ c.U + h.detach().clone().mul_(2).T.mul_(0.5).T)


def test_a_hook_for_a_gradient_inside_a_cell_is_refused() -> None:
    layer = flexrnn.FlexRNN(Cell, 3, 4, function=lambda c, x, h: c.inner(x) + h)
    layer.cells[0].inner = nn.Linear(3, 4)
    x = torch.randn(2, 3, 3)
    with flexrnn.backend("cpu"):
        layer(x)
        layer.cells[0].inner.register_full_backward_hook(lambda module, into, out: (2 * into[0],))
        with pytest.raises(RuntimeError, match="inner has a hook for its gradient"):
            layer(x)
