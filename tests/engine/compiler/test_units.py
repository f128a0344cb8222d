"""Units of a row: parts, other orders, numbers of units, what is written into them."""

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves

AXIS: dict[str, Any] = {"axis": 1}  # which torch takes, and does not declare


def written_pairs(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, z = torch.empty_like(h), x @ c.W
    y[:, ::2] = -h[:, 1::2]
    y[..., 1::2] = h[:, ::2]
    z[:, 1:4:2] *= 2
    z[:, ::3] = 0.5
    z.view(-1, 2, 2)[:, ::2] += y[:, None, :2]
    return y + z


def flipped(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """It is another tensor: writing into it leaves the first as it is."""
    y = h.clone()
    z = y.flip([])
    z[:, 0] = 3.0
    return y + z + x @ c.W


def picked_inf(c: Any, x: Tensor, h: Tensor) -> Tensor:
    scores = torch.where(h > h.amin(1, keepdim=True), h, -math.inf)
    picked = scores[:, [1, 0, 3, 2]].logsumexp(1, keepdim=True)
    return picked.tanh() * scores.flip(1).amax(1, keepdim=True) + x @ c.W


def square(h: Tensor) -> Tensor:
    return h[:, :, None] * h[:, None]


WRITTEN: dict[str, Callable[..., Any]] = {
    "of two axes": lambda c, x, h: (
        x @ c.W + square(h)[(slice(None), *torch.triu_indices(4, 4))][:, 3:7]
        + square(h)[:, [0, 1, 2, -1], [1, 0, 0, 2]] + square(h)[..., c.places, [0, 1, 2, -4]]
        + square(h)[:, torch.arange(4)[:, None], c.places[None]].sum(1)
        + square(h).view(-1, 2, 2, 4)[:, [0, 1], [1, 0]].sum(1)
        + (square(h)[..., None] * h[:, None, None])[:, [0, 1, 1, 2], [0, 2, 3, 3], [1, 1, 2, 3]]
    ),
    "truth values and whole numbers": lambda c, x, h: (
        x @ c.W + (h > 0)[:, c.places] * h + h.argsort(1)[:, c.places - 4] * h
        + h.argsort(-1)[..., [3, 1, 0, 2]] * h
        + (halves(h) > 0)[:, c.places[1:3] % 2].flatten(1) * h
    ),
    # parts and orders
    "slices": lambda c, x, h: torch.cat([h[:, 1:], h[:, :1]], -1) + x @ c.W,
    "slices of slices": lambda c, x, h: (x @ c.W @ c.wide)[:, 1:7][..., 1:5] + h[:, :][:, 0:4],
    "ellipsis and None": lambda c, x, h: h * h[..., 0:1] * h[:, 1, None] + x @ c.W,
    "negative bounds": lambda c, x, h: torch.cat([h[:, -1:], h[:, -4:-1]], -1) + x @ c.W,
    "unused chunk": lambda c, x, h: (x @ c.W @ c.wide).chunk(2, -1)[0] + h,
    "overlapping slices": lambda c, x, h: (
        (x @ c.W @ c.wide)[:, :4] * (x @ c.W @ c.wide)[:, 2:6] + h
    ),
    "every second unit": lambda c, x, h: torch.cat([-h[:, 1::2], h[..., ::2]], -1) + x @ c.W,
    "every third unit": lambda c, x, h: (
        h[:, ::3].sum(-1, keepdim=True) * h + torch.cat([h[:, 1::3], h[:, 3:9:3], x[:, 0::2]], -1)
        + h[:, 2:3:7] + x @ c.W
    ),
    "every second head": lambda c, x, h: (
        (halves(h)[:, ::2] * halves(x @ c.W)).flatten(1) + (x @ c.W @ c.wide).view(-1, 4, 2)[
            :, 1::2].flatten(1)
    ),
    "every second row of a weight": lambda c, x, h: h[:, :2] @ c.V[::2] + x @ c.W,
    "rotated pairs": lambda c, x, h: (
        torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2) + x @ c.W
    ),
    "unbind": lambda c, x, h: torch.stack(h.unbind(-1)[::-1], -1) + x @ c.W,
    "rows of a weight": lambda c, x, h: sum((h * w for w in c.V), start=x @ c.W),
    "roll and flip": lambda c, x, h: h.roll(1, -1) * h.flip(-1) + x @ c.W,
    "flip of many": lambda c, x, h: (
        (h.repeat(1, 20) * torch.arange(80, dtype=h.dtype)).flip(-1)[:, 3:7] + x @ c.W
        + (h.repeat(1, 17)[:, :67] * torch.arange(67, dtype=h.dtype)).flip(1)[:, 60:64]
    ),
    "flip of a number": lambda c, x, h: h * c.one.flip(0) + x @ c.W,
    "flip of nothing": flipped,
    "arguments by name": lambda c, x, h: (
        h.flip(dims=(1,)) + torch.flip(input=h, dims=[1]) + torch.fliplr(input=h) + x @ c.W
        + torch.cumsum(h, **AXIS) + torch.index_select(input=h, dim=1, index=c.places)
        + h @ torch.flip(c.U, dims=[0, 1]).cumsum(dim=0) + F.linear(h, weight=c.U, bias=c.b)
        + F.bilinear(h, x, weight=c.U[:, :3].expand(4, 4, 3), bias=c.b)
    ),
    "flip of heads": lambda c, x, h: halves(h).flip(1, 2).flatten(1) + torch.fliplr(x @ c.W),
    "axes behind the batch": lambda c, x, h: halves(h).mT.reshape(-1, 4) + x @ c.W,
    "channels shuffled": lambda c, x, h: (
        (x @ c.W @ c.wide).view(-1, 2, 4).transpose(1, 2).flatten(1)[:, :4]
        + (h @ c.wide).view(-1, 4, 2).transpose(1, 2).reshape(-1, 8)[:, 2:6]
    ),
    "three axes turned": lambda c, x, h: (
        (h @ c.wide).view(-1, 2, 2, 2).permute(0, 3, 1, 2).reshape(-1, 8)[:, :4] + x @ c.W
    ),
    # units by number
    "a permutation": lambda c, x, h: h[:, c.places] + x @ c.W,
    "a permutation before and after a product": lambda c, x, h: (
        (h[:, c.places] @ c.U)[:, c.places] + x @ c.W
    ),
    "a list of units": lambda c, x, h: h[..., [3, -3, 0, 0]] * h[:, range(4)] + x @ c.W,
    "a list of truth values": lambda c, x, h: (
        h[:, [True, False, True, True]].sum(1, keepdim=True) * h + x @ c.W
    ),
    "units by NumPy": lambda c, x, h: (
        h[:, numpy.array([1, 0, 3, 2])] + h[..., [numpy.int64(2), 0, 1, 3]] + x @ c.W
    ),
    "truth values by a list": lambda c, x, h: h * (h > 0)[:, [1, 0, 3, 2]] + x @ c.W,
    "a list beside a number": lambda c, x, h: (
        torch.cat([halves(h)[:, 0, [1, 0]], halves(h)[..., (1, 0), 1]], -1) + x @ c.W
    ),
    "many units by number": lambda c, x, h: (
        (h @ c.wide).repeat(1, 9)[:, [*range(71, -1, -1)]][:, 2:6] + x @ c.W
    ),
    "what is picked may be inf": picked_inf,
    "a table of units": lambda c, x, h: (
        h[:, torch.tensor([[0, 1], [3, 2]])].sum(-1).repeat(1, 2) + x @ c.W
    ),
    "index_select": lambda c, x, h: (
        h.index_select(-1, c.places) + torch.index_select(halves(h), 1, c.places[1:2]).repeat(
            1, 2, 1).flatten(1) + x @ c.W
    ),
    "units of heads": lambda c, x, h: (
        halves(h)[:, [1, 0]].flatten(1) * halves(h)[..., None, [1, 0]].flatten(1) + x @ c.W
    ),
    "units of a weight": lambda c, x, h: h[:, :2] @ c.V[[2, 0]] + h @ c.U[:, c.places] + x @ c.W,
    "cumsum": lambda c, x, h: (x @ c.W + h).softmax(-1).cumsum(-1) - h.cumsum(1),
    "cumsum over heads": lambda c, x, h: halves(h).cumsum(1).flatten(1) + x @ c.W,
    "cumsum of other axes": lambda c, x, h: h.T.cumsum(0).T + h.clone().cumsum_(1) + x @ c.W,
    "cumulative_trapezoid": lambda c, x, h: (
        F.pad(torch.cumulative_trapezoid(h * c.b), (1, 0)) + x @ c.W
        + F.pad(torch.cumulative_trapezoid(h, c.U.cumsum(1)[0], dim=1), (0, 1))
        + torch.cumulative_trapezoid(halves(h), halves(h).square(), dim=1).flatten(1).repeat(1, 2)
        + torch.cumulative_trapezoid(halves(h), dx=0.5, dim=-2).flatten(1).repeat(1, 2)
    ),
    "cumulative_trapezoid of other axes": lambda c, x, h: (
        F.pad(torch.cumulative_trapezoid(h.T, dim=0).T, (0, 1)) + x @ c.W
    ),
    "cumsum of a weight": lambda c, x, h: h @ c.U.cumsum(0) + x @ c.W,
    "repeat": lambda c, x, h: h[:, :1].repeat(1, 4) + x @ c.W,
    "expand": lambda c, x, h: h * c.b.expand_as(h) + c.single.expand(x.shape[0], 4) + x @ c.W,
    "tensor_split": lambda c, x, h: h.tensor_split(2, -1)[0].repeat(1, 2) + x @ c.W,
    "heads": lambda c, x, h: (halves(h) * c.heads.view(2, 1)).flatten(1) + x @ c.W,
    "sum over heads": lambda c, x, h: (
        (halves(h).sum(1, keepdim=True) * halves(x @ c.W)).reshape(-1, 4)
    ),
    "mean over heads": lambda c, x, h: halves(h).mean(1).repeat(1, 2) + x @ c.W,
    "softmax by heads": lambda c, x, h: halves(x @ c.W).softmax(-1).flatten(1) * h,
    "joined with a parameter": lambda c, x, h: (
        torch.cat([x, c.single.expand(x.shape[0], -1)], -1).tanh() * c.b + h
    ),
    "joined with a parameter, times W": lambda c, x, h: (
        torch.cat([x, c.single.expand(x.shape[0], -1)], -1) @ c.U + h
    ),
    "joined with ones": lambda c, x, h: (
        torch.cat([x, torch.ones_like(x[:, :1])], -1) @ c.U + h
    ),
    # writes
    "every second unit written": written_pairs,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])
