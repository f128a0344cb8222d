"""Cells whose state is a matrix, the columns of which they sum up."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState

N, S = 24, 50  # rows of a matrix, and columns; both many, and no whole vectors


class MatrixCell(flexrnn.Cell):
    """`h ← tanh(function(cell, z, h))` of `(B, N, S)`."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        for name, size in {"rows": (N, 1), "columns": (S,), "all": (N, S)}.items():
            weight = torch.randn(size, device=device, dtype=dtype) / 3
            self.register_parameter(name, nn.Parameter(weight))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(x).view(-1, N, S)
        return HiddenState(torch.tanh(self.function(self, z, state.h.view(-1, N, S))).flatten(1))


class DeltaState(NamedTuple):
    h: Tensor
    m: Tensor


class DeltaCell(flexrnn.Cell):
    """m' = m + k (v - k m) and h' = tanh k m', with `ROWS` rows of m (Schlag et al. 2021)."""

    State = DeltaState
    ROWS = 128  # so many that even 5 columns are not summed up place by place

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        self.both = nn.Linear(input_size + hidden_size, self.ROWS + hidden_size, bias, **options)

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"h": self.hidden_size, "m": self.ROWS * self.hidden_size}

    def step(self, x: Tensor, state: DeltaState) -> DeltaState:
        k, v = self.both(torch.cat([x, state.h], 1)).split([self.ROWS, self.hidden_size], 1)
        k, m = torch.tanh(k / 11).unsqueeze(2), state.m.view(-1, self.ROWS, self.hidden_size)
        m = m + k * (v - (k * m).sum(1)).unsqueeze(1)
        return DeltaState(torch.tanh((k * m).sum(1)), m.flatten(1))
