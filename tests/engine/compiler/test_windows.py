"""Diagonals, windows, pools, and other views of a row."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves


def outer(c: Any, x: Tensor, h: Tensor) -> Tensor:
    return h[:, :, None] * (x @ c.W)[:, None]


def diagonals_written(c: Any, x: Tensor, h: Tensor) -> Tensor:
    m = outer(c, x, h)
    m.diagonal(dim1=1, dim2=2).mul_(2)
    m.diagonal(1, 2, 1).copy_(h[:, :3])
    torch.diagonal(m, -2, -2, -1)[:, 0] = 0.5
    return m.sum(1) + m[:, 1] * h


def a_diagonal_of_a_weight(c: Any, x: Tensor, h: Tensor) -> Tensor:
    weight = c.U * 1
    weight.diagonal().add_(1.0)
    return x @ c.W + h @ weight * torch.diagonal(c.wide, 2) + c.U.trace() * h


WRITTEN: dict[str, Callable[..., Any]] = {
    "diagonals": lambda c, x, h: (
        x @ c.W + torch.diagonal(outer(c, x, h), 0, 1, 2) + outer(c, x, h).diagonal(-1, 2, 1).sum(
            -1, keepdim=True) + (h @ c.wide).view(-1, 2, 4).diagonal(2, 1, 2).repeat(1, 2)
    ),
    "diagonals by einsum": lambda c, x, h: (
        x @ c.W + torch.einsum("bii->bi", halves(h)).repeat(1, 2)
        + torch.einsum("bii->b", outer(c, x, h))[:, None] * h
    ),
    "diagonals, written": diagonals_written,
    "a diagonal of a weight": a_diagonal_of_a_weight,
    "windows": lambda c, x, h: (
        x @ c.W + h.unfold(-1, 2, 1).amax(-1).sum(-1, keepdim=True) * h
        + (h @ c.wide).unfold(1, 4, 4).prod(1) + halves(h).unfold(1, 2, 1).flatten(1)
        + (h @ c.wide).unfold(dimension=1, size=3, step=2).prod(-1).sum(-1, keepdim=True)
    ),
    "pools": lambda c, x, h: (
        x @ c.W + F.max_pool1d(h.relu(), 2).repeat(1, 2) * h + F.avg_pool1d(h, 2).repeat(1, 2)
        + F.avg_pool1d(h[:, None], 3, stride=1, padding=1)[:, 0] * h
        + F.max_pool1d(halves(h @ c.U), kernel_size=2, stride=1).flatten(1).repeat(1, 2)
        + F.max_pool1d(h[:, None], 3, 1, 1)[:, 0] + F.max_pool1d(-h[:, None], 2, 2, 1).sum(-1)
    ),
    "pools of images": lambda c, x, h: (
        x @ c.W + F.max_pool2d((h @ c.wide).view(-1, 1, 2, 4), 2).flatten(1).repeat(1, 2)
        + F.max_pool2d((h @ c.wide).view(-1, 1, 2, 4), 3, 1, 1).flatten(1)[:, 2:6]
        + F.avg_pool2d((h @ c.wide).view(-1, 2, 2, 2), 2, (1, 1), 1).flatten(1)[:, 5:9]
        + F.avg_pool2d((h @ c.wide).view(-1, 2, 2, 2), (2, 1), divisor_override=3).flatten(1)
    ),
    "pools of so many parts": lambda c, x, h: (
        x @ c.W + F.adaptive_max_pool1d(h[:, None], 3).sum(-1) * h
        + F.adaptive_max_pool1d((h @ c.wide)[:, None], output_size=4).squeeze(1)
        + F.adaptive_max_pool1d(halves(h), 1).flatten(1).repeat(1, 2)
        + F.adaptive_max_pool2d((h @ c.wide).view(-1, 2, 2, 2), 1).flatten(1).repeat(1, 2)
    ),
    "pads": lambda c, x, h: (
        x @ c.W + F.pad(h, (2, 1), "reflect")[:, :4] + F.pad(h @ c.U, (3, 2), "replicate")[:, 3:7]
        + F.pad(h, (1, 4), mode="circular")[:, 4:8] * h + sum(
            F.pad(halves(h)[:, None], (0, 1, 1, 1), mode)[:, 0, 1:3, 1:].flatten(1)
            for mode in ("reflect", "replicate", "circular"))
    ),
    "distances of all pairs": lambda c, x, h: (
        x @ c.W + torch.cdist(halves(h), halves(x @ c.W)).flatten(1) + torch.cdist(h, c.V, p=1.0)
        + torch.cdist(halves(h), halves(h), 3.0).flatten(1) * h
    ),
    "shuffles": lambda c, x, h: (
        x @ c.W + F.pixel_shuffle(h.view(-1, 4, 1, 1), 2).flatten(1)
        + F.pixel_unshuffle(h.view(-1, 1, 2, 2), 2).flatten(1) * h
        + F.channel_shuffle(h.view(-1, 4, 1), 2).flatten(1) + torch.rot90(
            halves(h), 1, (1, 2)).flatten(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a trace": (lambda c, z, h: h + torch.trace(z), "trace.* it works across the batch"),
    "a diagonal of rows": (
        lambda c, z, h: h + z[:, None].diagonal(0, 0, 2), "it asks for the batch size"),
    "a diagonal of nothing": (
        lambda c, z, h: h + z[:, None].diagonal(5, 1, 2).sum(-1, True), "a diagonal of nothing"),
    "maxima that lie apart": (
        lambda c, z, h: h + F.max_pool1d(z[:, None], 2, 1, 0, 2)[:, 0, :1], "max_pool2d_with"),
    "maxima of images that lie apart": (
        lambda c, z, h: h + F.max_pool2d(z[:, None, None], (1, 2), 1, 0, 2)[:, 0, 0, :1],
        "max_pool2d_with"),
    "a pad of less": (
        lambda c, z, h: h + F.pad(z, (1, -1), "reflect"), "reflection_pad1d"),
    "long windows": (
        lambda c, z, h: h + z.repeat(1, 20).unfold(1, 80, 10)[:, 0, :5], "windows of 80 places"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
