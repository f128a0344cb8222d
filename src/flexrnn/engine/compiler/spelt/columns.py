"""Spellings: units by number, and running sums.

A program cuts and joins, and so it takes units whose numbers Python knows, if they make few runs of
neighbours. Others are a product with ones and zeros, as running sums are: both engines are good at
it, its derivative is one more, and torch makes the matrix ahead, out of the numbers. What is picked
by a product is exact; but where one unit is inf or nan, the whole row becomes nan.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.spelt import picked
from flexrnn.engine.compiler.spelt.rows import (
    WHOLE,
    has_numeric_units,
    is_behind_batch,
    is_of_rows,
    where,
)

PAIRS = 1 << 14  # comparisons of a row of numbers with all units


def cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.cumsum`: times a triangle of ones; of rows of units, one row after another."""
    if not has_numeric_units(input, dim) or dtype not in (None, input.dtype):
        return torch.cumsum(input, dim, dtype=dtype)
    if dim % input.dim() < input.dim() - 1 and 0 < input.shape[dim] <= MOST:
        return torch.stack([*accumulate(input.unbind(dim))], dim)
    sizes = (input.shape[dim], input.shape[dim])
    return times(input, torch.ones(sizes, dtype=input.dtype, device=input.device).triu(), dim)


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """`torch.index_select`."""
    if not has_numeric_units(input, dim) or not index.numel():
        return torch.index_select(input, dim, index)
    return times(input, _one_hot(input, dim).index_select(1, index), dim)


def along(x: Tensor, index: Any, *, masks: bool = False) -> tuple[Tensor, int, Any] | None:
    """`x` less what an index leaves out of other axes, the axis that is picked from, and by what.

    Several axes with numbers, one after another, have become one.

    Args:
        x: the tensor.
        index: of it; one axis has a list of numbers, or a tensor of them, or neighbours have.
        masks: whether truth values may stand for numbers, and what is returned is written to.
    """
    parts = tuple(map(_plain, index if isinstance(index, tuple) else (index,)))
    places = [k for k, part in enumerate(parts) if _are_numbers(part, masks=masks)]
    if not places or not _are_in_place(parts, places):
        return None
    before, behind = parts[: places[0]], parts[places[-1] + 1 :]
    rest = x[(*before, *(slice(None) for _ in places), *behind)]
    if any(part is Ellipsis for part in before):
        dim = rest.dim() - len(places) - sum(type(part) is not int for part in behind)
    else:
        dim = sum(type(part) is not int for part in before)
    if len(places) == 1:
        return rest, dim, parts[places[0]]
    joined = rest.flatten(dim, dim + len(places) - 1)
    sizes, listed = rest.shape[dim : dim + len(places)], parts[places[0] : places[-1] + 1]
    numbers = _of_joined(sizes, listed, x.device)
    writable = rest.is_contiguous() or not masks  # else torch has joined a copy
    known = numbers is not None and writable and is_behind_batch(rest, dim)
    return (joined, dim, numbers) if known else None


def _of_joined(sizes: Sequence[int], numbers: Sequence[Any], device: torch.device) -> Any:
    """Of several axes that have become one, the numbers of what has one number in each."""
    pairs = [*zip(numbers, sizes, strict=True)]
    if not any(isinstance(part, Tensor) for part in numbers):
        listed = [numbers_of(part, size) for part, size in pairs]
        if len({len(part) for part in listed}) > 1:
            return None
        return [reduce(lambda made, k: made * k[1] + k[0], zip(place, sizes, strict=True), 0)
                for place in zip(*listed, strict=True)]  # fmt: skip
    made: Any = 0
    for part, size in pairs:
        part = part if isinstance(part, Tensor) else torch.tensor(part, device=device)
        there = (part >= -size) & (part < size)  # elsewhere torch is to say that it is not
        made = torch.where(there, made * size + part % size, math.prod(sizes))
    return made


def get_item(x: Tensor, index: Any) -> Any:
    """`x[..., numbers]`, where one axis has a list of units, or a tensor of their numbers."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts):
        found = picked.pick(x, index)
        return picked.refuse() if found is None else found
    parted = along(x, index)
    if parted is None:
        return x[index]
    rest, dim, numbers = parted
    if not isinstance(numbers, Tensor):
        spans = _spans(numbers, rest.shape[dim]) if is_behind_batch(rest, dim) else []
        if 0 < len(spans) <= MOST:
            return torch.cat([rest.narrow(dim, k, count) for k, count in spans], dim)
    if not has_numeric_units(rest, dim):
        return _of_whole(rest, dim, numbers) if _is_known(rest, dim, numbers) else x[index]
    matrix = _one_hot(rest, dim)[:, numbers]  # (N,) and the shape of the numbers
    return times(rest, matrix.flatten(1), dim).unflatten(dim, matrix.shape[1:])


def _is_known(x: Tensor, dim: int, numbers: Any) -> bool:
    """Whether these are few numbers of truth values, or whole numbers, the same for all rows."""
    listed = isinstance(numbers, Tensor) and numbers.dim() == 1 and not is_of_rows(numbers)
    whole = x.dtype in (torch.bool, *WHOLE) and is_behind_batch(x, dim)
    return listed and whole and len(numbers) * x.shape[dim] <= PAIRS


def _of_whole(x: Tensor, dim: int, numbers: Tensor) -> Tensor:
    here = torch.eye(x.shape[dim], dtype=torch.bool, device=numbers.device)[numbers]
    return taken(x, dim, here)


def taken(x: Tensor, dim: int, here: Tensor) -> Tensor:
    """Of truth values or whole numbers, those that stand `here`, one at the most of all units."""
    row = x.movedim(dim, -1).unsqueeze(-2)
    found = (here & row).any(-1) if x.dtype == torch.bool else where(here, row, 0).sum(-1)
    return found.to(x.dtype).movedim(-1, dim).contiguous()


def _plain(part: Any) -> Any:
    """What NumPy or Python's iteration knows as numbers, as a list of them."""
    if isinstance(part, (list, tuple, range)):
        return [*map(_plain, part)]
    return part if isinstance(part, Tensor) or not hasattr(part, "tolist") else part.tolist()


def _are_numbers(part: Any, *, masks: bool) -> bool:
    if isinstance(part, Tensor):
        if masks and part.dtype == torch.bool:
            return part.dim() == 1
        return part.dtype in WHOLE and part.dim() > 0 and part.numel() > 0
    return isinstance(part, list) and {type(number) for number in part} in ({int}, {bool})


def _are_in_place(parts: tuple[Any, ...], places: Sequence[int]) -> bool:
    """Whether what is picked stands where its axes were: numbers of other axes stand beside it."""
    single = [k for k, part in enumerate(parts) if type(part) is int]
    others = [part for k, part in enumerate(parts) if k not in (*places, *single)]
    picked = sorted((*places, *single))
    whole = all(p is None or p is Ellipsis or isinstance(p, slice) for p in others)
    if not whole or picked != [*range(picked[0], picked[-1] + 1)]:
        return False
    listed = [parts[k] for k in places]
    masks = any(isinstance(p, Tensor) and (p.dtype == torch.bool or is_of_rows(p)) for p in listed)
    return len(places) == 1 or not (single or masks or any(_has_truths(p) for p in listed))


def _has_truths(part: Any) -> bool:
    return isinstance(part, list) and type(part[0]) is bool


def numbers_of(listed: Sequence[int], size: int) -> list[int]:
    """Numbers of units, of so many, that a list of numbers or of truth values stands for.

    Nothing where they are no such numbers: torch says what is wrong.
    """
    if type(listed[0]) is bool:
        listed = [k for k, chosen in enumerate(listed) if chosen] if len(listed) == size else []
    fit = all(-size <= number < size for number in listed)
    return [number % size for number in listed] if fit else []


def _spans(numbers: Sequence[int], size: int) -> list[tuple[int, int]]:
    """First number and length of every run of numbers that follow one another, of so many units."""
    spans: list[tuple[int, int]] = []
    for number in numbers_of(numbers, size):
        if spans and number == sum(spans[-1]):
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((number, 1))
    return spans


def _one_hot(x: Tensor, dim: int) -> Tensor:
    return torch.eye(x.shape[dim], dtype=x.dtype, device=x.device)


def times(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Along one axis of `(B, ...)`, which is not the batch, units `(N,)` times `(N, M)`.

    It lies as torch's would, for whoever views it.
    """
    x = x.movedim(dim, -1)
    between = x.shape[1:-1]
    if not between:
        return x @ matrix
    return by_heads(x.flatten(1, -2), matrix).unflatten(1, between).movedim(-1, dim).contiguous()


def by_heads(x: Tensor, weight: Tensor) -> Tensor:
    """`(B, G, K)` times one `(K, N)` for all heads; torch makes rows and heads one axis."""
    return torch.bmm(x.transpose(0, 1), weight.expand(x.shape[1], -1, -1)).transpose(0, 1)
