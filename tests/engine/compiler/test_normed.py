"""Norms of each row by itself: of its channels, by neighbours, to a length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves

WRITTEN: dict[str, Callable[..., Any]] = {
    "instance_norm": lambda c, x, h: (
        x @ c.W + F.instance_norm(halves(h)).flatten(1)
        + F.instance_norm((h @ c.wide).view(-1, 2, 2, 2), weight=c.b[:2], bias=c.heads, eps=1e-3)
        .flatten(1)[:, 2:6]
    ),
    "instance_norm, by what has been found": lambda c, x, h: (
        x @ c.W + F.instance_norm(
            halves(h), c.heads.detach(), c.b[:2].detach().square(), c.b[2:], c.heads,
            use_input_stats=False).flatten(1)
    ),
    "local_response_norm": lambda c, x, h: (
        x @ c.W + F.local_response_norm(h.unsqueeze(-1), 3, alpha=2.0).squeeze(-1)
        + F.local_response_norm(halves(h), 2, 0.5, 0.5, 2.0).flatten(1)
    ),
    "renorm": lambda c, x, h: (
        x @ c.W + torch.renorm(h, 2, 0, 0.9) + halves(h * 2).renorm(1, 0, 1.5).flatten(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a length of columns": (lambda c, z, h: h + z.renorm(2, 1, 1.0), "renorm .* but for dim=0"),
    "running statistics": (
        lambda c, z, h: h + F.instance_norm(z[:, None], z.new_zeros(1), z.new_ones(1))[:, 0],
        "instance_norm cannot be compiled: it works across the batch"),
    "no statistics": (
        lambda c, z, h: F.instance_norm(z[:, None], use_input_stats=False)[:, 0],
        "instance_norm cannot be compiled: Expected running_mean"),
    "no such axis": (lambda c, z, h: z.renorm(2, 9, 1.0), "renorm .* Dimension out of range"),
    "no norm": (lambda c, z, h: z.renorm(0, 0, 1.0), "renorm: non-positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
