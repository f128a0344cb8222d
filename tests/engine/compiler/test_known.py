"""Numbers of what a step makes of numbers alone: asked for, counted, picked by."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn


def euler(c: Any, x: Tensor, h: Tensor) -> Tensor:
    for t in torch.linspace(0, 1, 3).tolist():
        h = h + 0.3 * (torch.tanh(x @ c.W - h) - t * h)
    for s in torch.linspace(0, 1, 3):
        h = h + 0.1 * s.item() * c.b
    return h


def checked(c: Any, x: Tensor, h: Tensor) -> Tensor:
    grid = h.new_tensor([0.0, 0.5, 1.0])
    assert torch.all(grid[1:] > grid[:-1])
    assert torch.allclose(grid.diff(), torch.full((2,), 0.5, dtype=h.dtype))
    if not torch.isfinite(grid).all() or torch.equal(grid, grid.flip(0)):
        raise ValueError(grid)
    return x @ c.W + h * grid[1]


def written(c: Any, x: Tensor, h: Tensor) -> Tensor:
    kinds = torch.zeros(4, dtype=torch.int64)
    kinds[1:].add_(2)
    part = kinds.view(2, 2)[1]
    part[0] = 5
    return x @ c.W + h * int(kinds.sum()) / 10 + h[:, : part.min()].sum(-1, keepdim=True)


def by_levels(c: Any, x: Tensor, h: Tensor) -> Tensor:
    level = torch.tensor([0, 1, 1, 2])
    out = h
    for k in level.unique():
        places = torch.nonzero(level == k).squeeze(-1)
        out = out + h[:, places].sum(-1, keepdim=True) * (k + 1)
    return x @ c.W + out / torch.bincount(level, minlength=4).clamp(min=1)


WRITTEN: dict[str, Callable[..., Any]] = {
    "times of a solver": euler,
    "checks": checked,
    "written in place": written,
    "a view of what was written": lambda c, x, h: x @ c.W + h * stale(torch.arange(4)).tolist()[0],
    "levels": by_levels,
    "places where": lambda c, x, h: (
        x @ c.W + h[:, torch.where(torch.tensor([True, False, False, True]))[0]].repeat(1, 2)
    ),
    "a mask of units": lambda c, x, h: (
        x @ c.W + h[:, torch.arange(4) % 2 == 0].repeat(1, 2) + h[..., torch.arange(4) > 2]
        + torch.arange(4.0)[torch.arange(4) > 1].sum() * h
    ),
    "pairs": lambda c, x, h: (
        x @ c.W + h[:, torch.combinations(torch.arange(4))].prod(-1).sum(-1, keepdim=True)
    ),
    "repeated": lambda c, x, h: (
        x @ c.W + h * torch.repeat_interleave(h.new_tensor([0.1, 0.2]), torch.tensor([1, 3]))
    ),
    "a place": lambda c, x, h: (
        x @ c.W + h[:, torch.tensor([1, 3, 2]).argmax()][:, None] * len(torch.arange(3).tolist())
        + h[:, torch.tensor(1) : torch.tensor([1, 3]).max()].mean(-1, keepdim=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_made_of_numbers_may_be_asked(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def rows_written(c: Any, z: Tensor, h: Tensor) -> Tensor:
    table = torch.zeros(5, dtype=h.dtype)
    seen = table[1:]
    seen[:] = c.inner.bias[1:]
    return h * float(table.sum()) + z


def stale(base: Tensor) -> Tensor:
    """A view of what has been written to since: while a step is traced it has no memory."""
    view = base[1:]
    base.add_(1)
    return view


REFUSED: dict[str, Callable[..., Tensor]] = {
    "a list of what was written": lambda c, z, h: h * stale(c.inner.bias.clone()).tolist()[0] + z,
    "a list of what nobody has set": lambda c, z, h: (
        h * stale(torch.empty(4).fill_(1)).T.contiguous().tolist()[0] + z
    ),
    "written by what is not known": rows_written,
    "of rows": lambda c, z, h: h * torch.full((5,), 1.0 * h.shape[0]).sum().item() + z,
    "made of a parameter": lambda c, z, h: h * float(h.new_tensor([1.0]) * c.inner.bias[0]) + z,
    "of a parameter": lambda c, z, h: h * torch.as_tensor(c.inner.bias).sum().item() + z,
    "that nobody has set": lambda c, z, h: h * float(torch.empty_like(torch.ones(1))) + z,
}


def applied(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return h * stale(torch.arange(6.0, dtype=h.dtype)).apply_(lambda number: number + 1) + z


def mapped(c: Any, z: Tensor, h: Tensor) -> Tensor:
    places = stale(torch.arange(6.0, dtype=h.dtype))
    return h * places.map_(places, lambda one, other: one + other) + z


@pytest.mark.parametrize("function", [applied, mapped])
def test_what_python_does_to_each_number_is_refused(
    function: Callable[..., Tensor], refuses: Callable[..., None]
) -> None:
    refuses(function, "it calls a function of Python's for each number")


def test_nothing_has_no_numbers(judge: Callable[..., None]) -> None:
    judge(lambda c, x, h: x @ c.W + h + len(stale(c.b.clone())[:0].tolist()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(REFUSED[name], "it takes a number out of a tensor|torch.float32")


def test_numbers_are_computed_without_chance(function_layer: Any) -> None:
    layer = function_layer(lambda c, z, h: h + z * torch.linspace(0, 1, 3)[1].item())
    before = torch.get_rng_state()
    assert flexrnn.explain(layer, torch.randn(2, 3, 3).double()).steps[0].engine == "cpu"
    torch.set_rng_state(before)
