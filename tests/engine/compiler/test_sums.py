"""Sums along a row: taken apart where that spares a pass over it, and where nothing can cancel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import BATCH, Expr, Graph
from flexrnn.engine.compiler.program import build
from flexrnn.engine.compiler.sums import gather_sums

H = 6
ROW, ONE = (BATCH, H), (BATCH, 1)


class Written:
    """A graph of two rows, x and y, one number a row, n, and what a test writes with them."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.x, self.y, self.n = (
            Expr(self.graph, self.graph.input(name, shape))
            for name, shape in (("x0", ROW), ("x1", ROW), ("state.n", ONE))
        )

    def __call__(self, op: str, *args: Expr, **attrs: Any) -> Expr:
        return Expr(self.graph, self.graph.add(op, *(a.index for a in args), **attrs))

    def sum(self, a: Expr) -> Expr:
        return self("sum", a)

    def wide(self, number: Expr) -> Expr:
        return self("expand", number, shape=ROW)

    def part(self, a: Expr, start: int, stop: int) -> Expr:
        return self("slice", a, axis=-1, start=start, stop=stop)

    def centred(self, a: Expr) -> Expr:
        return a - self.sum(a) / H


def passes(graph: Graph) -> int:
    """How many passes over a row follow one another."""
    depths: list[int] = []
    for node in graph.nodes:
        before = max((depths[arg] for arg in node.args), default=0)
        depths.append(before + (node.op in ("sum", "amax")))
    return depths[graph.outputs["state.n"]]


# Each with the passes that are left: the first finds sum(x · x), and with it all there is to find.
APART: dict[str, tuple[int, Callable[[Written], Expr]]] = {
    "what a number scales": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y)),
    "two of them": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y + w.x * w.sum(w.y * w.y))),
    "a difference": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y - w.x)),
    "what is divided": (1, lambda w: w.sum(w.y / w.sum(w.x * w.x) + w.x)),
    "what is stretched": (1, lambda w: w.sum(w.wide(w.sum(w.x * w.x)) * w.y)),
    "what is negative": (1, lambda w: w.sum(-(w.sum(w.x * w.x) * -w.y - w.x))),
    "a row of parts": (
        1,
        lambda w: w.sum(
            w("concat", w.part(w.y, 0, 2) * w.sum(w.x * w.x), w.part(w.x, 1, 5), axis=-1)
        ),
    ),
    "the same twice": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y + w.sum(w.x * w.x) * w.y)),
    "a row less its mean": (1, lambda w: w.sum(w.sum(w.centred(w.x) * w.y) * w.centred(w.x) + w.y)),
    "that and nothing else": (0, lambda w: w.sum(w.n * w.centred(w.x))),
    "a number of the state": (1, lambda w: w.sum(w.n * w.y + w.sum(w.x) * w.x)),
}
WHOLE: dict[str, Callable[[Written], Expr]] = {
    "less the largest": lambda w: w.sum(w.x - w("amax", w.x)),
    "a number added": lambda w: w.sum(w.sum(w.x * w.x) * w.y + w.wide(w.sum(w.x))),
    "no number scales it": lambda w: w.sum((w.x - w.sum(w.x) * w.y) * w.y),
    "a number of the row's own": lambda w: w.sum(w.x * w.y + w.y),
    "a mean of something else": lambda w: w.sum(w.x - w.sum(w.y) / H),
    "not quite the mean": lambda w: w.sum(w.x - w.sum(w.x) / (H + 1)),
    "two rows": lambda w: w.sum(w("exp", w.sum(w.x) * w.y)),
}


def made(write: Callable[[Written], Expr]) -> tuple[Graph, Graph]:
    written = Written()
    written.graph.outputs["state.n"] = write(written).index
    return written.graph, gather_sums(written.graph)


def value(graph: Graph, x: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return interpreter.forward(build(graph), [x[None], y[None]], [n], {}, ()).final[0]


@pytest.mark.parametrize("name", APART)
def test_taken_apart(name: str) -> None:
    left, write = APART[name]
    before, after = made(write)
    assert passes(before) > passes(after) == left
    x, y, n = (torch.randn(3, width, dtype=torch.float64) for width in (H, H, 1))
    assert_close(value(after, x, y, n), value(before, x, y, n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", WHOLE)
def test_left_whole(name: str) -> None:
    before, after = made(WHOLE[name])
    assert [node[:3] for node in after.nodes] == [node[:3] for node in before.nodes]


def test_what_cancels_is_as_exact_as_it_was() -> None:
    """x - max is exact, and far smaller than either."""
    before, after = made(lambda w: w.sum((w.x - w("amax", w.x)) * w.sum(w.sum(w.y) * w.y)))
    assert passes(after) < passes(before)
    x = 2.0**22 + torch.arange(H)[None].float()
    found = value(after, x, torch.ones(1, H), torch.zeros(1, 1))
    assert found.item() == -H * H * sum(range(H))


def test_many_terms_stay_together() -> None:
    def write(w: Written) -> Expr:
        total = w.sum(w.x * w.x) * w.y
        for k in range(20):
            total = total + w.x * float(k)
        return w.sum(total)

    before, after = made(write)
    assert passes(after) == passes(before) == 2


def test_thousands_of_additions_are_no_recursion() -> None:
    def write(w: Written) -> Expr:
        total = w.x
        for _ in range(5000):
            total = total + w.y
        return w.sum(total)

    made(write)


def test_a_layer_norm_goes_back_in_one_pass_each() -> None:
    x = torch.randn(3, 2, 4, requires_grad=True)
    found = flexrnn.explain(flexrnn.LayerNormLSTM(4, H), x).steps[0].program
    assert found is not None
    graph = found.graph
    read = graph.ancestors([graph.outputs["grad.state.h"]])
    forward = graph.ancestors([graph.outputs[f"state.{field}"] for field in "hc"])
    depths: dict[int, int] = {}
    for index in sorted(read - forward):
        node = graph.nodes[index]
        before = max((depths.get(arg, 0) for arg in node.args), default=0)
        depths[index] = before + (node.op == "sum")
    assert max(depths.values()) == 2  # of c, and of the gates that read it
