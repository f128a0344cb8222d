"""Matrices of a row's own whose axes change places, of more than a few places each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState

N, S = 11, 9  # nodes, and features of each


class Nodes(flexrnn.Cell):
    """`h ← tanh(function(cell, x, h))` of `(B, N, S)`, with a graph and maps of its nodes."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        sizes = {"graph": (N, N), "map": (S, S), "each": (S, N, N), "scale": (S, N), "bias": (N,)}
        for name, size in sizes.items():
            weight = torch.randn(size, device=device, dtype=dtype) / 3
            self.register_parameter(name, nn.Parameter(weight))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(x).view(-1, N, S)
        return HiddenState(torch.tanh(self.function(self, z, state.h.view(-1, N, S))).flatten(1))


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "a graph": lambda c, z, h: c.graph @ h + z,
    "a graph, twice": lambda c, z, h: c.graph @ torch.relu(c.graph @ (z + h) @ c.map),
    "a graph, of both": lambda c, z, h: (c.graph @ torch.cat([z, h], 2))[:, :, 4 : S + 4],
    "one by one": lambda c, z, h: (h.transpose(1, 2) * c.scale).sigmoid().transpose(1, 2) + z,
    "beside itself": lambda c, z, h: (h[:, :S] + h[:, :S].transpose(1, 2)).mean((1, 2), True) + z,
    "an output": lambda c, z, h: (h + z).transpose(1, 2).reshape(-1, N, S),
    "joined": lambda c, z, h: torch.cat([h.mT, z.mT, h.mT * c.scale], 1)[:, S - 2 : 2 * S - 2].mT,
    "cut": lambda c, z, h: h.mT[:, 2:5].mean(1)[..., None] + h.mT[:, :, 3:4].mT * z,
    "stretched": lambda c, z, h: (
        z + (h.mT.unsqueeze(1) * c.graph[:3, None, :]).tanh().prod(1).mT * h.mT.amax(1, True).mT),
    "read twice": lambda c, z, h: (h.mT.exp() - h.mT @ c.graph).mT + z,
    "heads": lambda c, z, h: torch.einsum("bns,snm->bms", h, c.each) + z,
    "sums": lambda c, z, h: h - h.mT.logsumexp(-1).unsqueeze(1) + z.mT.softmax(1).mT,
    "a norm of nodes": lambda c, z, h: nn.functional.layer_norm(h.mT, (N,), c.bias).mT * z,
    "the nodes of each other": lambda c, z, h: (h @ z.mT).softmax(2) @ z,
    "the features of each other": lambda c, z, h: h @ (z.mT @ h).softmax(1),
    "heads of each other": lambda c, z, h: (
        (torch.stack([h, z], 1) @ torch.stack([z, h], 1).mT).softmax(-1) @ torch.stack([z, z], 1)
    ).sum(1),
    "heads of each other, by labels": lambda c, z, h: torch.einsum(
        "bhqk,bkhd->bqd", torch.einsum(
            "bqhd,bkhd->bhqk", torch.stack([h, z], 2), torch.stack([z, h], 2)).softmax(-1),
        torch.stack([z, z], 2)),
    "heads of one": lambda c, z, h: (
        torch.matmul(torch.stack([h, z], 1), z.mT.unsqueeze(1)) @ h.unsqueeze(1)).mean(1),
    "parts of each other": lambda c, z, h: (
        torch.cat([h[:, 1:10] @ z[:, :S] * 0.1, (z.mT @ h.detach())[:, 3:5]], 1)),
    "a graph for every row": lambda c, z, h: (
        torch.bmm(c.graph.expand(z.shape[0], -1, -1), h) + torch.ones_like(z) @ (z.mT @ h) / 9),
    "powers": lambda c, z, h: (
        z + torch.linalg.matrix_power(torch.baddbmm(h[:, :S], h[:, :S], z[:, 1:10]), 3)
        .sum(1, keepdim=True)),
    "sums of them": lambda c, z, h: (h @ z.mT).sum(2, True) * z + (z @ h.mT).amax(1).unsqueeze(2),
    "the largest of each": lambda c, z, h: (
        z * h.max(2, keepdim=True)[0] - h.min(-1)[0].unsqueeze(2) * z.min(-1)[1].unsqueeze(2) / 9),
    "all axes of a parameter": lambda c, z, h: z + torch.einsum(
        "cbst,Bbc->Btbs", c.each.view(3, 3, N, N), h[:, :3, :3])[:, :, :, 0].repeat(1, 1, 3),
    "without a derivative": lambda c, z, h: h.detach().mT.contiguous().mT * z,
    "products": lambda c, z, h: (1 + h / 9).prod(2, True) * (1 + z / 9).prod(1, True) * c.map[0],
    "a choice": lambda c, z, h: torch.where(h.mT > c.bias, h.mT, z.mT).mT,
    "turned back": lambda c, z, h: (h.mT.mT + z.permute(0, 2, 1).permute(0, 2, 1)) @ c.map,
    "three axes": lambda c, z, h: (
        torch.einsum("bns,bms->bnms", h, z).permute(0, 3, 2, 1).relu().sum(2).mT),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_the_reference_agrees(name: str, same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(Nodes, 3, N * S, dtype=torch.float64, function=WRITTEN[name])
    for steps, batch in ((3, 2), (1, 1), (2, 3)):
        x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        h = torch.randn(1, batch, N * S, dtype=torch.float64, requires_grad=True)
        same_by_program(layer, x, h)


@pytest.mark.parametrize("name", ["the nodes of each other", "heads of each other, by labels"])
def test_matrices_of_a_row_are_multiplied_as_such(name: str, program_of: Any) -> None:
    program = program_of(Nodes(3, N * S, function=WRITTEN[name]))
    ops = [node.op for node in program.graph.nodes]
    assert ops.count("matmul") == 6  # two, and two for the derivatives of each
    assert ops.count("slice") < 2 * N  # of heads that change places


@pytest.mark.parametrize("name", ["a graph, twice", "heads of each other"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_share_a_row(threads: int, name: str) -> None:
    layer = flexrnn.FlexRNN(Nodes, 3, N * S, function=WRITTEN[name])
    x, before = torch.randn(5, 1, 3), torch.get_num_threads()
    with flexrnn.backend("reference"):
        expected = layer(x)[0]
    try:
        torch.set_num_threads(threads)
        with flexrnn.backend("cpu"):
            torch.testing.assert_close(layer(x)[0], expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "multiply",
    [lambda m: m.mT @ m, lambda m: torch.einsum("bhij,bhik->bhjk", m, m)],
    ids=["by matmul", "by einsum"],
)
def test_large_matrices(multiply: Any, same_by_program: Callable[..., None]) -> None:
    def step(c: Any, z: Tensor, h: Tensor) -> Tensor:
        m = torch.stack([h, z * 2], 1).mT.repeat(1, 1, 1, 7)  # (B, 2, 9, 77)
        return z + (multiply(m) / S).mean((1, 2))[:, :N, None]

    layer = flexrnn.FlexRNN(Nodes, 3, N * S, dtype=torch.float64, function=step)
    same_by_program(layer, torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True))


def test_the_largest_in_half_types() -> None:
    """Their number, which nobody reads, is none of the program's."""
    layer = flexrnn.FlexRNN(Nodes, 3, N * S, dtype=torch.bfloat16,
                            function=lambda c, z, h: z - h.max(-1, keepdim=True)[0])  # fmt: skip
    x = torch.randn(3, 2, 3, dtype=torch.bfloat16)
    with flexrnn.backend("reference"):
        expected = layer(x)[0]
    with flexrnn.backend("interpreter"):
        torch.testing.assert_close(layer(x)[0], expected, rtol=0.05, atol=0.05)
