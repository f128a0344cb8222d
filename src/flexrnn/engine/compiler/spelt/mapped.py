"""Spellings: linear maps of a row's places, the same for all rows.

Each is a product with a matrix, which torch makes ahead: what it makes of each place by itself.
Channels go through it one by one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt import columns
from flexrnn.engine.compiler.spelt.rows import as_torch, is_of_rows

_MATRIX = 1 << 17  # numbers of a map; of a larger one torch is quicker


def _mapped(name: str, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """What a map `(C, ...) -> (C, ...)`, channel by channel, makes of `(B, C, ...)`."""
    sizes = x.shape[2:]
    count = math.prod(sizes)
    made = of(torch.eye(count, dtype=x.dtype, device=x.device).view(count, 1, *sizes)).squeeze(1)
    if made.numel() > _MATRIX:
        raise refused(name, f"a program has it as a matrix, of {_MATRIX} numbers at the most")
    y = columns.times(x.flatten(2), made.flatten(1), -1)
    return y.unflatten(-1, made.shape[1:])


def _has_places(x: Tensor, axes: Sequence[int]) -> bool:
    """Whether these are `(B, C, ...)` of real numbers, with so many axes behind the channels."""
    return is_of_rows(x) and x.is_floating_point() and x.dim() - 2 in axes


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    def of(x: Tensor) -> Tensor:
        return F.interpolate(
            x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )

    return _mapped("interpolate", input, of) if _has_places(input, (1, 2, 3)) else of(input)


def _adaptive(original: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """`F.adaptive_avg_pool1d` or `F.adaptive_avg_pool2d`; one place is the mean of all."""

    def spelt(input: Tensor, output_size: Any) -> Tensor:
        sizes = [output_size] if isinstance(output_size, int) else [*output_size]
        if not _has_places(input, (axes,)):
            return original(input, output_size)
        if all(size == 1 for size in sizes):
            return input.mean((*range(2, input.dim()),), keepdim=True)
        return _mapped("adaptive_avg_pool", input, lambda x: original(x, output_size))

    return as_torch(original, spelt)


def _unfold(
    input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """`(B, C, H, W)` as columns of its windows, `(B, C · K, L)`."""

    def of(x: Tensor) -> Tensor:
        return F.unfold(x, kernel_size, dilation, padding, stride)

    if not _has_places(input, (2,)):
        return of(input)
    return _mapped("unfold", input, lambda x: of(x).unsqueeze(1)).flatten(1, 2)


def _fold(
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    """Columns of windows, `(B, C · K, L)`, added up where they lie, `(B, C, H, W)`."""

    def of(x: Tensor) -> Tensor:
        return F.fold(x, output_size, kernel_size, dilation, padding, stride)

    places = kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)
    if not _has_places(input, (1,)) or places < 1 or input.shape[1] % places:
        return of(input)
    return _mapped("fold", input.unflatten(1, (-1, places)), lambda x: of(x.squeeze(1)))


SPELT: dict[Any, Any] = {
    F.interpolate: as_torch(F.interpolate, _interpolate),
    F.unfold: as_torch(F.unfold, _unfold),
    F.fold: as_torch(F.fold, _fold),
    F.adaptive_avg_pool2d: _adaptive(F.adaptive_avg_pool2d, 2),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d), _adaptive(F.adaptive_avg_pool1d, 1)
    ),
}
