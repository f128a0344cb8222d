"""Matrices of a row, multiplied number by number: for an engine that has no other form of it."""

from functools import reduce

from flexrnn.engine.compiler.cuts import MOST, places
from flexrnn.engine.compiler.graph import Graph, Node, rewrite
from flexrnn.engine.compiler.merge import normalize


def number_by_number(graph: Graph) -> Graph:
    """The same graph without `matmul` and `total`: term after term, or, of many, sums of rows."""

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if node.op == "total":
            return _total(new, node, args[0])
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

    if not any(node.op in ("matmul", "total") for node in graph.nodes):
        return graph
    return normalize(rewrite(graph, rule))


def _total(new: Graph, node: Node, a: int) -> int | None:
    """A sum along another axis than the last: of its places, or, of many, turned over."""
    axis, shape = node.attr("axis"), new.nodes[a].shape
    if int(shape[axis]) <= MOST or axis != -2:
        return reduce(lambda x, y: new.add("add", x, y), places(new, a, axis))
    total = new.add("sum", new.add("transpose", a))
    return new.add("reshape", total, shape=node.shape)


def _term(new: Graph, a: int, w: int, k: int) -> int:
    """What one column of the left and one row of the right give."""
    column = new.add("slice", a, axis=-1, start=k, stop=k + 1)
    return new.add("mul", column, new.add("slice", w, axis=-2, start=k, stop=k + 1))
