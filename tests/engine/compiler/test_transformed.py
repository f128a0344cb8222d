"""Fourier transforms of a row: products with what they make of each unit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fft
from torch.nn import functional as F  # noqa: N812

from .written import halves


def z(c: Any, x: Tensor, h: Tensor) -> Tensor:
    return torch.complex(h, x @ c.W)


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "circular convolution": lambda c, x, h: (
        fft.irfft(fft.rfft(h) * fft.rfft(c.b), n=4)
        + fft.irfft(fft.rfft(h) * fft.rfft(x @ c.W), n=4)
    ),
    "correlation": lambda c, x, h: fft.ifft(fft.fft(h).conj() * fft.fft(x @ c.W)).real,
    "there and back": lambda c, x, h: (
        fft.ifft(fft.fft(z(c, x, h), norm="ortho") * fft.fft(c.b), norm="ortho").real
    ),
    "of other sizes": lambda c, x, h: (
        fft.fft(h, n=6)[:, :4].imag + fft.fft(h, 3).real.sum(-1, keepdim=True) + x @ c.W
        + fft.irfft(z(c, x, h), n=5, norm="forward")[:, 1:] + fft.rfft(h @ c.wide)[:, 1:].imag
        + fft.irfft(h, n=4)
    ),
    "Hermitian": lambda c, x, h: fft.hfft(z(c, x, h), n=4) + F.pad(fft.ihfft(h), (0, 1)).imag,
    "of other axes": lambda c, x, h: (
        fft.fft(z(c, x, h).view(-1, 2, 2), dim=1).real.flatten(1)
        + fft.irfft(z(c, x, h).view(-1, 2, 2), n=2, dim=1).flatten(1)
        + fft.fft(input=h, dim=-1).real
    ),
    "of two axes": lambda c, x, h: (
        fft.rfft2(halves(h)).flatten(1).real + fft.fft2(halves(h)).flatten(1).imag
        + fft.irfft2(z(c, x, h).view(-1, 2, 2), s=(2, 2)).flatten(1)
        + fft.ifftn(z(c, x, h).view(-1, 2, 2), dim=(1, 2)).imag.flatten(1)
        + fft.rfftn(halves(h), s=(3, 4), dim=(2, 1))[:, :, 1].imag.sum(-1, keepdim=True)
        + fft.fftn(halves(h), s=(-1, 3), dim=(1, 2))[:, :, 2].imag.sum(-1, keepdim=True)
    ),
    "shifted": lambda c, x, h: (
        fft.fftshift(fft.fft(h), dim=-1).imag + fft.ifftshift(h, -1) + x @ c.W
    ),
    "of weights alone": lambda c, x, h: h * fft.fft(c.b).real + x @ c.W,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


ALONG = "of rows it goes along one axis behind the batch, by a matrix of 262144 numbers"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "along the batch": (lambda c, x, h: fft.fft(h, dim=0).real, ALONG),
    "along all axes": (lambda c, x, h: fft.fftn(h).real, ALONG),
    "of many places": (lambda c, x, h: fft.rfft(h, n=1 << 17).real[:, :5], ALONG),
    "of whole numbers": (lambda c, x, h: fft.rfft(h.long()).real[:, :1] * h, "of whole numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
