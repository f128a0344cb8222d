"""Spellings: what picks units by number, or adds them up, as products with ones and zeros.

A program knows no unit by a number that only a tensor has. A product it knows: both engines are
good at it, its derivative is one more, and torch makes the matrix ahead out of the numbers. What is
picked is exact; but where one unit is inf or nan, the whole row becomes nan.
"""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import CannotCompileError, frames, users_line

_FEW = 16  # so many units are turned round one by one


def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.cumsum`: times a triangle of ones."""
    if not _is_behind_batch(x, dim) or dtype not in (None, x.dtype):
        return torch.cumsum(x, dim, dtype=dtype)
    return _times(x, torch.ones_like(_one_hot(x, dim)).triu(), dim)


def index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """`torch.index_select`."""
    if not _is_behind_batch(x, dim):
        return torch.index_select(x, dim, index)
    return _times(x, _one_hot(x, dim).index_select(1, index), dim)


def flip(x: Tensor, *dims: Any) -> Tensor:
    """`torch.flip`; of many units at once."""
    for dim in dims[0] if isinstance(dims[0], (list, tuple)) else dims:
        if _is_behind_batch(x, dim) and x.shape[dim] > _FEW:
            x = _times(x, _one_hot(x, dim).flip(1), dim)
        else:
            x = torch.flip(x, (dim,))
    return x


def get_item(x: Tensor, index: Any) -> Tensor:
    """`x[..., numbers]`, where one axis has a list of units, or a tensor of their numbers."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts[1:]):
        raise CannotCompileError(
            "a part cannot be compiled: how many units a mask picks is not known before the step "
            f"runs; torch.where, or a product with the mask, would do, {users_line(frames())}"
        )
    numbers = [k for k, part in enumerate(parts) if _are_numbers(part)]
    others = [part for part in parts if not _are_numbers(part)]
    if len(numbers) != 1 or not all(p is None or isinstance(p, _WHOLE) for p in others):
        return x[index]
    (place,) = numbers
    rest = x[(*parts[:place], slice(None), *parts[place + 1 :])]
    dim = place - len(parts) if Ellipsis in others and Ellipsis not in parts[place:] else place
    if not _is_behind_batch(rest, dim):
        return x[index]
    matrix = _one_hot(rest, dim)[:, parts[place]]  # (N,) and the shape of the numbers
    return _times(rest, matrix.flatten(1), dim).unflatten(dim, matrix.shape[1:])


_WHOLE = (slice, type(Ellipsis))


def _are_numbers(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dtype in (torch.int64, torch.int32) and part.dim() > 0
    listed = isinstance(part, (list, range)) and len(part) > 0
    return listed and all(type(number) is int for number in part)


def _is_behind_batch(x: Tensor, dim: int) -> bool:
    """Whether this is an axis of rows of real numbers."""
    rows = x.dim() > 1 and isinstance(x.shape[0], torch.SymInt) and x.is_floating_point()
    return rows and dim % x.dim() != 0


def _one_hot(x: Tensor, dim: int) -> Tensor:
    return torch.eye(x.shape[dim], dtype=x.dtype, device=x.device)


def _times(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Along one axis of `(B, ...)`, which is not the batch, units `(N,)` times `(N, M)`."""
    x = x.movedim(dim, -1)
    between = x.shape[1:-1]
    if not between:
        return x @ matrix
    heads = x.flatten(1, -2).transpose(0, 1)  # (G, B, N)
    y = torch.bmm(heads, matrix.expand(heads.shape[0], -1, -1)).transpose(0, 1)
    return y.unflatten(1, between).movedim(-1, dim)
