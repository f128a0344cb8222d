"""Units in their order: `sort`, `argsort`, `topk` of many, `kthvalue`, `median`."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn

from .written import halves


def sparsemax(z: Tensor) -> Tensor:
    """A projection onto the simplex (Martins & Astudillo 2016), as it is usually written."""
    ordered, _ = torch.sort(z, dim=-1, descending=True)
    numbers = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    sums = ordered.cumsum(-1)
    many = (1 + numbers * ordered > sums).sum(-1, keepdim=True)
    return torch.clamp(z - (sums.gather(-1, many - 1) - 1) / many.to(z.dtype), min=0)


def three(h: Tensor) -> Tensor:
    """Twelve units, no two alike."""
    return torch.cat([h, h * 0.9 - 0.1, h * 1.1 + 0.2], -1)


def in_front(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Three candidates for every unit, in front of the batch."""
    return torch.stack([x @ c.W, h + c.b, h * 2])


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "the median of three": lambda c, x, h: (
        in_front(c, x, h).median(0).values + h * torch.median(in_front(c, x, h), 0, True).indices[0]
        + in_front(c, x, h).median(-1).values.sum(0)[:, None]),
    "three in their order": lambda c, x, h: (
        in_front(c, x, h).sort(0)[0][1] + in_front(c, x, h).sort(2, descending=True)[0].sum(0)
        + h * (in_front(c, x, h) * in_front(c, x, h).argsort(0)).sum(0)),
    "the largest of three": lambda c, x, h: (
        in_front(c, x, h).topk(2, 0)[0].sum(0) + h * in_front(c, x, h).kthvalue(2, dim=0)[0]
        + in_front(c, x, h).topk(2)[0].sum(0).repeat(1, 2)),
    "sort": lambda c, x, h: x @ c.W + (h + c.b).sort(-1).values * h,
    "sort downwards": lambda c, x, h: (
        (x @ c.W).sort(descending=True)[0] + h * (h + c.b).sort(-1, True).indices),
    "sort with names": lambda c, x, h: (
        x @ c.W + torch.sort(h + c.b, dim=1, descending=True, stable=True)[0]),
    "sort of heads": lambda c, x, h: x @ c.W + halves(h + c.b).sort(1)[0].flatten(1),
    "argsort": lambda c, x, h: (x @ c.W).gather(-1, (h + c.b).argsort(-1)) + h,
    "argsort downwards": lambda c, x, h: (
        (x @ c.W).gather(-1, torch.argsort(h + c.b, descending=True)) + h),
    "many of the largest": lambda c, x, h: x @ c.W + three(h + c.b).topk(9)[0][:, 5:] * h,
    "many of the least": lambda c, x, h: (
        x @ c.W + three(h + c.b).topk(10, largest=False)[0][:, 6:] * h),
    "the second": lambda c, x, h: x @ c.W + (h + c.b).kthvalue(2, -1, keepdim=True)[0] * h,
    "the third, without its axis": lambda c, x, h: (
        x @ c.W + torch.kthvalue(h + c.b, 3)[0][:, None] * h),
    "the median": lambda c, x, h: (
        x @ c.W + h - torch.median(h + c.b, dim=-1, keepdim=True).values),
    "the median's place": lambda c, x, h: x @ c.W + h * (h + c.b).median(1).indices[:, None],
    "ranks": lambda c, x, h: x @ c.W + h * (h + c.b).argsort(-1).argsort(-1),
    "ranks downwards": lambda c, x, h: (
        x @ c.W + h * (h + c.b).argsort(-1, True).int().sort(-1).indices),
    "an inverse permutation": lambda c, x, h: (
        (x @ c.W).gather(-1, (-(h + c.b).argsort(-1)).topk(4).indices)
        + h * three(h + c.b).argsort(-1).topk(10, largest=False)[1][:, 6:]),
    "sort of whole numbers": lambda c, x, h: (
        x @ c.W + h * (h * 9).long().sort(-1).values + (h * 5).int().sort(1, True)[0]),
    "the median of whole numbers": lambda c, x, h: (
        x @ c.W + h * (h * 9).long().median(-1, True).values
        - (h * 5).long().kthvalue(2, -1, True).values),
    "sparsemax": lambda c, x, h: x @ c.W + sparsemax(h + c.b),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


ODD = [[3.0, math.nan, 1.0, 2.0, -0.5], [math.inf, 1.0, -math.inf, 1.0, math.nan],
       [0.0, 0.0, 0.0, 0.0, 0.0]]  # fmt: skip

ORDERED: dict[str, Callable[..., Any]] = {
    "up": lambda z: z.sort(stable=True),
    "down": lambda z: z.sort(stable=True, descending=True),
    "the fourth": lambda z: z.kthvalue(4, -1, keepdim=True)[:1],  # which of several is not said
    "the median": lambda z: z.median(-1, keepdim=True),
}


@pytest.mark.parametrize("name", ORDERED)
def test_nan_is_the_largest_and_the_first_of_several_comes_first(name: str) -> None:
    z = torch.tensor([ODD], dtype=torch.float64)
    for place, expected in enumerate(ORDERED[name](z)):
        layer = flexrnn.FlexRNN(Same, 5, 5, dtype=torch.float64, name=name, place=place)
        with flexrnn.backend("cpu"):
            found = layer(z)[0]
        assert_close(found, expected.to(found.dtype).expand(1, 3, 5), equal_nan=True)


class Same(flexrnn.Cell):
    """The input in its order."""

    State = flexrnn.cells.HiddenState

    def __init__(self, input_size: int, hidden_size: int, name: str, place: int, **options: Any):
        super().__init__(input_size, hidden_size)
        self.name, self.place = name, place

    def step(self, x: Tensor, state: Any) -> Any:
        found = ORDERED[self.name](x)[self.place]
        return flexrnn.cells.HiddenState((state.h * 0 + found).to(x.dtype))


REFUSED: dict[str, Callable[..., Any]] = {
    "sort": lambda c, z, h: h + z.sort(0).values,
    "median": lambda c, z, h: h + z.median(),
    "topk": lambda c, z, h: h + h.repeat(1, 30).topk(9)[0].sum(-1, True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, function_layer: Any) -> None:
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=f"aten.{name}"):
        function_layer(REFUSED[name])(torch.randn(2, 3, 3, dtype=torch.float64))
