"""Spellings: whole numbers that come from reals by comparing, and those that are divided."""

import math
import struct
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt import columns
from flexrnn.engine.compiler.spelt.chosen import PAIRS
from flexrnn.engine.compiler.spelt.rows import (
    as_torch,
    has_real_units,
    in_place,
    is_behind_batch,
    is_of_rows,
)


def _floor_divide(input: Any, other: Any) -> Tensor:
    """Torch's has no derivative, and of whole numbers needs none."""
    real = any(isinstance(x, float) or _is_real(x) for x in (input, other))
    if real:
        return torch.floor_divide(input, other)
    return torch.div(input, other, rounding_mode="floor")


def _shifted(original: Any, by: Any) -> Any:
    """Whole numbers whose binary digits are moved: divided, or multiplied, by a power of two."""

    def spelt(input: Tensor, other: Any) -> Tensor:
        known = type(other) is int or (isinstance(other, Tensor) and not is_of_rows(other))
        if not known or not isinstance(input, Tensor) or input.dtype != torch.int64:
            return original(input, other)
        return by(input, 2**other)

    return as_torch(original, spelt)


def _last_digits(original: Any) -> Any:
    """`n & 1`, `n & 3` and so on: what is left of a division by a power of two."""

    def spelt(input: Tensor, other: Any) -> Tensor:
        digits = type(other) is int and other > 0 and not other & (other + 1)
        if not digits or not isinstance(input, Tensor) or input.dtype != torch.int64:
            return original(input, other)
        return torch.remainder(input, other + 1)

    return as_torch(original, spelt)


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _bucketize(
    input: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Tensor:
    """How many boundaries are not above a number, or below it; of no number all of them."""
    fits = isinstance(input, Tensor) and is_of_rows(input) and boundaries.dim() == 1
    if not fits or input.dtype != boundaries.dtype or is_of_rows(boundaries):
        return torch.bucketize(input, boundaries, out_int32=out_int32, right=right)
    return _counted(boundaries, input, right=right, out_int32=out_int32)


def _counted(boundaries: Tensor, input: Tensor, *, right: bool, out_int32: bool) -> Tensor:
    x = input.unsqueeze(-1)
    found = (~(boundaries > x if right else boundaries >= x)).sum(-1)
    return found.int() if out_int32 else found


def _searchsorted(
    sorted_sequence: Tensor,
    input: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
) -> Tensor:
    own = isinstance(input, Tensor) and sorted_sequence.dim() == input.dim() > 1 and all(
        has_real_units(x, -1) for x in (sorted_sequence, input))  # fmt: skip
    if own and side in (None, "left", "right") and not (right and side == "left"):
        alike = sorted_sequence.shape[1:-1] == input.shape[1:-1]
        few = sorted_sequence.shape[-1] * input.shape[-1] <= PAIRS
        if alike and few and sorted_sequence.dtype == input.dtype:
            right = right or side == "right"
            rows = sorted_sequence.unsqueeze(-2)
            return _counted(rows, input, right=right, out_int32=out_int32)
    if sorted_sequence.dim() != 1 or side not in (None, "right" if right else "left", "right"):
        return torch.searchsorted(
            sorted_sequence, input, out_int32=out_int32, right=right, side=side
        )
    right = right or side == "right"
    return _bucketize(input, sorted_sequence, out_int32=out_int32, right=right)


def _cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Of truth values and whole numbers, how many there are up to each place."""
    whole = input.dtype in (torch.bool, torch.int64) and is_behind_batch(input, dim)
    if not whole or dtype not in (None, torch.int64) or input.shape[dim] ** 2 > PAIRS:
        return columns.cumsum(input, dim, dtype=dtype)
    sizes = (input.shape[dim], input.shape[dim])
    before = torch.ones(sizes, dtype=torch.bool, device=input.device).tril()
    units = input.movedim(dim, -1).unsqueeze(-2)
    return torch.where(before, units, 0).sum(-1).movedim(-1, dim).contiguous()


def _cumulative_trapezoid(
    y: Tensor, x: Tensor | None = None, *, dx: Any = 1, dim: int = -1
) -> Tensor:
    """Torch calls `cumsum` where nobody respells it."""
    if not is_behind_batch(y, dim) or (x is not None and x.dim() not in (1, y.dim())):
        given = (y,) if x is None else (y, x)
        return torch.cumulative_trapezoid(*given, dim=dim, **({} if given[1:] else {"dx": dx}))
    count = y.shape[dim] - 1
    if x is not None:
        along = dim if x.dim() > 1 else 0
        dx = x.diff(dim=along)
        dx = dx if x.dim() > 1 else dx.view(-1, *(1 for _ in range(y.dim() - 1 - dim % y.dim())))
    both = y.narrow(dim, 0, count) + y.narrow(dim, 1, count)
    return columns.cumsum(both * dx / 2.0, dim)


def _mul(input: Any, other: Any) -> Tensor:
    """A truth value times a number is one of the default dtype, which may have fewer digits than
    the state: one of two numbers, both of which have those digits.
    """
    truth, number = (input, other) if isinstance(input, Tensor) else (other, input)
    dtype = torch.get_default_dtype()
    fits = type(number) is float and abs(number) <= torch.finfo(dtype).max
    if not isinstance(truth, Tensor) or truth.dtype != torch.bool or not fits:
        return torch.mul(input, other)
    if dtype == torch.float32:
        (number,) = struct.unpack("f", struct.pack("f", number))
    return torch.where(
        truth, *(torch.full((), n, dtype=dtype) for n in (number, math.copysign(0.0, number)))
    )


def _ldexp(input: Tensor, other: Tensor) -> Tensor:
    """Torch's power of two is of float32, and so is 0 in its derivative where it is below 1."""
    if not input.is_floating_point() or not isinstance(other, Tensor):
        return torch.ldexp(input, other)
    return input * torch.exp2(other.to(input.dtype))


def _bincount(input: Tensor, weights: None = None, minlength: int = 0) -> Tensor:
    """Of a buffer whose numbers are less than `minlength`; with others the call is an error."""
    known = type(minlength) is int and minlength > 0 and not is_of_rows(input)
    if not known or weights is not None or input.dim() != 1:
        return torch.bincount(input, weights, minlength)
    counts = torch.zeros(minlength, dtype=torch.int64, device=input.device)
    return counts.index_add(0, input.long(), torch.ones_like(input, dtype=torch.int64))


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_bucketize, (torch.bucketize,)),
        (_searchsorted, (torch.searchsorted,)),
        (_cumsum, (torch.cumsum, Tensor.cumsum)),
        (in_place(_cumsum), (Tensor.cumsum_,)),
        (_cumulative_trapezoid, (torch.cumulative_trapezoid,)),
        (_mul, (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply)),
        (_mul, (Tensor.__mul__, Tensor.__rmul__)),
        (_bincount, (torch.bincount, Tensor.bincount)),
        (_ldexp, (torch.ldexp, Tensor.ldexp)),
        (_floor_divide, (torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__)),
    )
    for original in originals
} | {Tensor.__rfloordiv__: lambda x, other: _floor_divide(other, x)}
SPELT |= {
    **{
        f: _shifted(f, _floor_divide)
        for f in (Tensor.__rshift__, torch.bitwise_right_shift, Tensor.bitwise_right_shift)
    },
    **{
        f: _shifted(f, torch.mul)
        for f in (Tensor.__lshift__, torch.bitwise_left_shift, Tensor.bitwise_left_shift)
    },
    **{f: _last_digits(f) for f in (Tensor.__and__, torch.bitwise_and, Tensor.bitwise_and)},
}
