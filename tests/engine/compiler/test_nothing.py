"""Parts of an axis that have no place, as a buffer of one place has them behind its first."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import flexrnn

from .written import Cell

SLID: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a buffer of one place": lambda c, x, h: torch.cat(
        [h[:, None][:, 1:] * 2, (x @ c.W)[:, None]], 1
    ).sum(1),
    "units past the last": lambda c, x, h: torch.cat([x @ c.W, h[:, 4:].tanh(), h[:, 2:2]], 1),
    "padded": lambda c, x, h: F.pad(h[:, :1][:, 1:], (3, 1), value=0.5) * h + x @ c.W,
    "of an axis between": lambda c, x, h: torch.cat(
        [h.view(-1, 1, 2, 2)[:, 1:].mT, (x @ c.W).view(-1, 1, 2, 2)], 1
    ).flatten(1),
    "in front of the batch": lambda c, x, h: torch.cat([h[None][1:], (x @ c.W)[None]]).sum(0),
    "of a parameter": lambda c, x, h: torch.cat([c.U[:, 4:], c.V[:, :4]], 1)[0] * h + x @ c.W,
    "a sum over places that are none": lambda c, x, h: h[:, None][:, 1:].sum(1) * h + x @ c.W,
    "every second": lambda c, x, h: torch.cat([h[:, :1][:, 1::2], (x @ c.W)], 1),
}


@pytest.mark.parametrize("name", SLID)
def test_a_part_without_a_place_is_nothing(name: str, judge: Callable[..., None]) -> None:
    judge(SLID[name])


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize(
    "function",
    [
        lambda c, x, h: h * (h[:, 4:] > 0).any(-1, True) + x @ c.W,
        lambda c, x, h: h[:, 4:] @ c.U[4:] + x @ c.W,
        lambda c, x, h: h[:, 4:].norm(dim=1, keepdim=True) + x @ c.W,
        lambda c, x, h: h[:, None][:, 1:].prod(1) + x @ c.W,
    ],
)
def test_what_counts_places_that_are_none_is_right_by_whatever_engine(function: Any) -> None:
    layer = flexrnn.FlexRNN(Cell, 3, 4, function=function)
    x = torch.randn(2, 3, 3)
    output, _ = layer(x)
    with flexrnn.backend("reference"):
        torch.testing.assert_close(output, layer(x)[0])
