"""Of each row the unit whose number is its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn

from .written import Cell, halves


def slots(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """A memory of two slots, one of which is read, and then written."""
    memory, rows = halves(torch.tanh(x @ c.W + h @ c.U)) * 1, torch.arange(h.shape[0])
    place = memory.sum(-1).argmax(-1)
    memory[rows, place] = memory[rows, place] * 0.5 + x[:, :2]
    return memory.flatten(1)


def cleared(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = torch.tanh(x @ c.W + h @ c.U) * 1
    z[torch.arange(h.size(0), device=h.device), h.argmax(1)] = 0.0
    z[torch.arange(0, h.size(0)), z.argmin(1) - 4] += x[:, 0]
    return z


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "read": lambda c, x, h: (
        x @ c.W + h[torch.arange(h.shape[0]), h.argmax(-1)].unsqueeze(1) * torch.tanh(h)),
    "read by one number": lambda c, x, h: x @ c.W + h[torch.arange(h.shape[0]), 2].unsqueeze(1),
    "slots": slots,
    "cleared": cleared,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def test_a_number_that_no_unit_has_picks_nan() -> None:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return h[torch.arange(h.shape[0]), h.argmax(-1) + 9].unsqueeze(1) + x @ c.W

    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=step)
    with flexrnn.backend("cpu"):
        assert layer(torch.randn(1, 2, 3, dtype=torch.float64))[0].isnan().all()
