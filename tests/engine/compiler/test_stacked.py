"""Weights of several gates in one parameter `(G, K, N)`, and what stands in front of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn import cells


class Gates(flexrnn.Cell):
    """An LSTM whose gates are `function(cell, x, h)`, `(4, B, H)` or four of `(B, H)`."""

    State = cells.LSTMState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)

        self.W, self.U = drawn(4, input_size, hidden_size), drawn(4, hidden_size, hidden_size)
        self.b = drawn(4, 1, hidden_size)

    def step(self, x: Tensor, state: cells.LSTMState) -> cells.LSTMState:
        i, f, g, o = self.function(self, x, state.h)
        c = f.sigmoid() * state.c + i.sigmoid() * g.tanh()
        return cells.LSTMState(o.sigmoid() * c.tanh(), c)


def filled(c: Any, x: Tensor, h: Tensor) -> Any:
    out = torch.empty(x.shape[0], 4, h.shape[-1], dtype=x.dtype)
    for k in range(4):
        out[:, k] = x @ c.W[k] + h @ c.U[k]
    return out.unbind(1)


def filled_by_turns(c: Any, x: Tensor, h: Tensor) -> Any:
    out = torch.empty((x.size(0), 8), dtype=x.dtype, device=x.device)
    out[:, 0::2] = x @ c.W[0]
    out[:, 1::2].copy_(h @ c.U[1])
    return *out.chunk(2, 1), h, out.view(-1, 4, 2).sum(-1)


WRITTEN: dict[str, Callable[..., Any]] = {
    "@": lambda c, x, h: x @ c.W + h @ c.U + c.b,
    "torch.matmul": lambda c, x, h: torch.matmul(x, c.W) + h.matmul(c.U) + c.b,
    "an axis of size one": lambda c, x, h: x.unsqueeze(0) @ c.W + h[None] @ c.U,
    "gates behind the batch": lambda c, x, h: (
        (x[:, None, None, :] @ c.W + h[:, None, None, :] @ c.U + c.b).squeeze(2).unbind(1)
    ),
    "one weight for all": lambda c, x, h: (
        h.expand(4, -1, -1) @ c.U[:1] + torch.stack([x, x, -x, x]) @ c.W[:1]
    ),
    "einsum": lambda c, x, h: torch.einsum("bi,gij->gbj", x, c.W) + h @ c.U,
    "bmm of what is expanded": lambda c, x, h: (
        torch.bmm(x.expand(4, *x.shape), c.W) + torch.bmm(h[None].expand(4, -1, -1), c.U)
    ),
    "baddbmm of it": lambda c, x, h: torch.baddbmm(c.b, h.expand(size=(4, *h.shape)), c.U),
    "bmm of what is repeated": lambda c, x, h: (
        torch.bmm(x.unsqueeze(0).repeat(4, 1, 1), c.W) + torch.bmm(h.repeat((4, 1, 1)), c.U)
    ),
    "a stack": lambda c, x, h: torch.stack([x, 2 * x, -x, x]) @ c.W + h.expand(4, -1, -1),
    "stretched units": lambda c, x, h: h[:, :1].expand(4, -1, 4) + x @ c.W,
    "chunks": lambda c, x, h: [gate.squeeze(0) for gate in (x @ c.W + c.b).chunk(4)],
    "parts": lambda c, x, h: [
        gate for part in torch.split(x @ c.W + h @ c.U, [1, 3]) for gate in part.tanh().unbind()
    ],
    "unlike chunks": lambda c, x, h: [
        gate for part in (x @ c.W + h @ c.U).split(3) for gate in part
    ],
    "a slice": lambda c, x, h: [*(x @ c.W)[:2], *(h @ c.U + c.b)[2:].sigmoid()],
    "a sum over gates": lambda c, x, h: (x @ c.W).softmax(0) + (h @ c.U).sum(0),
    "a norm of all": lambda c, x, h: F.layer_norm(x @ c.W + h @ c.U, (4,), c.b[0, 0]),
    "by numbers": lambda c, x, h: [(x @ c.W + h @ c.U + c.b)[k] for k in range(-4, 0)],
    "one column each": lambda c, x, h: x @ c.W[:, :, :1] + h @ c.U,
    "a low rank": lambda c, x, h: [
        torch.linalg.multi_dot([h, c.U[0, :, :2], c.U[k, :2]]) + x @ c.W[k] for k in range(4)
    ],
    "shares of each gate": lambda c, x, h: x @ c.W[0] + (h @ c.U[0] - x @ c.W[1]) * c.b,
    "shares, and what is stretched": lambda c, x, h: (
        torch.lerp(h, x @ c.W[0], c.b.sigmoid()) + c.b[:, :, :1] * c.b * h - c.b[:, 0, None]
    ),
    "an axis of size one in front": lambda c, x, h: (h * c.b[None, :1]).tanh()[0] + x @ c.W,
    "stretched over the rows": lambda c, x, h: c.b.expand(-1, x.size(0), -1) * h + x @ c.W,
    "chosen": lambda c, x, h: torch.where(c.b > 0, h, x @ c.W[0]) + (h > c.b).to(h.dtype),
    "in front of a stack": lambda c, x, h: (
        torch.stack([h, x @ c.W[0]]) * c.b[:, None] + c.U[:2, :1]
    ).mean(1),
    "filled": filled,
    "filled by turns": filled_by_turns,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(
    name: str, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(Gates, 3, 4, dtype=torch.float64, function=WRITTEN[name])
    for steps, batch in ((3, 2), (1, 1), (2, 4)):  # also as many rows as gates
        x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        h, c = torch.randn(2, 1, batch, 4, dtype=torch.float64).requires_grad_()
        same_by_program(layer, x, (h, c))


def test_gates_in_one_parameter_are_one_product(program_of: Callable[..., Any]) -> None:
    graph = program_of(Gates(3, 4, function=WRITTEN["@"]), ()).graph
    assert sum(node.op == "product" for node in graph.nodes) == 2


def test_rows_joined_with_what_is_stacked_go_to_the_reference() -> None:
    """Torch multiplies a matrix of `3 B` rows, and takes these apart again."""

    def step(x: Tensor, h: Tensor, u: Tensor) -> Tensor:
        n = torch.tanh(x + h)
        return torch.einsum("kbi,ij->kbj", torch.stack([h, n, h * n]), u).sum(0)

    given = torch.zeros(2, 4), torch.randn(5, 2, 4), (torch.randn(4, 4),)
    with flexrnn.backend("reference"):
        expected = flexrnn.scan(step, *given)[0]
    with pytest.warns(flexrnn.FallbackWarning, match="cannot be compiled"):
        found = flexrnn.scan(step, *given)[0]
    torch.testing.assert_close(found, expected)
