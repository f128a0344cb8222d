"""Spellings: windows side by side along the last axis, of which one number each is left."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.spelt.rows import as_torch, has_real_units


def _one(size: Any) -> int:
    """A size of one axis, which torch takes as a list, too."""
    return size if isinstance(size, int) else size[0]


def _fits(x: Tensor, size: int, padding: int, ceil_mode: bool) -> bool:
    few = x.dim() in (2, 3) and has_real_units(x, -1) and 0 < size <= MOST and not ceil_mode
    return few and 0 <= padding <= size // 2 and x.shape[-1] + 2 * padding >= size


def _avg_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    size, padded = _one(kernel_size), _one(padding)
    step = _one(stride) if stride else size
    if not _fits(input, size, padded, ceil_mode) or (padded and not count_include_pad):
        return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    edge = input.new_zeros(*input.shape[:-1], padded)
    wide = torch.cat([edge, input, edge], -1) if padded else input
    return wide.unfold(-1, size, step).mean(-1)


def _max_pool1d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    size, step = _one(kernel_size), _one(stride) if stride else _one(kernel_size)
    padded, usual = _one(padding), _one(dilation) == 1 and not return_indices
    if not usual or not _fits(input, size, padded, ceil_mode):
        return F.max_pool1d(
            input, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode,
            return_indices=return_indices)  # fmt: skip
    edge = input.new_full((*input.shape[:-1], padded), -math.inf)
    wide = torch.cat([edge, input, edge], -1) if padded else input
    return torch.max(wide.unfold(-1, size, step), -1)[0]


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_avg_pool1d, (F.avg_pool1d,)),
        (_max_pool1d, (F.max_pool1d, torch.max_pool1d)),
    )
    for original in originals
}
