"""Spellings: what runs along units: differences, logarithms of sums, products of truth values."""

import math
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt.columns import PAIRS
from flexrnn.engine.compiler.spelt.rows import as_torch, has_real_units, is_behind_batch, where


def _gradient(input: Tensor, *, spacing: Any = 1, dim: Any = None, edge_order: int = 1) -> Any:
    """Torch's asks all axes how long they are, the batch, too."""
    dims = [dim] if isinstance(dim, int) else [*dim] if isinstance(dim, (tuple, list)) else []
    fits = (
        dims
        and len({d % input.dim() for d in dims}) == len(dims)
        and all(has_real_units(input, d) and input.shape[d] > edge_order for d in dims)
    )
    if not fits or not isinstance(spacing, (int, float)) or edge_order not in (1, 2):
        options = {} if dim is None else {"dim": dim}
        return _GRADIENT(input, spacing=spacing, edge_order=edge_order, **options)
    return tuple(_slopes(input, d, edge_order) / spacing for d in dims)


def _slopes(x: Tensor, dim: int, order: int) -> Tensor:
    last = x.shape[dim] - 1

    def at(k: int) -> Tensor:
        return x.narrow(dim, k, 1)

    if order == 1:
        left, right = at(1) - at(0), at(last) - at(last - 1)
    else:
        left = -1.5 * at(0) + 2 * at(1) - 0.5 * at(2)
        right = 1.5 * at(last) - 2 * at(last - 1) + 0.5 * at(last - 2)
    if last < 2:
        return torch.cat([left, right], dim)
    between = (x.narrow(dim, 2, last - 1) - x.narrow(dim, 0, last - 1)) / 2
    return torch.cat([left, between, right], dim)


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """Of each unit the logarithm of a sum of those up to it."""
    if not has_real_units(input, dim) or input.shape[dim] ** 2 > PAIRS:
        return torch.logcumsumexp(input, dim)
    found = where(_before(input, dim), input.movedim(dim, -1).unsqueeze(-2), -math.inf)
    return found.logsumexp(-1).movedim(-1, dim).contiguous()


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Of truth values, whether all up to a place are true."""
    truths = input.dtype == torch.bool and is_behind_batch(input, dim)
    if not truths or input.shape[dim] ** 2 > PAIRS:
        return torch.cumprod(input, dim, dtype=dtype)
    units = input.movedim(dim, -1).unsqueeze(-2)
    found = (units | ~_before(input, dim)).all(-1).movedim(-1, dim).contiguous()
    return found.to(dtype or torch.int64)


def _before(x: Tensor, dim: int) -> Tensor:
    """Of every place which are up to it."""
    sizes = (x.shape[dim], x.shape[dim])
    return torch.ones(sizes, dtype=torch.bool, device=x.device).tril()


_GRADIENT: Any = torch.gradient  # which takes more than torch declares
SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_gradient, (torch.gradient,)),
        (_logcumsumexp, (torch.logcumsumexp, Tensor.logcumsumexp)),
        (_cumprod, (torch.cumprod, Tensor.cumprod)),
    )
    for original in originals
}
