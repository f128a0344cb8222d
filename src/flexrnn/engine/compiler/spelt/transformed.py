"""Spellings: Fourier transforms of a row, which are products with a matrix that torch makes ahead.

It is what the transform makes of each unit by itself. Of a row of a few hundred units that takes no
longer than the product of a recurrence does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.columns import times
from flexrnn.engine.compiler.spelt.complexes import complex_of
from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows, is_behind_batch

_MOST = 1 << 18  # numbers of a matrix
_WHY = (
    f"of rows it goes along one axis behind the batch, by a matrix of {_MOST} numbers at the most"
)


def _one(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A transform along one axis."""

    def spelt(input: Tensor, n: int | None = None, dim: int = -1, norm: Any = None) -> Tensor:
        if not has_rows(input):
            return original(input, n, dim, norm)
        if type(dim) is not int or not is_behind_batch(input, dim):
            raise refused(original.__name__, _WHY)
        size = input.shape[dim]
        if size * max(size, n or 0) > _MOST:
            raise refused(original.__name__, _WHY)
        real = input if input.is_floating_point() else input.real if input.is_complex() else None
        if real is None:
            raise refused(original.__name__, "it is of whole numbers")
        units = torch.eye(size, dtype=real.dtype, device=input.device)
        made = original(units.to(input.dtype), n, -1, norm)
        if not input.is_complex():
            if not made.is_complex():
                return times(input, made, dim)
            return complex_of(times(input, made.real, dim), times(input, made.imag, dim))
        if made.is_complex():
            return times(input, made, dim)
        turned = original(units * 1j, n, -1, norm)
        return times(real, made, dim) + times(input.imag, turned, dim)

    return as_torch(original, spelt)


def _several(original: Callable[..., Tensor], first: Any, then: Any) -> Callable[..., Tensor]:
    """A transform along several axes: along one after another.

    Args:
        original: torch's.
        first, then: it along the last axis, and along the others; the one that makes numbers
            complex comes first, the one that makes them real comes last.
    """
    two = original.__name__.endswith("2")

    def spelt(
        input: Tensor, s: Any = None, dim: Any = (-2, -1) if two else None, norm: Any = None
    ) -> Tensor:
        if not has_rows(input):
            return original(input, s, dim, norm)
        if dim is None or isinstance(dim, int) or (s is not None and len(s) != len(dim)):
            raise refused(original.__name__, f"{_WHY}, or along several, one after another")
        sizes = [None if n == -1 else n for n in s or [None] * len(dim)]  # -1: as it is
        axes = [*zip(dim, sizes, strict=True)]
        rest = [(then, *axis) for axis in axes[:-1]]
        last = [(first, *axes[-1])]
        x = input
        for of, axis, n in rest + last if "ir" in original.__name__ else last + rest:
            x = of(x, n, axis, norm)
        return x

    return as_torch(original, spelt)


_FFT = torch.fft
_ONE = {of: _one(of) for of in (_FFT.fft, _FFT.ifft, _FFT.rfft, _FFT.irfft, _FFT.hfft, _FFT.ihfft)}
SPELT: dict[Any, Any] = _ONE | {
    several: _several(several, _ONE[first], _ONE[then])
    for several, first, then in (
        (_FFT.fft2, _FFT.fft, _FFT.fft),
        (_FFT.fftn, _FFT.fft, _FFT.fft),
        (_FFT.ifft2, _FFT.ifft, _FFT.ifft),
        (_FFT.ifftn, _FFT.ifft, _FFT.ifft),
        (_FFT.rfft2, _FFT.rfft, _FFT.fft),
        (_FFT.rfftn, _FFT.rfft, _FFT.fft),
        (_FFT.irfft2, _FFT.irfft, _FFT.ifft),
        (_FFT.irfftn, _FFT.irfft, _FFT.ifft),
    )
}
