"""What a loop sums over rows and steps: exact however many there are, infinite where one is."""

import pytest
import torch
from torch import Tensor

import flexrnn


def step(x: Tensor, state: tuple[Tensor, Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative by the bias is that by the first state; the second makes it a loop."""
    h, c = state
    return x + bias, c * 0.5 + (h * 0.0).detach()


def gradient(engine: str, weights: Tensor) -> Tensor:
    """The sum of all weights of a unit."""
    first = torch.zeros(weights.shape[1:], dtype=weights.dtype)
    bias = torch.zeros(weights.shape[2], dtype=weights.dtype, requires_grad=True)
    with flexrnn.backend(engine):
        (h, _), _ = flexrnn.scan(step, (first, first), torch.zeros_like(weights), (bias,))
    return torch.autograd.grad(h, bias, weights)[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("T", "B"), [(900, 70), (9000, 1), (6000, 5)])
def test_a_long_sum_errs_no_more_than_a_short_one(T: int, B: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = 1 + torch.rand(T, B, 19)
        found = gradient("cpu", weights)
    finally:
        torch.set_num_threads(before)
    assert (found / weights.double().sum((0, 1)) - 1).abs().max() < 1.5e-7


@pytest.mark.parametrize(("T", "B"), [(1, 64), (2, 32), (64, 1), (64, 4), (200, 3)])
@pytest.mark.parametrize("place", [0, -1])
def test_an_infinite_sum(T: int, B: int, place: int) -> None:
    weights = torch.ones(T, B, 3)
    weights[place, -1, 0] = torch.inf
    assert gradient("cpu", weights).tolist() == [torch.inf, T * B, T * B]
