"""Sums along a row in the backward step: taken apart where that spares a pass over it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import BATCH, Expr, Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.schedule import schedule
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
    return depths[graph.outputs["grad.state.n"]]


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
    "more and less": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y - w.sum(w.x * w.x) * w.x)),
    "divided, then multiplied": (1, lambda w: w.sum(w.y / w.n * w.sum(w.x * w.x) / w.n)),
    "multiplied, then divided": (1, lambda w: w.sum(w.y * w.n / w.sum(w.x * w.x) * w.n)),
    "the same twice": (1, lambda w: w.sum(w.sum(w.x * w.x) * w.y + w.sum(w.x * w.x) * w.y)),
    "a row less its mean": (1, lambda w: w.sum(w.sum(w.centred(w.x) * w.y) * w.centred(w.x) + w.y)),
    "that and nothing else": (0, lambda w: w.sum(w.n * w.centred(w.x))),
    "a number of the state": (1, lambda w: w.sum(w.n * w.y + w.sum(w.x) * w.x)),
}
WHOLE: dict[str, Callable[[Written], Expr]] = {
    "less a number": lambda w: w.sum((w.x - w.n) * w.sum(w.x * w.x) + w.x - w.n * w.sum(w.y)),
    "a number added": lambda w: w.sum(w.sum(w.x * w.x) * w.y + w.wide(w.n)),
    "a number by a number": lambda w: w.sum(w.wide(w.n) / w.sum(w.x * w.x) + w.y),
    "no number scales it": lambda w: w.sum((w.x - w.sum(w.x) * w.y) * w.y),
    "a number of the row's own": lambda w: w.sum(w.x * w.y + w.y),
    "a mean of something else": lambda w: w.sum(w.x - w.sum(w.y) / H),
    "not quite the mean": lambda w: w.sum(w.x - w.sum(w.x) / (H + 1)),
    "two rows": lambda w: w.sum(w("exp", w.sum(w.x) * w.y)),
}


def made(write: Callable[[Written], Expr], name: str = "grad.state.n") -> tuple[Graph, Graph]:
    written = Written()
    written.graph.outputs = {"state.n": written.n.index, name: write(written).index}
    return written.graph, gather_sums(written.graph)


def value(graph: Graph, x: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    values = {graph.inputs[name]: t for name, t in {"x0": x, "x1": y, "state.n": n}.items()}
    others = [i for i, node in enumerate(graph.nodes) if node.op != "input"]
    interpreter.compute_nodes(Program(graph, schedule(graph)), others, values, n.shape[:1], n)
    return values[graph.outputs["grad.state.n"]]


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


def test_what_a_step_computes_stays_as_it_is_written() -> None:
    for _, write in APART.values():
        before, after = made(write, "state.n")
        assert [node[:3] for node in after.nodes] == [node[:3] for node in before.nodes]


def test_what_comes_twice_is_doubled_once_a_row() -> None:
    _, after = made(lambda w: w.sum((w.n * w.x + w.n * w.x) * w.x))
    assert [node.shape for node in after.nodes if node.op == "add"] == []


def centred_twice(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d - d.mean(-1, keepdim=True) + 0.0 * h


def difference(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    e = x - x.flip(-1)
    e = e * torch.rsqrt((e * e).mean(-1, keepdim=True) + 1e-6)
    return torch.nn.functional.layer_norm(e, (64,)) + 0.1 * h


def norm_of_nan(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    x = torch.where(x < x.amin(-1, keepdim=True) + 0.1, torch.nan, x)
    return torch.nn.functional.layer_norm(x, (64,)).sum(-1, keepdim=True) + 0.1 * h


@pytest.mark.parametrize("step", [centred_twice, difference, norm_of_nan])
def test_numbers_far_from_0_and_nan(step: Callable[..., Any]) -> None:
    x, h = torch.randn(3, 4, 64) + 1e4, torch.zeros(4, 64)
    found = []
    for engine, dtype in (("reference", torch.float64), ("reference", x.dtype), ("cpu", x.dtype)):
        with flexrnn.backend(engine):
            found.append(flexrnn.scan(step, h.to(dtype), x.to(dtype))[0].double())
    golden, own, engine = found
    assert torch.equal(engine.isnan(), golden.isnan())
    error, allowed = ((one - golden).nan_to_num().norm() for one in (engine, own))
    assert error <= 2 * allowed + 1e-6 * golden.nan_to_num().norm()


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
