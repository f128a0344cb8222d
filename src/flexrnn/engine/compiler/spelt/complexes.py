"""Spellings: complex numbers made of real ones, for which torch asks for the batch size."""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows


def complex_of(real: Tensor, imag: Tensor) -> Tensor:
    """`torch.complex`."""
    fits = real.dtype == imag.dtype and real.dtype in _REAL
    if not fits or not (has_rows(real) or has_rows(imag)):
        return torch.complex(real, imag)
    return real + 1j * imag


def _polar(abs: Tensor, angle: Tensor) -> Tensor:
    """Torch's derivative by what is negative has the wrong sign, and this one's has not."""
    fits = abs.dtype == angle.dtype and abs.dtype in _REAL
    if not fits or not (has_rows(abs) or has_rows(angle)):
        return torch.polar(abs, angle)
    return abs * angle.cos() + 1j * (abs * angle.sin())


def _isfinite(input: Tensor) -> Tensor:
    """Torch's writes the truth of one part into that of the other."""
    if not input.is_complex() or not has_rows(input):
        return torch.isfinite(input)
    return input.real.isfinite() & input.imag.isfinite()


_REAL = (torch.float32, torch.float64)  # torch says what is wrong with others
SPELT: dict[Any, Any] = {
    torch.complex: complex_of,
    torch.polar: _polar,
    **dict.fromkeys((torch.isfinite, Tensor.isfinite), as_torch(torch.isfinite, _isfinite)),
}
