"""Spellings: units by number, and running sums.

A program cuts and joins, and so it takes units whose numbers Python knows, if they are few or side
by side. Others are a product with ones and zeros, as running sums are: both engines are good at it,
its derivative is one more, and torch makes the matrix ahead, out of the numbers. What is picked by
a product is exact; but where one unit is inf or nan, the whole row becomes nan.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.refusal import CannotCompileError, frames, users_line


def as_torch(original: Callable[..., Any], spelling: Callable[..., Any]) -> Callable[..., Any]:
    """A spelling for calls that it has the arguments of; others are torch's own."""
    signature = inspect.signature(spelling)

    def spelt(*args: Any, **kwargs: Any) -> Any:
        if "axis" in kwargs:  # torch takes it for `dim`
            kwargs["dim"] = kwargs.pop("axis")
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        return spelling(*args, **kwargs)

    return spelt


def cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.cumsum`: times a triangle of ones."""
    if not _is_behind_batch(input, dim) or dtype not in (None, input.dtype):
        return torch.cumsum(input, dim, dtype=dtype)
    return _times(input, torch.ones_like(_one_hot(input, dim)).triu(), dim)


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """`torch.index_select`."""
    if not _is_behind_batch(input, dim):
        return torch.index_select(input, dim, index)
    return _times(input, _one_hot(input, dim).index_select(1, index), dim)


def flip(input: Tensor, *axes: Any, dims: Sequence[int] = ()) -> Tensor:
    """`torch.flip`."""
    dims = [*(dims or (axes[0] if axes and isinstance(axes[0], (list, tuple)) else axes))]
    if len({dim % input.dim() for dim in dims}) < len(dims):
        return torch.flip(input, dims)  # which says what is wrong
    many = [dim for dim in dims if _is_behind_batch(input, dim) and input.shape[dim] > MOST]
    turned = torch.flip(input, [dim for dim in dims if dim not in many])
    for dim in many:
        turned = _times(turned, _one_hot(turned, dim).flip(1), dim)
    return turned


def fliplr(input: Tensor) -> Tensor:
    """`torch.fliplr`."""
    return flip(input, 1)


def get_item(x: Tensor, index: Any) -> Tensor:
    """`x[..., numbers]`, where one axis has a list of units, or a tensor of their numbers."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(map(_is_mask, parts)):
        raise CannotCompileError(
            "indexing by a mask cannot be compiled: how many it picks is not known before the step "
            f"runs; torch.where, or a product with the mask, would do, {users_line(frames())}"
        )
    places = [k for k, part in enumerate(parts) if _are_numbers(part)]
    if len(places) != 1 or not _is_in_place(parts, places[0]):
        return x[index]
    place, numbers = places[0], parts[places[0]]
    before, behind = parts[:place], parts[place + 1 :]
    rest = x[(*before, slice(None), *behind)]
    if any(part is Ellipsis for part in before):
        dim = rest.dim() - 1 - sum(type(part) is not int for part in behind)
    else:
        dim = sum(type(part) is not int for part in before)
    if not _is_behind_batch(rest, dim):
        return x[index]
    if not isinstance(numbers, Tensor):
        if not all(-rest.shape[dim] <= k < rest.shape[dim] for k in numbers):
            return x[index]  # torch says what is wrong
        spans = _spans([k % rest.shape[dim] for k in numbers])
        if len(spans) <= MOST:
            return torch.cat([rest.narrow(dim, k, count) for k, count in spans], dim)
    matrix = _one_hot(rest, dim)[:, numbers]  # (N,) and the shape of the numbers
    return _times(rest, matrix.flatten(1), dim).unflatten(dim, matrix.shape[1:])


def _is_mask(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dtype == torch.bool
    return isinstance(part, (list, tuple)) and len(part) > 0 and type(part[0]) is bool


def _are_numbers(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.dtype in (torch.int64, torch.int32) and part.dim() > 0
    listed = isinstance(part, (list, tuple, range)) and len(part) > 0
    return listed and all(type(number) is int for number in part)


def _is_in_place(parts: tuple[Any, ...], place: int) -> bool:
    """Whether what is picked stands where its axis was: numbers of other axes stand beside it."""
    single = [k for k, part in enumerate(parts) if type(part) is int]
    others = [part for k, part in enumerate(parts) if k not in (place, *single)]
    picked = sorted((place, *single))
    whole = all(p is None or p is Ellipsis or isinstance(p, slice) for p in others)
    return whole and picked == [*range(picked[0], picked[-1] + 1)]


def _spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First number and length of every run of numbers that follow one another."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number == sum(spans[-1]):
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((number, 1))
    return spans


def _is_behind_batch(x: Tensor, dim: int) -> bool:
    """Whether this is an axis of rows of real numbers."""
    rows = x.dim() > 1 and isinstance(x.shape[0], torch.SymInt) and x.is_floating_point()
    return rows and -x.dim() <= dim < x.dim() and dim % x.dim() != 0


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


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (cumsum, (torch.cumsum, Tensor.cumsum)),
        (index_select, (torch.index_select, Tensor.index_select)),
        (flip, (torch.flip, Tensor.flip)),
        (fliplr, (torch.fliplr, Tensor.fliplr)),
    )
    for original in originals
} | {Tensor.__getitem__: get_item}
