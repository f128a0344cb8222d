"""Numbers below the smallest normal one: zero in a loop, as they were for everybody else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn

DTYPES = [torch.float32, torch.float64]


def _run(engine: str, dtype: torch.dtype, batch: int) -> tuple[Tensor, Tensor]:
    """A state that halves, from eight times the smallest normal number, and so its derivative."""
    first = 8 * torch.finfo(dtype).tiny
    x = torch.zeros(8, batch, 3, dtype=dtype, requires_grad=True)
    with flexrnn.backend(engine):
        states, final = flexrnn.scan(
            lambda x, h: h * 0.5 + x, torch.full((batch, 3), first, dtype=dtype), x
        )
    (gradient,) = torch.autograd.grad(final, x, torch.full_like(final, first))
    return states.detach(), gradient


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_zero_in_a_loop(dtype: torch.dtype, batch: int) -> None:
    tiny = torch.finfo(dtype).tiny
    (output, gradient), (exact, slope) = (_run(e, dtype, batch) for e in ("cpu", "reference"))
    normal = exact >= tiny
    assert normal.any()
    assert not normal.all()
    assert exact.all()
    assert torch.equal(output[normal], exact[normal])
    assert not output[~normal].any()
    assert slope.all()
    assert torch.equal(gradient, torch.where(slope >= tiny, slope, 0))


@pytest.fixture
def flushing() -> Iterator[Callable[[bool], bool]]:
    """Switch torch's own flushing; off again behind the test."""
    yield torch.set_flush_denormal
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("mode", [False, True])
def test_torch_finds_its_threads_as_they_were(
    threads: Callable[[int], Any], flushing: Callable[[bool], bool], mode: bool
) -> None:
    if not flushing(mode):
        pytest.skip("this processor cannot flush")
    small = torch.full((1 << 20,), 1e-39)  # for all threads of torch's
    with threads(2):
        before = small * 0.5
        for batch in (1, 64):
            x = torch.randn(5, batch, 16, requires_grad=True)
            flexrnn.LSTM(16, 128, backend="cpu")(x)[0].sum().backward()
            with torch.no_grad():
                flexrnn.LSTM(16, 128, backend="cpu")(x)
        after = small * 0.5
    assert torch.equal(before, after)
    assert bool(before[0]) is not mode  # this thread's own
