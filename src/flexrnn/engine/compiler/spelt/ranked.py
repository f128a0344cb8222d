"""Spellings: units in their order.

Of few the largest are looked for one after another. Else, where a unit stands in the order of its
row is how many come before it, which compares all with all; and what stands at a place is picked
by comparing places.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt.chosen import PAIRS, first, has_units, unit_numbers
from flexrnn.engine.compiler.spelt.rows import (
    WHOLE,
    along_rows_behind,
    as_torch,
    is_behind_batch,
    where,
)

_ONE_BY_ONE = 8  # of the largest units that are looked for one after another


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """`torch.sort`."""
    if not is_ranked(input, dim):
        return torch.sort(input, dim, descending)
    return torch.return_types.sort(
        standing(input, dim, range(input.shape[dim]), descending=descending)
    )


def _argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    if not is_ranked(input, dim):
        return torch.argsort(input, dim, descending)
    return sort(input, dim, descending)[1]


def _topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    fits = has_units(input, dim) or is_ranked(input, dim)
    if not (fits and 0 < k <= input.shape[dim]):
        return torch.topk(input, k, dim, largest, sorted)
    if k <= _ONE_BY_ONE and input.is_floating_point():
        return torch.return_types.topk(_one_by_one(input, k, dim, largest=largest))
    if not is_ranked(input, dim):
        return torch.topk(input, k, dim, largest, sorted)
    return torch.return_types.topk(standing(input, dim, range(k), descending=largest))


def _kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if not (is_ranked(input, dim) and 0 < k <= input.shape[dim]):
        return torch.kthvalue(input, k, dim, keepdim)
    value, number = standing(input, dim, [k - 1])
    found = (value, number) if keepdim else (value.squeeze(dim), number.squeeze(dim))
    return torch.return_types.kthvalue(found)


def _median(input: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower one of two; nan where one unit is."""
    if not is_ranked(input, dim):
        return torch.median(input, dim, keepdim)
    value, number = standing(input, dim, [(input.shape[dim] - 1) // 2])
    if input.is_floating_point():
        nan = input != input
        some = nan.any(dim, keepdim=True)
        value = where(some, math.nan, value)
        number = torch.where(some, first(nan.to(input.dtype), dim).long(), number)
    found = (value, number) if keepdim else (value.squeeze(dim), number.squeeze(dim))
    return torch.return_types.median(found)


def is_ranked(x: Tensor, dim: int) -> bool:
    """Whether units along an axis behind the batch are few enough to be compared with all."""
    whole = x.dtype in WHOLE and is_behind_batch(x, dim)
    return (whole or has_units(x, dim)) and x.shape[dim] ** 2 <= PAIRS


def _one_by_one(input: Tensor, k: int, dim: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The largest units, or the smallest, and their numbers: each is the first of those left."""
    order, numbers = input if largest else -input, unit_numbers(input, dim)
    free = torch.ones_like(input, dtype=torch.bool)
    values, places = list[Tensor](), list[Tensor]()
    for _ in range(k):
        best = free
        if not largest:  # nan is larger than all numbers
            some = free & (input == input)
            best = some | (free & ~some.any(dim, keepdim=True))
        place = first(order, dim, best)
        here = numbers == place
        values.append(where(here, input, 0.0).sum(dim, keepdim=True))
        places.append(place)
        free = free & ~here
    return torch.cat(values, dim), torch.cat(places, dim).long()


def standing(
    input: Tensor, dim: int, places: Sequence[int], *, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """What stands at some places of the order, and the numbers of these units.

    Of several alike the first comes first; nan is larger than all numbers.
    """
    row, numbers = input.movedim(dim, -1), torch.arange(input.shape[dim], device=input.device)
    this, other = row.unsqueeze(-1), row.unsqueeze(-2)
    before, behind = _exceeds(this, other), _exceeds(other, this)
    if descending:
        before, behind = behind, before
    rank = (before | (~behind & (numbers < numbers.unsqueeze(-1)))).sum(-1)
    here = rank.unsqueeze(-2) == torch.tensor([*places], device=input.device).unsqueeze(-1)
    values = where(here, other, 0).sum(-1).to(input.dtype)
    found = where(here, numbers.to(input.dtype), 0).sum(-1).long()
    return values.movedim(-1, dim).contiguous(), found.movedim(-1, dim).contiguous()


def _exceeds(a: Tensor, b: Tensor) -> Tensor:
    return (a > b) | ((a != a) & (b == b)) if a.is_floating_point() else a > b


SPELT: dict[Any, Any] = {
    original: as_torch(original, along_rows_behind(spelling))
    for spelling, originals in (
        (sort, (torch.sort, Tensor.sort)),
        (_argsort, (torch.argsort, Tensor.argsort)),
        (_topk, (torch.topk, Tensor.topk)),
        (_kthvalue, (torch.kthvalue, Tensor.kthvalue)),
        (_median, (torch.median, Tensor.median)),
    )
    for original in originals
}
