"""Quantiles of a row's units, and of those that are numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .written import halves


def some(h: Tensor) -> Tensor:
    """Nan in place of what is above a bound; in a row it may be all."""
    return torch.where(h > 0.2, math.nan, h)


def several(h: Tensor) -> Tensor:
    return torch.tensor([0.1, 0.75], dtype=h.dtype)


WRITTEN: dict[str, Callable[..., Any]] = {
    "quantile": lambda c, x, h: (
        x @ c.W + torch.quantile(h + c.b, 0.3, -1, keepdim=True) * h
        + (h * 2).quantile(0.5, dim=1).unsqueeze(1) + halves(h).quantile(0.4, 1).repeat(1, 2)
    ),
    "the ends": lambda c, x, h: (
        x @ c.W + h.quantile(0, 1, True) - h.quantile(1.0, -1, True) * c.b
        + torch.quantile(h, 1 / 3, 1, keepdim=True)
    ),
    "several": lambda c, x, h: (
        x @ c.W + torch.quantile(h, several(h), -1).T.repeat(1, 2)
        + torch.quantile(halves(h), several(h), 2, keepdim=True)[1].flatten(1).repeat(1, 2)
        + torch.quantile(h, several(h)[1], dim=-1)[:, None]
    ),
    "nan where one unit is": lambda c, x, h: (
        x @ c.W + h * some(h).quantile(0.6, -1, True).isnan() + some(h).quantile(
            several(h), -1).T.nan_to_num(0.5).repeat(1, 2)
    ),
    "of the numbers alone": lambda c, x, h: (
        x @ c.W + torch.nanquantile(some(h), 0.3, -1, keepdim=True).nan_to_num(0.1) * h
        + some(h).nanquantile(several(h), 1).T.nan_to_num(0.2).repeat(1, 2)
        + halves(h).nanquantile(0.5, dim=2).repeat(1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "of all": (lambda c, z, h: h + z.quantile(0.5), "cannot be compiled: .*batch"),
    "of the batch": (lambda c, z, h: h + z.quantile(0.5, 0), "cannot be compiled: .*batch"),
    "not between": (
        lambda c, z, h: h + z.quantile(0.5, 1, True, interpolation="nearest"),
        "^quantile cannot be compiled: .*interpolation='linear', at .*test_quantiles"),
    "not between numbers": (
        lambda c, z, h: h + z.nanquantile(0.5, 1, True, interpolation="lower"),
        "^nanquantile cannot be compiled: .*interpolation='linear', at .*test_quantiles"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
