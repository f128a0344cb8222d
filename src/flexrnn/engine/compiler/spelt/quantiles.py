"""Spellings: quantiles, which lie between two units in their order."""

import math
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.ranked import is_ranked, sort, standing
from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows, is_of_rows, where


def _quantile(
    input: Tensor,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """Nan where one unit is."""
    _check("quantile", input, interpolation)
    if dim is None or not _fits(input, q, dim):
        return torch.quantile(input, q, dim, keepdim, interpolation=interpolation)
    last, nan = input.shape[dim] - 1, input != input
    if isinstance(q, Tensor):
        found = _between(input, dim, q, last, keepdim)
    else:
        rank = q * last
        low = math.floor(rank)
        values, _ = standing(input, dim, [low, min(low + 1, last)])
        below, above = values.split(1, dim)
        found = below + (rank - low) * (above - below) if rank > low else below
        found = found if keepdim else found.squeeze(dim)
    return where(nan.any(dim, keepdim), math.nan, found)


def _nanquantile(
    input: Tensor,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """Of the numbers alone, which stand before nan."""
    _check("nanquantile", input, interpolation)
    if dim is None or not _fits(input, q, dim):
        return torch.nanquantile(input, q, dim, keepdim, interpolation=interpolation)
    there = (input == input).sum(dim, keepdim=True).to(input.dtype).movedim(dim, -1)
    return _between(input, dim, q, (there - 1).clamp(min=0), keepdim)


def _check(name: str, x: Tensor, interpolation: str) -> None:
    """Refuse here what versions of torch compose of unlike operations, none of which compiles."""
    if has_rows(x) and interpolation != "linear":
        raise refused(name, "of the batch's rows a program has it with interpolation='linear'")


def _fits(x: Tensor, q: Any, dim: int) -> bool:
    one = isinstance(q, (int, float)) and 0 <= q <= 1
    known = isinstance(q, Tensor) and q.dim() < 2 and q.dtype == x.dtype and not is_of_rows(q)
    return is_ranked(x, dim) and x.is_floating_point() and (one or known)


def _between(input: Tensor, dim: int, q: Any, last: Any, keepdim: bool) -> Tensor:
    """Where the place lies between two units, so far as it lies; several in front of the batch.

    Args:
        input: the rows.
        dim: along which units have an order.
        q: which part of them, or a tensor of such.
        last: the last place, or of each row its own, `(B, ..., 1)`.
        keepdim: whether the axis stays.
    """
    ordered = sort(input, dim)[0].movedim(dim, -1)
    numbers = torch.arange(ordered.shape[-1], dtype=input.dtype, device=input.device)

    def of(part: Any) -> Tensor:
        share = (1 - (part * last - numbers).abs()).clamp(min=0)
        found = where(share > 0, share * ordered, 0.0).sum(-1)
        return found.unsqueeze(dim) if keepdim else found

    several = isinstance(q, Tensor) and q.dim() > 0
    return torch.stack([*map(of, q.unbind())]) if several else of(q)


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_quantile, (torch.quantile, Tensor.quantile)),
        (_nanquantile, (torch.nanquantile, Tensor.nanquantile)),
    )
    for original in originals
}
