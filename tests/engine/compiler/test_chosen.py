"""Whole numbers that a row finds out: counts, the number of the largest unit, what numbers pick."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import flexrnn

from .written import halves

INF = math.inf


def masked(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Of four units one is open: the others are -inf, and none is taken twice."""
    scores = torch.where(h == h.amax(-1, keepdim=True), h, -INF)
    values, places = scores.topk(3, -1)
    taken = F.one_hot(places, 4).sum(1)
    return x @ c.W + (values == -INF).sum(-1, keepdim=True) * (taken.amax(-1, keepdim=True) + h)


def sparse(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """The two largest of four scores share all weight, as in a mixture of experts."""
    best, places = (h @ c.U).topk(2)
    weights = torch.zeros_like(h).scatter(-1, places, best.softmax(-1))
    return x @ c.W + weights * h


def scattered(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W
    y.scatter_(1, h.argmin(-1, keepdim=True), 0.5)
    return y + halves(h).scatter(
        1, halves(h).argmax(1, keepdim=True), halves(h)[:, :1] * 2
    ).flatten(1)


def of_nan(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """The largest is what is no number, and of several the first."""
    y = torch.where(h > h.mean(-1, keepdim=True), h / 0 * 0, h)
    return x @ c.W + y.argmax(-1, keepdim=True) + (h * 0).argmin(1, keepdim=True)


def open_units(h: Tensor) -> Tensor:
    """Which units may follow each; the others are -inf."""
    closed = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return torch.where(closed, torch.full((), -INF, dtype=h.dtype), 0.0)


def counted(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """How many of the first units are open before one is shut, as a loop that halts has it."""
    count = torch.zeros(h.shape[0], 1, dtype=torch.long)
    least, most = torch.full((h.shape[0], 1), 2), torch.ones_like(h, dtype=torch.int64)
    running = torch.ones(h.shape[0], 1, dtype=torch.bool)
    for k in range(3):
        count = count + running.long()
        running = running & (h[:, k : k + 1] < 0.5)
        most += (h > 0).long()
    return x @ c.W + count.to(h.dtype) / 3 * h + torch.where(count > least, h, 0.0) + most * h


def least_of_nan(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """What is no number is larger than all that are."""
    y = torch.where(h >= h.topk(3)[0][:, 1:2], math.nan, h)
    values = y.topk(3, largest=False)[0]
    return x @ c.W + values[:, :1] + values[:, 1:2] + values[:, 2:].isnan()


WRITTEN: dict[str, Callable[..., Any]] = {
    "of rows in front of the batch": lambda c, x, h: (
        torch.stack([x @ c.W, h]).max(0)[1] * h + torch.stack([h, h * h]).min(0, keepdim=True)[0][0]
        + torch.stack([x @ c.W, h]).argmax(0) * h + torch.stack([x @ c.W, h * 2]).argmin(-1).sum(0)[
            :, None] * h
    ),
    "of whole numbers": lambda c, x, h: (
        x @ c.W + F.one_hot((h > 0).int().argmax(-1), 4) * h + (h * 4).long().argmin(1, True) * h
        + (h * 4).long().max(-1, keepdim=True)[0] * h + (h * 4).int().min(-1)[1][:, None] * h
    ),
    "whole numbers, picked and put": lambda c, x, h: (
        x @ c.W + h.argsort(1).gather(1, h.argsort(1)) * h + (h > 0).gather(1, h.argsort(1)) * h
        + (h > 1).scatter(1, h.topk(2)[1], True) * h
        + torch.zeros(h.shape[0], 4, dtype=torch.long).scatter_(1, h.argsort(1), h.argsort(1)) * h
    ),
    "a count": lambda c, x, h: x @ c.W + h * (h > 0).sum(-1, keepdim=True),
    "a share": lambda c, x, h: x @ c.W / (h > 0).sum(-1, keepdim=True).clamp(min=1) + h,
    "a count of many": lambda c, x, h: (
        x @ c.W + halves(h > x @ c.W).sum((1, 2))[:, None] * h
    ),
    "count_nonzero": lambda c, x, h: x @ c.W + h.relu().count_nonzero(-1).unsqueeze(-1) * h,
    "a count compared": lambda c, x, h: torch.where(
        (h > 0).sum(-1, keepdim=True) >= 2, h, x @ c.W
    ),
    "counts of counts": lambda c, x, h: (
        x @ c.W + h * (3 - halves(h > 0).sum(-1) + halves(h < 1).sum(-1)).amax(-1, keepdim=True)
    ),
    "one place more": lambda c, x, h: (
        torch.cat([h[:, 1:], (h > 0).sum(-1, keepdim=True)], -1) + x @ c.W
    ),
    "whole numbers of reals": lambda c, x, h: x @ c.W + h * (h * 9).long() + (h * 5).int().float(),
    "truth values as numbers": lambda c, x, h: x @ c.W + (h > 0).long() * h - (h > 0.1).int(),
    "argmax": lambda c, x, h: (
        x @ c.W + h * h.argmax(-1, keepdim=True) - h.argmin(1)[:, None].to(h) / 3
    ),
    "argmax of heads": lambda c, x, h: (
        x @ c.W + (halves(h) * halves(h).argmax(1)[:, None]).flatten(1)
    ),
    "argmax of what is no number": of_nan,
    "max and where": lambda c, x, h: (
        x @ c.W + h.max(-1).values[:, None] * h + h.max(1, keepdim=True)[1] * h
        + torch.min(h, dim=1)[1][:, None] + torch.max(h, x @ c.W)
    ),
    "one_hot": lambda c, x, h: x @ c.W + h * F.one_hot(h.argmax(-1), 4),
    "one_hot, straight through": lambda c, x, h: (
        x @ c.W + (F.one_hot(h.argmax(-1), 4).to(h) - h.softmax(-1)).detach() + h.softmax(-1)
    ),
    "the embedding of what is largest": lambda c, x, h: (
        x @ c.W + F.embedding((h + x @ c.W).argmax(-1), c.U) * h
    ),
    "rows of a parameter by index_select": lambda c, x, h: (
        x @ c.W + c.U.index_select(0, h.argmax(-1)) * torch.index_select(c.V, -2, x.argmin(-1))
    ),
    "several embeddings": lambda c, x, h: (
        x @ c.W + F.embedding(h.topk(3)[1], c.U, padding_idx=-2).sum(1) + h
    ),
    "rows of a parameter": lambda c, x, h: (
        x @ c.W + c.U[h.argmax(-1)] * h + c.V[h.argmin(-1)][:, :1]
    ),
    "matrices of a parameter": lambda c, x, h: (
        x @ c.W + torch.einsum("boi,bi->bo", c.wide.view(4, 2, 4)[h.argmax(-1)], h).repeat(1, 2)
        + c.wide.view(4, 2, 4)[h.topk(2)[1]].sum((1, 2))
        + c.wide.view(4, 2, 4)[h.argmin(-1), :, 1:3].flatten(1)
        + c.wide.view(2, 4, 4)[1, x.argmax(-1)]
    ),
    "a parameter by two numbers": lambda c, x, h: (
        x @ c.W + c.U[h.argmax(-1) - 1, h.argmin(-1)][:, None] * h
        + c.wide.view(4, 2, 4)[h.argmax(-1), h.argmin(-1) % 2] + c.U[h.argmin(-1), 1][:, None]
        + c.wide.view(4, 2, 4)[h.argmax(-1), h.argmin(-1) % 2, x.argmax(-1)][:, None]
        + c.U[h.argmax(-1, keepdim=True), h.topk(2, largest=False)[1]].repeat(1, 2)
    ),
    "take_along_dim, stretched": lambda c, x, h: (
        x @ c.W + halves(h).take_along_dim(halves(h).sum(2, keepdim=True).argsort(1), 1).flatten(1)
        + torch.take_along_dim(h[:, :, None], halves(h).argmax(1)[:, None], 1)[:, 0].repeat(1, 2)
    ),
    "counted up from none": counted,
    "rows of a parameter from its end": lambda c, x, h: (
        x @ c.W + c.U[h.argmax(-1) - 1] + torch.take_along_dim(h, h.argmax(1, keepdim=True) - 4, -1)
    ),
    "a table with inf": lambda c, x, h: (
        x @ c.W + (h + open_units(h)[h.argmax(-1)]).softmax(-1)
        + F.embedding(h.topk(2)[1], open_units(h)).amax(1).clamp(min=0)
    ),
    "a long table": lambda c, x, h: (
        x @ c.W + F.embedding((h.sigmoid() * 20).long(), c.U.repeat(5, 1)).mean(1)
    ),
    "gather": lambda c, x, h: (
        x @ c.W + h.gather(-1, h.topk(2).indices).repeat(1, 2)
    ),
    "take_along_dim": lambda c, x, h: (
        x @ c.W + torch.take_along_dim(h, (x @ c.W).argmin(-1, keepdim=True), dim=1)
    ),
    "gather of heads": lambda c, x, h: (
        x @ c.W + halves(h).gather(1, halves(h).argmax(1, keepdim=True)).flatten(1).repeat(1, 2)
    ),
    "topk": lambda c, x, h: x @ c.W + h.topk(3, -1).values.sum(-1, keepdim=True) * h,
    "the least": lambda c, x, h: x @ c.W + torch.topk(h, 2, largest=False)[0].repeat(1, 2),
    "the least of what is no number": least_of_nan,
    "topk of heads": lambda c, x, h: (
        x @ c.W + halves(h).topk(1, dim=1).values.flatten(1).repeat(1, 2)
    ),
    "topk of what is masked": masked,
    "a mixture of experts": sparse,
    "scatter": scattered,
    "scatter where it was written before": lambda c, x, h: x @ c.W + torch.zeros_like(h).scatter(
        1, (h[:, :3] > 9).long(), h[:, 1:].detach()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_dtypes(function_layer: Any, dtype: torch.dtype) -> None:
    def step(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return z + h * (h > 0).sum(-1, keepdim=True) / F.one_hot(h.argmax(-1), 5).sum(-1)[:, None]

    layer, x = function_layer(step, dtype=dtype), torch.randn(4, 3, 3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = layer(x)[0]
    with flexrnn.backend("reference"):
        torch.testing.assert_close(found, layer(x)[0])


def test_numbers_that_pick_nothing_are_no_secret(function_layer: Any) -> None:
    """Torch raises an error where a program computes, which cannot; what it would pick is nan."""
    layer = function_layer(
        lambda c, z, h: z + F.embedding((z[:, 0] * 0).long() + 7, c.inner.weight)[:, :1]
    )
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert layer(x)[0].isnan().all()
    with flexrnn.backend("reference"), pytest.raises(IndexError):
        layer(x)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "products of counts": (
        lambda c, z, h: h + ((h > 0).sum(-1) * (z > 0).sum(-1))[:, None], "too many digits"),
    "classes that are not said": (
        lambda c, z, h: h + F.one_hot(h.argmax(-1))[:, :1], "num_classes"),
    "the largest of all rows": (lambda c, z, h: h + h.argmax(), "aten.argmax"),
    "the largest row": (lambda c, z, h: h + h.argmax(0), "argmax"),
    "classes of none": (
        lambda c, z, h: h + F.one_hot(h.argmax(-1), 0).sum(-1, True), "a number in a row"),
    "classes by shorter numbers": (
        lambda c, z, h: h + F.one_hot(h.argmax(-1).int(), 5), "one_hot"),
    "a table that is too large": (
        lambda c, z, h: h + F.embedding(h.argmax(-1), c.inner.weight.repeat(9000, 1))[:, :1],
        "embedding"),
    "counts shifted by counts": (
        lambda c, z, h: h + ((h > 0).sum(-1, keepdim=True) << (h > 1).sum(-1, keepdim=True)),
        "no form of it for a batch|int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])


def test_of_two_values_for_a_unit_the_last_stays(function_layer: Any) -> None:
    """Torch hands both of them the derivative of what one of them wrote."""

    def twice(c: Any, z: Tensor, h: Tensor) -> Tensor:
        places = (z[:, :2] * 0).long()
        return torch.zeros_like(h).scatter(1, places, z[:, 1:3])

    layer, x = function_layer(twice), torch.randn(1, 3, 3, dtype=torch.float64)
    with flexrnn.backend("cpu"):
        output = layer(x)[0]
    with flexrnn.backend("reference"):
        torch.testing.assert_close(output, layer(x)[0])
    output.sum().backward()
    assert (layer.inner_bias_l0.grad != 0).tolist() == [False, False, True, False, False]
