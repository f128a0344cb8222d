"""Spellings: windows of one axis or two, of which one number each is left."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.spelt.padded import pad
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
    wide = pad(input, (padded, padded)) if padded else input
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
    wide = pad(input, (padded, padded), value=-math.inf) if padded else input
    return torch.max(wide.unfold(-1, size, step), -1)[0]


def _windows(x: Tensor, size: list[int], step: list[int]) -> Tensor | None:
    """The windows of `(B, C, H, W)`, each along the last axis; None where there are none."""
    sizes = x.shape[-2:]
    fits = all(0 < k <= n and s > 0 for k, n, s in zip(size, sizes, step, strict=True))
    if not fits or math.prod(size) > MOST:
        return None
    return x.unfold(-2, size[0], step[0]).unfold(-2, size[1], step[1]).flatten(-2)


def _two(size: Any) -> list[int]:
    sizes = [size] if isinstance(size, int) else [*size]
    return sizes * 2 if len(sizes) == 1 else sizes


def _of_two_axes(
    input: Tensor, kernel_size: Any, stride: Any, padding: Any, end: float
) -> Tensor | None:
    size, (top, left) = _two(kernel_size), _two(padding)
    step = _two(stride) if stride else size
    few = 0 <= 2 * top <= size[0] and 0 <= 2 * left <= size[1]
    if not few or input.dim() != 4 or not has_real_units(input, -1):
        return None
    wide = pad(input, (left, left, top, top), value=end) if top or left else input
    return _windows(wide, size, step)


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    usual = not ceil_mode and (count_include_pad or not any(_two(padding)))
    found = _of_two_axes(input, kernel_size, stride, padding, 0.0) if usual else None
    if found is None:
        return F.avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    return found.sum(-1) / divisor_override if divisor_override else found.mean(-1)


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    usual = _two(dilation) == [1, 1] and not return_indices and not ceil_mode
    found = _of_two_axes(input, kernel_size, stride, padding, -math.inf) if usual else None
    if found is None:
        return F.max_pool2d(
            input, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode,
            return_indices=return_indices)  # fmt: skip
    return torch.max(found, -1)[0]


def _adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Of parts that may overlap by a place, the largest of each."""
    (count, *_), size = _two(output_size), input.shape[-1]
    fits = input.dim() in (2, 3) and has_real_units(input, -1) and not return_indices
    if not fits or not 0 < count <= MOST:
        return F.adaptive_max_pool1d(input, output_size, return_indices)
    ends = [(k * size // count, -(-(k + 1) * size // count)) for k in range(count)]
    return torch.cat([torch.max(input[..., a:b], -1, True)[0] for a, b in ends], -1)


def _adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """One place of an image, the largest of all; of more torch's."""
    fits = input.dim() == 4 and has_real_units(input, -1) and not return_indices
    if not fits or _two(output_size) != [1, 1]:
        return F.adaptive_max_pool2d(input, output_size, return_indices)
    return torch.max(input.flatten(2), -1, True)[0].unsqueeze(-1)


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_avg_pool1d, (F.avg_pool1d,)),
        (_max_pool1d, (F.max_pool1d, torch.max_pool1d)),
        (_avg_pool2d, (F.avg_pool2d,)),
        (_max_pool2d, (F.max_pool2d, torch.max_pool2d)),
        (_adaptive_max_pool1d, (F.adaptive_max_pool1d,)),
        (_adaptive_max_pool2d, (F.adaptive_max_pool2d,)),
    )
    for original in originals
}
