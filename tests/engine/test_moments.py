"""Sums of squared differences from a mean, found beside the sum that the mean is made of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import flexrnn
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.lowering.extract import extract
from flexrnn.engine.lowering.moments import gather_moments
from flexrnn.engine.lowering.stages import lower

from .test_lowering import Cell, H

Step = Callable[[Tensor, Tensor], Tensor]


def looped(step: Step) -> Graph:
    """The graph of the loop there, of a function `(x + U h, h) -> h`."""
    layer = flexrnn.FlexRNN(Cell, H, H, function=step)
    (report,) = flexrnn.explain(layer, torch.randn(3, 2, H, requires_grad=True)).steps
    assert report.program is not None, report.refusal
    return extract(report.program, hoist=True, keep=("h",), sum_inside=False).forward.graph


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


MOMENTS: dict[str, tuple[Step, int]] = {
    "layer_norm": (lambda x, h: functional.layer_norm(x + h, (H,)), 1),
    "group_norm": (lambda x, h: functional.group_norm(x + h, 2), 1),
    "var": (lambda x, h: (x + h) * (x - h).var(-1, keepdim=True, unbiased=False), 1),
    "by hand": (lambda x, h: x + centred(h) / (centred(h).pow(2).mean(-1, keepdim=True) + 1), 1),
    "two": (lambda x, h: functional.layer_norm(h, (H,)) + functional.layer_norm(x, (H,)), 2),
    "no mean": (lambda x, h: x * (h * h).mean(-1, keepdim=True), 0),
    "another row's mean": (
        lambda x, h: x + (h - x.mean(-1, keepdim=True)).pow(2).sum(-1, keepdim=True), 0,
    ),
    "another count": (lambda x, h: x + (h - h.sum(-1, True) / (H + 1)).pow(2).sum(-1, True), 0),
    "no square": (lambda x, h: x + (centred(h) * centred(x)).sum(-1, keepdim=True), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_they_are_found_where_they_are(name: str) -> None:
    step, count = MOMENTS[name]
    graph = looped(step)
    made = gather_moments(graph)
    alive = made.ancestors(list(made.outputs.values()))
    assert sum(made.nodes[i].op == "moment" for i in alive) == count
    assert made.outputs.keys() == graph.outputs.keys()
    if not count:
        assert made is graph


@pytest.mark.parametrize("name", MOMENTS)
def test_the_graph_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    graph = looped(MOMENTS[name][0])
    given = {n: torch.randn([2 if s == "B" else int(s) for s in graph.nodes[i].shape]).double()
             for n, i in graph.inputs.items()}  # fmt: skip
    before, after = values(graph, given), values(gather_moments(graph), given)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-13)


def values(graph: Graph, given: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[int, Tensor] = {}
    like = next(iter(given.values()))
    for index, node in enumerate(graph.nodes):
        args = [found[a] for a in node.args]
        is_input = node.op == "input"
        found[index] = (
            given[node.attr("name")] if is_input else interpreter.compute(node, args, (2,), like)
        )
    return {name: found[index] for name, index in graph.outputs.items()}


def gates(x: Tensor, h: Tensor) -> Tensor:
    a, b = functional.layer_norm(torch.cat([x + h, x * h], -1), (2 * H,)).chunk(2, -1)
    return a.sigmoid() * b.tanh()


def test_what_gates_read_is_made_where_they_read_it() -> None:
    """Else programs that have units of the whole row would make it for those that have a gate's."""
    graph = gather_moments(looped(gates))
    differences = [n for n in graph.nodes if n.op == "sub" and n.shape[-1] == 2 * H]
    alive = graph.ancestors(list(graph.outputs.values()))
    assert not [n for n in differences if graph.nodes.index(n) in alive]


@pytest.mark.parametrize("again", [False, True])
def test_parts_of_a_row_wait_for_one_another_once(again: bool) -> None:
    """Not for the mean, and then for the squares."""
    loop = lower(looped(gates), again=again)
    first, *rest = (k for k, stage in enumerate(loop.stages) if stage.reduced)
    assert rest == [first + 1] * again
    assert loop.stages[first + again].again == (first if again else None)
    assert [k for k, stage in enumerate(loop.stages) if stage.alone] == [first + again + 1]


def test_a_moment_is_of_a_row_and_its_sum() -> None:
    graph = Graph()
    row, other = graph.input("x0", ("B", 4)), graph.input("x1", ("B", 3))
    graph.add("moment", row, graph.add("sum", row))
    with pytest.raises(ValueError, match="moment: expected a row and its sum"):
        graph.add("moment", row, other)
