"""Matrices of a row, multiplied number by number: for an engine that has no other form of it."""

from functools import reduce

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.graph import Graph, Node, rewrite


def number_by_number(graph: Graph) -> Graph:
    """The same graph without `matmul`: one term after another, or, of many, a sum along an axis."""

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if node.op != "matmul":
            return None
        a, w = args
        (*outer, m, n), k = node.shape, int(new.nodes[a].shape[-1])
        if k <= MOST:
            return reduce(
                lambda x, y: new.add("add", x, y), (_term(new, a, w, i) for i in range(k))
            )
        left = new.add("reshape", a, shape=(*outer, m, 1, k))
        right = new.add("reshape", new.add("transpose", w), shape=(*outer, 1, n, k))
        return new.add("reshape", new.add("sum", new.add("mul", left, right)), shape=node.shape)

    return rewrite(graph, rule) if any(node.op == "matmul" for node in graph.nodes) else graph


def _term(new: Graph, a: int, w: int, k: int) -> int:
    """What one column of the left and one row of the right give."""
    column = new.add("slice", a, axis=-1, start=k, stop=k + 1)
    return new.add("mul", column, new.add("slice", w, axis=-2, start=k, stop=k + 1))
