"""What works along an axis of a row: norms, sums, maxima and products."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import but, halves


def equals(h: Tensor) -> Tensor:
    """Several that are equal, and have a derivative each."""
    return h.sign() + (h - h.detach()) * torch.arange(1.0, 1.0 + h.shape[1], dtype=h.dtype)


WRITTEN: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda c, x, h: F.rms_norm(x @ c.W + h, (4,), c.b, 1e-3),
    "group_norm": lambda c, x, h: F.group_norm(x @ c.W + h, 2, c.b, c.row[0]),
    "layer_norm": lambda c, x, h: F.layer_norm(x @ c.W + h, (4,), c.b),
    "var, biased": lambda c, x, h: h / (1 + h.var(-1, unbiased=False, keepdim=True)) + x @ c.W,
    "var_mean": lambda c, x, h: (
        h * torch.var_mean(h, -1, keepdim=True)[0] - torch.var_mean(x, 1)[1][:, None] + x @ c.W
    ),
    "std_mean": lambda c, x, h: (
        h * torch.std_mean(h, -1)[0][:, None] - torch.std_mean(h, 1, keepdim=True)[1] + x @ c.W
    ),
    "norm of order 1": lambda c, x, h: h / (1 + h.norm(p=1, dim=-1, keepdim=True)) + x @ c.W,
    "normalize": lambda c, x, h: F.normalize(h, dim=-1) + x @ c.W,
    "cosine_similarity": lambda c, x, h: (
        h * F.cosine_similarity(x @ c.W, h, dim=-1).unsqueeze(-1) + x @ c.W
    ),
    "norm of order inf": lambda c, x, h: (
        h / (1 + torch.linalg.vector_norm(h, math.inf, -1, keepdim=True)) + x @ c.W
    ),
    "norms of other orders": lambda c, x, h: (
        h / (1 + h.norm(3, -1, keepdim=True)) + torch.linalg.vector_norm(h, 1.5, 1, True) + x @ c.W
        + halves(h).norm(4, 1).repeat(1, 2) + torch.norm(h, 0.5, dim=-1)[:, None]
        + h * torch.linalg.vector_norm(h.relu(), 0, 1, True) + F.normalize(h, 3, 1)
    ),
    "norms of nothing": lambda c, x, h: (
        (h * 0).norm(3, -1, keepdim=True) + torch.linalg.vector_norm(h.relu(), 1.5, 1, True)
        + torch.linalg.vector_norm(h.relu(), -math.inf, 1, True) * h + x @ c.W
    ),
    "layer_norm of heads": lambda c, x, h: (
        F.layer_norm(halves(x @ c.W + h), (2, 2), c.U[:2, :2], c.V[:2, :2]).flatten(1)
    ),
    "group_norm of heads": lambda c, x, h: (
        F.group_norm((h @ c.wide).view(-1, 4, 2), 2, c.b, c.row[0]).flatten(1)[:, :4] + x @ c.W
    ),
    "var over heads": lambda c, x, h: (
        halves(h).var(1, keepdim=True) * halves(x @ c.W)).flatten(1) + h.std((-1,))[:, None],
    "over several axes": lambda c, x, h: (
        h * halves(h).sum((1, 2))[:, None] + x @ c.W - halves(h).mean((1, 2), keepdim=True)[:, 0]
        + halves(h).logsumexp((-1, 1))[:, None] + halves(h).norm(dim=(1, 2))[:, None]
    ),
    "softmax over heads": lambda c, x, h: (
        (halves(x @ c.W).softmax(1) * halves(h)).flatten(1)
        + halves(h).log_softmax(1).flatten(1) * (h @ c.wide).view(-1, 4, 2).softmax(1)[..., 0]
    ),
    "amax over heads": lambda c, x, h: (
        halves(h) - halves(x @ c.W).amax(1, keepdim=True)
    ).flatten(1) - halves(h).amin(1).repeat(1, 2),
    "maxout": lambda c, x, h: (
        (h @ c.wide).view(-1, 4, 2).max(-1).values + torch.min(x @ c.W, 1, keepdim=True)[0]
    ),
    "a number along an axis": lambda c, x, h: (
        h * c.one.max(0)[0] * (c.one > 0).all(0) + c.one.sum(0) * c.one.softmax(0) + x @ c.W
    ),
    "the first of many": lambda c, x, h: (
        (h @ c.wide).repeat(1, 5)[:, :37].relu().max(1, keepdim=True).values * h + x @ c.W
        - (h @ c.wide).repeat(1, 3).view(-1, 12, 2).mT.min(-1)[0].repeat(1, 2)
    ),
    "the product of many": lambda c, x, h: (
        (h @ c.wide).tanh().repeat(1, 3)[:, :23].add(1).prod(1, keepdim=True).tanh() + x @ c.W + h
    ),
    "which of equals": lambda c, x, h: (
        equals(h).max(1, keepdim=True).values * h.sin() + equals(h).min(1)[0][:, None] + x @ c.W
        + equals((h @ c.wide).repeat(1, 5)[:, :37]).max(1, keepdim=True).values * h.cos()
        + equals((h @ c.wide).repeat(1, 5)[:, :38]).min(1, keepdim=True).values * h
    ),
    "the first of equals": lambda c, x, h: (
        h.relu().max(1, keepdim=True).values * h + h.relu().min(-1)[0][:, None] + x @ c.W
        + torch.stack([h, h], 1).max(1)[0]
    ),
    "prod": lambda c, x, h: (
        h * halves(h).prod(-1).repeat(1, 2) + h.relu().prod(1, keepdim=True) + x @ c.W
        + halves(h).prod(1).repeat(1, 2)
    ),
    "cumprod": lambda c, x, h: (  # a stick is broken
        h.sigmoid() * F.pad((1 - h.sigmoid()).cumprod(-1)[:, :-1], (1, 0), value=1.0)
        + halves(h).cumprod(1).flatten(1) + h.relu().cumprod(1)[:, 1:2] + x @ c.W
    ),
    "running maxima": lambda c, x, h: (
        h.cummax(-1).values * h + halves(h).cummin(1)[0].flatten(1) + x @ c.W
        + equals(h).cummax(1)[0] + torch.cummin(equals(h), -1).values * h.cos()
        + torch.where(h > 0.5, math.nan, h).cummax(1)[0].isnan() * h
    ),
    "sums of what is a number": lambda c, x, h: (
        h * h.log().nansum(-1, keepdim=True) + h.log().nanmean(-1)[:, None] + x @ c.W
        + h.exp().nanmean((1,), True)
    ),
    "aminmax": lambda c, x, h: (
        torch.cat(h.relu().aminmax(dim=1, keepdim=True), 1).sum(1, keepdim=True) + x @ c.W + h
    ),
    "amin": lambda c, x, h: h - h.amin(-1, keepdim=True) + x @ c.W,
    "softmin": lambda c, x, h: F.softmin(h, -1) + x @ c.W,
}  # fmt: skip


@pytest.mark.parametrize("name", but(WRITTEN, "aminmax", "has no derivative of it"))
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


@pytest.mark.parametrize("name", ["normalize", "cosine_similarity", "norm of order 1"])
def test_a_norm_has_no_direction_at_zero(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name], scale=0.0)
