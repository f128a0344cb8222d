"""A cell whose step is written in a line, with weights of many shapes."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import cells


def but(names: Iterable[str], name: str, why: str) -> list[Any]:
    """Names of tests, one of which is skipped with the oldest torch that FlexRNN takes."""
    oldest = tuple(map(int, torch.__version__.split(".")[:2])) == (2, 11)
    mark = pytest.mark.skipif(oldest, reason=f"torch 2.11 {why}")
    return [pytest.param(each, marks=mark) if each == name else each for each in names]


class Cell(flexrnn.Cell):
    """`h ← function(cell, x, h)`, with weights of many shapes; I = 3, H = 4."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)

        self.W, self.U, self.V = drawn(3, 4), drawn(4, 4), drawn(4, 4)
        self.b, self.one, self.row, self.wide = drawn(4), drawn(), drawn(1, 4), drawn(4, 8)
        self.low, self.high, self.single = drawn(4, 2), drawn(2, 4), drawn(1)
        self.heads = drawn(2)
        self.register_buffer("places", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState(self.function(self, x, state.h) / 2)


def halves(h: Tensor) -> Tensor:
    return h.view(-1, 2, 2)
