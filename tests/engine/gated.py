"""Cells that have a submodule, or a parameter, called `gates`: the name of a class attribute."""

from typing import Any, cast

import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState


class GatedCell(flexrnn.Cell):
    """h' = z h + (1 - z) tanh n, where `gates` makes z and n."""

    State = HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        made = nn.Linear(input_size + hidden_size, 2 * hidden_size, bias, **options)
        self.gates = self.kept(made)  # pyright: ignore[reportAttributeAccessIssue]

    def kept(self, made: nn.Linear) -> Any:
        return made

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        both, gates = torch.cat([x, state.h], -1), cast(Any, self.gates)
        made = gates(both) if isinstance(gates, nn.Module) else both @ gates.T
        z, n = made.chunk(2, -1)
        z = z.sigmoid()
        return HiddenState(z * state.h + (1 - z) * n.tanh())


class GatesCell(GatedCell):
    """`gates` is a parameter."""

    def kept(self, made: nn.Linear) -> Any:
        return made.weight
