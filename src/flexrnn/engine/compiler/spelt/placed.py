# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# A check that torch makes ahead, as it has no result, has no public name.
"""Spellings: writes to units by number, and what is added to them.

What is left of them is cut and joined, where Python knows the numbers and they make few runs of
neighbours. Else a product with ones and zeros brings every value to its unit, and a choice puts it
there. Which value a unit gets, torch finds ahead, out of the numbers or the mask.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.spelt import columns, picked
from flexrnn.engine.compiler.spelt.rows import (
    as_torch,
    has_numeric_units,
    in_place,
    is_behind_batch,
    is_of_rows,
    where,
)


def set_item(tensor: Tensor, index: Any, value: Any) -> None:
    """`tensor[..., numbers] = value`, of units by number, or by a mask of them or of rows."""
    if not isinstance(value, Tensor):  # a number would come as a tensor from nowhere
        value = torch.full((), value, dtype=tensor.dtype)
    if value.dtype == tensor.dtype and _is_a_choice(tensor, index, value):
        tensor.copy_(torch.where(picked.wide(index, tensor), value, tensor))
        return
    along = columns.along(tensor, index, masks=True)
    if along is None or not _is_known(along[2]) or value.dtype != tensor.dtype:
        tensor[index] = value
        return
    units, dim, numbers = along
    if not is_behind_batch(units, dim) or not _put(units, dim, numbers, value):
        tensor[index] = value


def _is_a_choice(tensor: Tensor, index: Any, value: Tensor) -> bool:
    """Whether this is a mask of the first axes, and what is written the same for all it picks."""
    if not picked.covers(index, tensor):
        return False
    return value.dim() <= tensor.dim() - index.dim() or value.shape == (1,)


def _is_known(numbers: Any) -> bool:
    """Whether they are the same in every row, along one axis."""
    return not isinstance(numbers, Tensor) or (numbers.dim() == 1 and not is_of_rows(numbers))


def _put(units: Tensor, dim: int, numbers: Any, value: Tensor) -> bool:
    """Write to a view of units, if it can be said how."""
    size, count = units.shape[dim], None
    if not isinstance(numbers, Tensor):
        numbers = columns.numbers_of(numbers, size)
        count = len(numbers)
    elif numbers.dtype != torch.bool:
        count = len(numbers)
    elif len(numbers) != size:
        return False
    behind = units.dim() - dim
    wide = value.shape[-behind] if value.dim() >= behind else 1
    if count == 0 or (wide != 1 and count not in (None, wide)):
        return False  # torch says what is wrong
    sizes = (*units.shape[:dim], count if wide == 1 and count else wide, *units.shape[dim + 1 :])
    runs = [] if isinstance(numbers, Tensor) else _runs(numbers, size)
    if 0 < len(runs) <= MOST:
        sources = (value.expand(sizes), units)
        parts = [sources[old].narrow(dim, first, length) for old, first, length in runs]
        units.copy_(torch.cat(parts, dim))
        return True
    writers = _writers(numbers, units, dim)
    if wide == 1:  # the same for all of them
        units.copy_(torch.where(_wide(writers >= 0, units, dim), value, units))
        return True
    if not has_numeric_units(units, dim):
        return False
    if count is None:
        torch._assert_async((writers >= 0).sum() == wide, "a mask and values of other numbers")
    units.copy_(_chosen(units, dim, writers, value.expand(sizes)))
    return True


def _runs(numbers: Sequence[int], size: int) -> list[tuple[bool, int, int]]:
    """Runs of neighbours: whether they are of the old, the first of them, and how many."""
    last = {number: k for k, number in enumerate(numbers)}
    sources = [(False, last[k]) if k in last else (True, k) for k in range(size)]
    runs = groupby(enumerate(sources), lambda pair: (pair[1][0], pair[1][1] - pair[0]))
    found = [[source for _, source in run] for _, run in runs]
    return [(*run[0], len(run)) for run in found]


def _writers(numbers: Any, units: Tensor, dim: int) -> Tensor:
    """Of every unit the number of the value that is written to it, of several the last; or -1."""
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(numbers, device=units.device)
    if numbers.dtype == torch.bool:
        return torch.where(numbers, numbers.cumsum(0) - 1, -1)
    nobody = torch.full((units.shape[dim],), -1, device=units.device)
    return nobody.index_put((numbers,), torch.arange(len(numbers), device=units.device))


def _wide(here: Tensor, units: Tensor, dim: int) -> Tensor:
    """What is known of an axis, so that it lies along that."""
    return here.view(-1, *(1 for _ in range(units.dim() - 1 - dim % units.dim())))


def _chosen(units: Tensor, dim: int, writers: Tensor, new: Tensor) -> Tensor:
    values = torch.arange(new.shape[dim], device=units.device)
    matrix = (values.unsqueeze(-1) == writers).to(units.dtype)
    return torch.where(_wide(writers >= 0, units, dim), columns.times(new, matrix, dim), units)


def _fits(input: Tensor, dim: int, index: Tensor) -> bool:
    """Whether these are numbers of units, the same in every row."""
    known = index.dim() == 1 and len(index) > 0 and not is_of_rows(index)
    return known and index.dtype == torch.int64 and has_numeric_units(input, dim)


def _index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    if not _fits(input, dim, index) or (isinstance(value, Tensor) and value.dim()):
        return torch.index_fill(input, dim, index, value)
    here = torch.zeros(input.shape[dim], dtype=torch.bool, device=input.device)
    return where(_wide(here.index_fill(0, index, True), input, dim), value, input)


def _is_source(input: Tensor, dim: int, index: Tensor, source: Tensor) -> bool:
    """Whether every one of the numbers has a value of its own, in every row."""
    sizes = [*input.shape]
    sizes[dim] = index.shape[0] if index.dim() else 1
    return _fits(input, dim, index) and source.dtype == input.dtype and source.shape == (*sizes,)


def _index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if not _is_source(input, dim, index, source):
        return torch.index_copy(input, dim, index, source)
    return _chosen(input, dim, _writers(index, input, dim), source)


def _index_add(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1
) -> Tensor:
    if not _is_source(input, dim, index, source):
        return torch.index_add(input, dim, index, source, alpha=alpha)
    units = torch.eye(input.shape[dim], dtype=input.dtype, device=input.device)
    return input + alpha * columns.times(source, units.index_select(0, index), dim)


SPELT: dict[Any, Any] = {}
for _name, _spelling in (
    ("index_fill", _index_fill),
    ("index_copy", _index_copy),
    ("index_add", _index_add),
):
    for _original in (getattr(torch, _name), getattr(Tensor, _name)):
        SPELT[_original] = as_torch(_original, _spelling)
    SPELT[getattr(Tensor, f"{_name}_")] = in_place(SPELT[getattr(torch, _name)])
