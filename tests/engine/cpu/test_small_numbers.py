"""Numbers below the smallest normal one: zero in a loop, as they were for everybody else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn

DTYPES = [torch.float32, torch.float64]


class Halving(flexrnn.Cell):
    """A state that gets half as large at every step."""

    State: Any = flexrnn.cells.RNNCell.State

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(input_size, hidden_size)
        self.weight = nn.Parameter(torch.zeros(hidden_size, input_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: Any) -> Any:
        return self.State(h=state.h * 0.5 + nn.functional.linear(x, self.weight))


def _run(engine: str, dtype: torch.dtype, batch: int) -> tuple[Tensor, Tensor]:
    """Outputs from the smallest normal number times eight on, and the derivatives by the input."""
    steps, tiny = 8, torch.finfo(dtype).tiny
    layer = flexrnn.FlexRNN(Halving, 1, 3, dtype=dtype, backend=engine)
    with torch.no_grad():
        layer.get_parameter("weight_l0").fill_(1.0)
    x = torch.zeros(steps, batch, 1, dtype=dtype, requires_grad=True)
    output, _ = layer(x, torch.full((1, batch, 3), 8 * tiny, dtype=dtype))
    last = torch.zeros_like(output)
    last[-1] = 8 * tiny
    (gradient,) = torch.autograd.grad(output, x, last)
    return output.detach()[:, 0, 0], gradient[:, 0, 0]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_zero_in_a_loop(dtype: torch.dtype, batch: int) -> None:
    tiny = torch.finfo(dtype).tiny
    (output, gradient), (exact, slope) = (_run(e, dtype, batch) for e in ("cpu", "reference"))
    normal = exact >= tiny
    assert 0 < normal.sum() < len(exact)
    assert exact.all()
    assert torch.equal(output[normal], exact[normal])
    assert not output[~normal].any()
    assert slope.all()
    # A derivative by the input is the sum of three by the state.
    assert torch.equal(gradient, torch.where(slope >= 3 * tiny, slope, 0))


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
