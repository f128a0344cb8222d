"""Sums along an axis that is not the last: computed turned over where nothing has to move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.turned import turned


class Liquid(flexrnn.Cell):
    """The synapses of a liquid time-constant network (Hasani et al. 2021), unfolded twice."""

    State = HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, **options)
        size = (hidden_size, hidden_size)
        self.mu, self.sigma, self.w, self.e = (
            nn.Parameter(torch.randn(size, **options)) for _ in range(4)
        )
        self.gain = nn.Parameter(torch.rand(hidden_size, **options))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        v, u = state.h, self.inner(x)
        for _ in range(2):
            there = v.unsqueeze(-1) > self.mu
            a = self.w * torch.sigmoid(self.sigma * (v.unsqueeze(-1) - self.mu)) * self.gain
            a = torch.where(there, a, 0.1 * a.detach())
            most = (a * self.e).amax(1)
            v = (v + (a * self.e).sum(dim=1) + u) / (2 + a.sum(dim=1).abs()) + 0.1 * most
        return HiddenState(v)


@pytest.mark.parametrize("H", [3, 9, 19])
def test_a_cell(same_by_program: Callable[..., None], H: int) -> None:
    layer = flexrnn.FlexRNN(Liquid, 5, H, dtype=torch.float64)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)


def test_no_place_is_taken_by_itself(program_of: Callable[..., Any]) -> None:
    program = program_of(Liquid(5, 70, dtype=torch.float64))
    assert not [node for node in program.graph.nodes if node.op in ("slice", "concat")]


def matrix(graph: Graph, rows: int, columns: int) -> int:
    """Of every row numbers that are its own."""
    flat = graph.input("x0", (BATCH, rows * columns))
    return graph.add("reshape", flat, shape=(BATCH, rows, columns))


def test_what_would_move_stays() -> None:
    graph = Graph()
    own, weight = matrix(graph, 20, 30), graph.input("param.w", (20, 30))
    assert turned(graph, graph.add("mul", own, weight)) is None
    assert turned(graph, graph.input("x1", (BATCH, 30))) is None
    shared = graph.add("reshape", graph.input("x3", (BATCH, 30)), shape=(BATCH, 1, 30))
    wide = graph.add("reshape", graph.input("x4", (BATCH, 200)), shape=(BATCH, 20, 10))
    assert turned(graph, graph.add("mul", shared, own)) is None
    # Of what is stretched little moves: 10 by 20 numbers, for 20 times as many.
    pairs = graph.add("sub", graph.add("reshape", wide, shape=(BATCH, 20, 1, 10)),
                      graph.add("reshape", wide, shape=(BATCH, 1, 20, 10)))  # fmt: skip
    found = turned(graph, pairs)
    assert found is not None
    assert graph.nodes[found].shape == (BATCH, 20, 10, 20)
    column = graph.add("reshape", graph.input("x2", (BATCH, 20)), shape=(BATCH, 20, 1))
    found = turned(graph, graph.add("mul", column, weight))
    assert found is not None
    assert graph.nodes[found].shape == (BATCH, 30, 20)


SIZES = [(2, 2, False), (4, 64, False), (8, 8, True), (9, 64, True)]


@pytest.mark.parametrize(("rows", "columns", "is_turned"), SIZES)
def test_few_places_are_taken_in_turn(rows: int, columns: int, is_turned: bool) -> None:
    graph = Graph()
    flat = graph.input("x0", (BATCH, rows))
    column = graph.add("reshape", flat, shape=(BATCH, rows, 1))
    product = graph.add("mul", column, graph.input("param.w", (rows, columns)))
    assert (turned(graph, product) is not None) is is_turned


def test_a_long_chain_is_taken_in_turn() -> None:
    graph = Graph()
    flat = graph.input("x0", (BATCH, 9))
    column = graph.add("reshape", flat, shape=(BATCH, 9, 1))
    chain = graph.add("mul", column, graph.input("param.w", (9, 9)))
    for _ in range(50):
        chain = graph.add("tanh", chain)
    assert turned(graph, chain) is not None
    for _ in range(5000):
        chain = graph.add("tanh", chain)
    assert turned(graph, chain) is None
