"""What runs along a row's units: slopes, logarithms of sums, products of truth values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .written import halves

WRITTEN: dict[str, Callable[..., Any]] = {
    "gradient": lambda c, x, h: (
        x @ c.W + torch.gradient(h, dim=-1)[0] + torch.gradient(h, spacing=0.5, dim=(1,))[0]
        + torch.gradient(h * c.b, dim=1, edge_order=2)[0]
        + torch.cat(torch.gradient(halves(h), dim=(1, 2)), 1).flatten(1)[:, 2:6]
    ),
    "logcumsumexp": lambda c, x, h: (
        x @ c.W + torch.logcumsumexp(h, -1) + halves(300 * h).logcumsumexp(1).flatten(1) / 300
    ),
    "cumprod of truth values": lambda c, x, h: (
        x @ c.W + h * (h > -0.5).cumprod(-1) * (h > -1).cumprod(-1).sum(-1, keepdim=True)
        + h * torch.cumprod(halves(h) > -0.5, 1, dtype=h.dtype).flatten(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, Callable[..., Tensor]] = {
    "gradient": lambda c, z, h: h + torch.gradient(z, dim=0)[0],
    "logcumsumexp": lambda c, z, h: h + z.logcumsumexp(0),
    "cumprod": lambda c, z, h: h + (z > 0).cumprod(0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_along_the_batch_it_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(REFUSED[name], f"{name}.* cannot be compiled")


def test_an_axis_that_comes_twice_is_refused(refuses: Callable[..., None]) -> None:
    refuses(
        lambda c, z, h: h + torch.gradient(z, dim=(1, -1))[0],
        "gradient cannot be compiled: dim 1 appears multiple times",
    )
