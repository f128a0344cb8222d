"""Products of two matrices of a row, in the form that multiplies the fewest numbers."""

import math

from flexrnn.engine.compiler.cuts import added_up
from flexrnn.engine.compiler.graph import Graph

_NUMBERS = 512  # products of two numbers, as many as are written down each by itself


def are_many(*sizes: int) -> bool:
    """Whether matrices of these sizes are multiplied as such, and not number by number."""
    return min(sizes) > 1 and math.prod(sizes) > _NUMBERS


def times(graph: Graph, a: int, w: int) -> int:
    """`(B, ..., M, K) · (B, ..., K, N)`, row by row and head by head.

    A column times a row is no sum, and a row or a column times a matrix is one sum. Of a matrix
    that is a column times a row, `u v`, the product `A (u v)` is `(A u) v`, with N² products of
    numbers and not N³: it is so that RWKV-7 takes from its state what that shall forget (Peng et
    al. 2025, arXiv:2503.14456).
    """
    (*outer, m, k), n = graph.nodes[a].shape, graph.nodes[w].shape[-1]
    if k == 1:
        return graph.add("mul", a, w)
    if m == 1:
        return added_up(graph, graph.add("mul", _as(graph, a, (*outer, k, 1)), w), -2)
    if n == 1:
        return graph.add("sum", graph.add("mul", a, _as(graph, w, (*outer, 1, k))))
    if (parts := _column_and_row(graph, w)) is not None:
        return graph.add("mul", times(graph, a, parts[0]), parts[1])
    if (parts := _column_and_row(graph, a)) is not None:
        return graph.add("mul", parts[0], times(graph, parts[1], w))
    return graph.add("matmul", a, w)


def _as(graph: Graph, a: int, shape: tuple[int | str, ...]) -> int:
    return graph.add("reshape", a, shape=shape)


def _column_and_row(graph: Graph, index: int) -> tuple[int, int] | None:
    """What a matrix is made of, if it is a column times a row."""
    node = graph.nodes[index]
    if node.op == "transpose":
        parts = _column_and_row(graph, node.args[0])
        if parts is None:
            return None
        column, row = (graph.add("transpose", part) for part in reversed(parts))
        return column, row
    if node.op != "mul":
        return None
    *outer, m, n = node.shape
    shapes = {(*outer, m, 1): 0, (*outer, 1, n): 1}
    found = {shapes.get(graph.nodes[arg].shape): arg for arg in node.args}
    return (found[0], found[1]) if found.keys() == {0, 1} else None
