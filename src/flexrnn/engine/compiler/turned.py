"""Nodes with their last two axes exchanged, where nothing has to be moved for it.

A sum along the last axis is one pass over memory; along another it is spelt out place by place, or
added up in memory. And of a last axis of a few numbers most of a vector is empty. What is
computed elementwise, of parameters and of rows that are stretched, can as well be computed turned
over, as the synapses of a liquid time-constant network are: `(B, J, 1)` beside `(J, I)`; or the
distances of all pairs of particles, `(B, N, 1, 2)` less `(B, 1, N, 2)`.
"""

import math
from collections.abc import Callable

from flexrnn.engine.compiler.graph import BATCH, Graph, Shape
from flexrnn.engine.compiler.ops import OPS

_MOST = 256  # nodes that are computed once more
_DEEP = 64  # of them one behind another
_FEW = 8  # places that do not take long to compile one by one
_VECTOR = 16  # numbers that are computed at once, or about as many
_PART = 8  # of what is computed, and less, that may move for it


def turned(graph: Graph, a: int) -> int | None:
    """A node `(B, ..., M, N)` as `(B, ..., N, M)`, to reduce what its M places hold.

    None where many numbers of a row would move, and where M places are few, and sooner taken in
    turn.
    """
    shape = graph.nodes[a].shape
    if len(shape) < 3 or shape[-2] == BATCH:
        return None
    m, n = int(shape[-2]), int(shape[-1])
    if m <= _FEW and (m <= 2 or n * -(-m // _VECTOR) > m * -(-n // _VECTOR)):
        return None
    known: dict[int, int | None] = {}

    def turn(index: int, depth: int = 0) -> int | None:
        if index not in known:
            few = len(known) < _MOST and depth < _DEEP
            known[index] = _turned(graph, index, lambda i: turn(i, depth + 1)) if few else None
            if known[index] is None and few and numbers(index) * _PART <= numbers(a):
                known[index] = _moved(graph, index)
        return known[index]

    def numbers(index: int) -> int:
        return math.prod(int(size) for size in graph.nodes[index].shape if size != BATCH)

    return turn(a)


def _turned(graph: Graph, index: int, turn: Callable[[int], int | None]) -> int | None:
    node = graph.nodes[index]
    shape = node.shape
    if BATCH in shape and len(shape) < 3:
        return None
    if not shape:
        return index
    wide = shape if len(shape) > 1 else (1, *shape)
    if 1 in wide[-2:]:
        return _in_shape(graph, index, _exchanged(wide))
    if BATCH not in shape:
        return graph.add("transpose", index)
    if node.op == "transpose":
        return node.args[0]
    if node.op not in OPS and node.op not in ("detach", "expand"):
        return None
    args = [turn(arg) for arg in node.args]
    found = [arg for arg in args if arg is not None]
    if len(found) < len(args):
        return None
    if node.op == "expand":
        return graph.add("expand", *found, shape=_exchanged(shape))
    return graph.add(node.op, *found, **dict(node.attrs))


def _moved(graph: Graph, index: int) -> int | None:
    shape = graph.nodes[index].shape
    return graph.add("transpose", index) if len(shape) > 2 and BATCH not in shape[-2:] else None


def _exchanged(shape: Shape) -> Shape:
    """A shape with its last two axes exchanged."""
    return (*shape[:-2], shape[-1], shape[-2])


def _in_shape(graph: Graph, index: int, shape: Shape) -> int:
    return index if graph.nodes[index].shape == shape else graph.add("reshape", index, shape=shape)
