"""Spellings: units whose numbers a row finds out itself, as `argmax` does, and what they pick.

A program has no whole numbers, but reals that are whole say the same. Which unit is the largest is
found by comparing all of them with the largest; what a number picks, by comparing the number with
those of all units.
"""

import math
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt import columns
from flexrnn.engine.compiler.spelt.rows import (
    WHOLE,
    along_rows_behind,
    as_torch,
    has_real_units,
    has_rows,
    in_place,
    is_behind_batch,
    is_of_rows,
    where,
)

_TABLE = 1 << 16  # numbers of a table, through all of which a row goes
PAIRS = columns.PAIRS
_NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "amax": -math.inf, "amin": math.inf}
_FEW = 8  # units that are compared one by one
_WIDE = 4096  # units among which a number is looked for: each takes a comparison


def has_units(x: Tensor, dim: int) -> bool:
    """Whether this is an axis behind the batch, of so few units that their numbers are exact."""
    return has_real_units(x, dim) and x.shape[dim] <= 2 / torch.finfo(x.dtype).eps


def unit_numbers(x: Tensor, dim: int) -> Tensor:
    """The numbers of an axis, so that they lie along it."""
    numbers = torch.arange(x.shape[dim], dtype=x.dtype, device=x.device)
    return numbers.view(-1, *(1 for _ in range(x.dim() - 1 - dim % x.dim())))


def first(x: Tensor, dim: int, free: Tensor | None = None) -> Tensor:
    """The number of the largest unit of those that are free: the first of several, or of nan."""
    if free is not None:
        x = where(free, x, -math.inf)
    found = (x == x.amax(dim, keepdim=True)) | (x != x)
    found = found if free is None else found & free
    nowhere = float(x.shape[dim]) if x.is_floating_point() else x.shape[dim]
    return where(found, unit_numbers(x, dim), nowhere).amin(dim, keepdim=True)


def _of_largest(x: Tensor, dim: int, sign: int) -> Tensor:
    """The number of the largest unit, or the smallest, as a real number where units are."""
    return first(x * sign if x.is_floating_point() else x if sign > 0 else -x, dim)


def _has_largest(x: Tensor, dim: int) -> bool:
    return has_units(x, dim) or (x.dtype in WHOLE and is_behind_batch(x, dim))


def _are_in_a_row(x: Tensor, dim: int) -> bool:
    """Whether these are the last units of several rows each has, and not few."""
    return dim % x.dim() == x.dim() - 1 > 1 and x.shape[dim] > _FEW


def _extreme(original: Callable[..., Tensor], sign: int) -> Callable[..., Tensor]:
    """`torch.argmax` or `torch.argmin`."""

    def spelt(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if dim is None or not _has_largest(input, dim):
            return original(input, dim, keepdim)
        number = _of_largest(input, dim, sign).long()
        return number if keepdim else number.squeeze(dim)

    return along_rows_behind(spelt)


def _extremes(original: Callable[..., Any], kind: Any, sign: int) -> Callable[..., Any]:
    """`torch.max` or `torch.min` along an axis: values and numbers."""

    def spelt(input: Tensor, dim: Any, keepdim: bool = False) -> Any:
        if isinstance(dim, Tensor):  # of two tensors
            return original(input, dim)
        if not _has_largest(input, dim):
            return original(input, dim, keepdim)
        number = _of_largest(input, dim, sign)
        if not input.is_floating_point():
            value = (input.amax if sign > 0 else input.amin)(dim, True)
        elif _are_in_a_row(input, dim):  # unit by unit each would be a number of its own
            picked = unit_numbers(input, dim) == number
            value = where(picked, input, 0.0).sum(dim, keepdim=True)
        else:
            value = original(input, dim, True)[0]
        number = number.long()
        found = (value, number) if keepdim else (value.squeeze(dim), number.squeeze(dim))
        return kind(found)

    return along_rows_behind(spelt)


def is_number(x: Any) -> bool:
    """Whether every row has numbers of its own."""
    return isinstance(x, Tensor) and is_of_rows(x) and x.dtype in WHOLE


def are(numbers: Tensor, size: int) -> Tensor:
    """Behind each number, of every unit whether it is that one."""
    return numbers.unsqueeze(-1) == torch.arange(size, device=numbers.device)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if not is_number(tensor) or tensor.dtype != torch.int64 or num_classes == 0:
        return F.one_hot(tensor, num_classes)
    if num_classes < 0:
        raise refused(
            "one_hot",
            "how many classes there are is not known before the step runs; num_classes says it",
        )
    return are(tensor, num_classes).long()


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The row of each number; nan where there is no such row."""
    usual = max_norm is None and not scale_grad_by_freq and not sparse
    if not (usual and is_number(input) and _is_table(weight)):
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    size = weight.shape[0]
    if padding_idx is not None:  # that row learns nothing
        rows = torch.arange(size, device=weight.device).unsqueeze(-1)
        weight = torch.where(rows == padding_idx % size, weight.detach(), weight)
    here = are(input, size)
    # Not by a product, to which a single inf or nan in the table would be one in every row.
    return or_nan(here, where(here.unsqueeze(-1), weight, 0.0).sum(-2))


def _is_table(weight: Tensor) -> bool:
    """Whether this is `(N, E)`, the same for all rows, and not too long to be looked through."""
    whole = weight.dim() == 2 and weight.is_floating_point() and not is_of_rows(weight)
    return whole and weight.shape[0] <= _WIDE and weight.numel() <= _TABLE


def or_nan(here: Tensor, picked: Tensor) -> Tensor:
    """What has been picked; nan for a number that no unit has, where torch raises an error."""
    there = here.any(-1).view(*here.shape[:-1], *(1 for _ in range(picked.dim() - here.dim() + 1)))
    return where(there, picked, math.nan)


def get_item(x: Tensor, index: Any) -> Tensor:
    """`x[numbers]`, where every row has its number of a parameter's row; or as units are picked."""
    if isinstance(index, tuple):
        found = _of_axes(x, index)
        return columns.get_item(x, index) if found is None else found
    if not is_number(index) or is_of_rows(x):
        return columns.get_item(x, index)
    if x.dim() > 2 and _is_table(x.flatten(1)):
        return get_item(x.flatten(1), index).unflatten(-1, x.shape[1:])
    if _is_table(x):
        return _embedding(from_the_end(index, x.shape[0]), x)
    if x.dim() != 1 or len(x) > _WIDE:
        return columns.get_item(x, index)
    if x.is_floating_point():
        return _embedding(from_the_end(index, len(x)), x.unsqueeze(-1)).squeeze(-1)
    here = are(from_the_end(index, len(x)), len(x))
    return (here & x).any(-1) if x.dtype == torch.bool else torch.where(here, x, 0).sum(-1)


def _of_axes(x: Tensor, index: tuple[Any, ...]) -> Tensor | None:
    """`x[m, n]` and `x[m, n, ...]`, where every row has numbers of its own for the first axes."""
    single = [*takewhile(lambda part: type(part) is int, index)]
    numbers = [*takewhile(is_number, index[len(single) :])]
    behind = index[len(single) + len(numbers) :]
    plain = all(isinstance(part, (slice, int)) or part is Ellipsis for part in behind)
    if has_rows(x) or not numbers or len({n.dim() for n in numbers}) > 1 or not plain:
        return None
    if len(single) + len(numbers) > x.dim() or not x.is_floating_point():
        return None
    x = x[(*single, *(slice(None) for _ in numbers), *behind)]
    if len(numbers) == 1:
        return get_item(x, *numbers)
    table = x.flatten(0, len(numbers) - 1)
    if not _is_table(table.view(len(table), -1)):
        return None
    here: Any = None  # of every place in the table whether it is the one
    for size, n in zip(x.shape, torch.broadcast_tensors(*numbers), strict=False):
        one = are(from_the_end(n, size), size)
        here = one if here is None else (here.unsqueeze(-1) & one.unsqueeze(-2)).flatten(-2)
    picked = or_nan(here, where(here.unsqueeze(-1), table.view(len(table), -1), 0.0).sum(-2))
    return picked.unflatten(-1, table.shape[1:]) if table.dim() > 1 else picked.squeeze(-1)


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    if dim in (0, -input.dim()) and is_number(index) and index.dim() == 1 and _is_table(input):
        return _embedding(index, input)
    return columns.index_select(input, dim, index)


def from_the_end(numbers: Tensor, size: int) -> Tensor:
    """Numbers of which those below 0 count from the end."""
    return torch.where(numbers < 0, numbers + size, numbers)


def _fits(x: Tensor, dim: int, index: Any) -> bool:
    """Whether numbers of rows pick units of them along an axis, with nothing left out beside it."""
    if not (is_number(index) and is_behind_batch(x, dim) and x.dim() == index.dim() > 1):
        return False
    dim %= x.dim()
    beside = zip(x.shape[1:], index.shape[1:], strict=True)
    fits = all(a == b for k, (a, b) in enumerate(beside, 1) if k != dim)
    return dim > 0 and fits and x.shape[dim] * index.shape[dim] <= PAIRS


def _gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    if not _fits(input, dim, index):
        return torch.gather(input, dim, index, sparse_grad=sparse_grad)
    here = are(index.movedim(dim, -1), input.shape[dim])
    if not input.is_floating_point():
        return columns.taken(input, dim, here)
    rows = input.movedim(dim, -1).unsqueeze(-2)
    return or_nan(here, where(here, rows, 0.0).sum(-1)).movedim(-1, dim).contiguous()


def _stretched(input: Tensor, indices: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Both with the larger of their sizes along all axes but one, where one has a single place."""
    if not (is_number(indices) and is_of_rows(input) and indices.dim() == input.dim()):
        return input, indices
    dim %= input.dim()
    behind = [*zip(input.shape[1:], indices.shape[1:], strict=True)]
    if any(1 not in (a, b) and a != b for k, (a, b) in enumerate(behind, 1) if k != dim):
        return input, indices
    sizes = [-1, *(max(pair) if 0 not in pair else 0 for pair in behind)]
    sizes[dim] = -1
    return input.expand(sizes), indices.expand(sizes)


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if is_of_rows(input) and indices.dim() == input.dim() and indices.shape[0] == 1:
        indices = indices.expand(input.shape[0], *indices.shape[1:])
    x, places = (input, indices) if dim is None else _stretched(input, indices, dim)
    if dim is None or not _fits(x, dim, places):
        return torch.take_along_dim(input, indices, dim)
    return _gather(x, dim, from_the_end(places, x.shape[dim]))


def _scatter(input: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
    """Of several values for one unit the last stays, as with torch on a CPU.

    It alone has a derivative, which torch hands to all of them.
    """
    alike = not isinstance(src, Tensor) or (src.shape == index.shape and src.dtype == input.dtype)
    if not (alike and _fits(input, dim, index) and index.shape[dim] <= MOST):
        return torch.scatter(input, dim, index, src)
    here, put = are(index.movedim(dim, -1), input.shape[dim]), input.movedim(dim, -1)
    if not isinstance(src, Tensor):
        src = torch.full((), src, dtype=input.dtype).expand(index.shape)
    for k, value in enumerate(src.movedim(dim, -1).split(1, -1)):
        put = torch.where(here.select(-2, k), value, put)
    return put.movedim(-1, dim).contiguous()


def _scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    alike = src.shape == index.shape and src.dtype == input.dtype and input.is_floating_point()
    if not (alike and _fits(input, dim, index)):
        return torch.scatter_add(input, dim, index, src)
    here = are(index.movedim(dim, -1), input.shape[dim])
    return input + where(here, src.movedim(dim, -1).unsqueeze(-1), 0.0).sum(-2).movedim(-1, dim)


def _scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    if reduce == "sum" and include_self:
        return _scatter_add(input, dim, index, src)
    alike = src.shape == index.shape and src.dtype == input.dtype and input.is_floating_point()
    if not (alike and _fits(input, dim, index) and reduce in _NEUTRAL):
        return torch.scatter_reduce(input, dim, index, src, reduce, include_self=include_self)
    here = are(index.movedim(dim, -1), input.shape[dim])  # (..., M, N)
    given = where(here, src.movedim(dim, -1).unsqueeze(-1), _NEUTRAL[reduce])
    own, some = input.movedim(dim, -1).unsqueeze(-2), here.any(-2, keepdim=True)
    if include_self:
        given = torch.cat([own, given], -2)
    if reduce == "mean":
        count = here.sum(-2).to(input.dtype) + include_self
        found = given.sum(-2) / count.clamp(min=1)
    else:
        found = given.sum(-2) if reduce == "sum" else getattr(given, reduce)(-2)
    found = found if include_self else torch.where(some, found.unsqueeze(-2), own).squeeze(-2)
    return found.movedim(-1, dim).contiguous()


def _count(input: Tensor, dim: Any = None) -> Tensor:
    return (input != 0).sum(dim)


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_extreme(torch.argmax, 1), (torch.argmax, Tensor.argmax)),
        (_extreme(torch.argmin, -1), (torch.argmin, Tensor.argmin)),
        (_extremes(torch.max, torch.return_types.max, 1), (torch.max, Tensor.max)),
        (_extremes(torch.min, torch.return_types.min, -1), (torch.min, Tensor.min)),
        (_one_hot, (F.one_hot,)),
        (_embedding, (F.embedding,)),
        (_index_select, (torch.index_select, Tensor.index_select)),
        (_gather, (torch.gather, Tensor.gather)),
        (_take_along_dim, (torch.take_along_dim, Tensor.take_along_dim)),
        (_scatter, (torch.scatter, Tensor.scatter)),
        (in_place(_scatter), (Tensor.scatter_,)),
        (_scatter_add, (torch.scatter_add, Tensor.scatter_add)),
        (in_place(_scatter_add), (Tensor.scatter_add_,)),
        (_scatter_reduce, (torch.scatter_reduce, Tensor.scatter_reduce)),
        (in_place(_scatter_reduce), (Tensor.scatter_reduce_,)),
        (_count, (torch.count_nonzero, Tensor.count_nonzero)),
    )
    for original in originals
}
