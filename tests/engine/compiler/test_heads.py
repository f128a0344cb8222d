"""Products of several matrices of a row with the weights of heads, in whatever order of axes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState


class Heads(flexrnn.Cell):
    """A row has twelve numbers, which `function(cell, z)` views as matrices."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)

        self.inner = nn.Linear(input_size + hidden_size, 12, bias, device, dtype)
        self.A, self.B, self.C = drawn(2, 3, 2, 2), drawn(3, 2, 4), drawn(1, 2, 3, 4, 2)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(torch.cat([x, state.h], -1))
        y = self.function(self, z).reshape(x.shape[0], -1)
        weights = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)
        return HiddenState(torch.tanh(state.h + (y * weights).sum(-1, keepdim=True)))


PRODUCTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a row for each head": lambda c, z: z.view(-1, 2, 3, 1, 2) @ c.A,
    "rows for each head": lambda c, z: z.view(-1, 3, 2, 2) @ c.B,
    "rows for all heads": lambda c, z: z.view(-1, 6, 2)[:, None] @ c.B,
    "one row for all heads": lambda c, z: z[:, None, None, :2] @ c.B[None],
    "heads stretch": lambda c, z: z.view(-1, 1, 3, 2, 2) @ c.A,
    "heads stretch the other way": lambda c, z: z.view(-1, 2, 3, 2, 1).mT @ c.A[:, :1],
    "columns": lambda c, z: c.A @ z.view(-1, 2, 3, 2, 1),
    "columns, and heads stretch": lambda c, z: c.A @ z.view(-1, 2, 6)[:, :, None, :2, None],
    "several columns": lambda c, z: c.B.mT @ z.view(-1, 3, 2, 2),
    "several columns, one axis in front": lambda c, z: c.C @ z.view(-1, 1, 3, 2, 2),
    "votes of capsules": lambda c, z: torch.matmul(
        c.A[None], z.view(-1, 2, 6)[:, :, None, :2, None]
    ).squeeze(-1),
    "einsum": lambda c, z: torch.einsum("bgmk,gkn->bgmn", z.view(-1, 3, 2, 2), c.B),
    "einsum, in another order": lambda c, z: torch.einsum(
        "bmgk,gnk->bnmg", z.view(-1, 2, 3, 2), c.B.mT
    ),
    "einsum, two heads": lambda c, z: torch.einsum(
        "bghmk,ghkn->bghmn", z.view(-1, 2, 3, 1, 2).expand(-1, -1, -1, 2, -1), c.A
    ),
    "einsum, two sums": lambda c, z: torch.einsum(
        "bmgk,gkm->bg", z.view(-1, 2, 3, 2), c.B[..., :2]
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_reference_agrees(name: str, same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(Heads, 3, 4, dtype=torch.float64, function=PRODUCTS[name])
    for steps, batch in ((3, 2), (1, 1)):
        x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        same_by_program(layer, x)
