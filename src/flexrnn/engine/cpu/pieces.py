"""Pieces: where the numbers of a weight lie that is put together from parameters.

The naive body's eight matrices are merged into two weights, each a concatenation of transposed
parameters. A loop packs its weights anyway, so it takes each piece from where it lies, and nothing
is concatenated first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.compiler.graph import Graph

Box = tuple[tuple[int, int], ...]  # along every axis from where to where


class Cut(NamedTuple):
    """A matrix of several pieces."""

    axis: int  # along which they follow one another
    pieces: tuple["Piece", ...]


class Piece(NamedTuple):
    """A box of a weight, and where it lies."""

    memory: str  # which tensor
    offset: int  # numbers from the tensor's first to the box's
    box: Box  # of the weight
    strides: tuple[int, ...]


def pieces(graph: Graph, index: int, box: Box, given: Mapping[str, Tensor]) -> list[Piece] | None:
    """The pieces of a box of a node that is made of parameters.

    Args:
        graph: of the program.
        index: the node.
        box: what of it is wanted.
        given: the inputs of the graph.

    Returns:
        Boxes that do not overlap and together are `box`, or None where some of it has to be
        computed.
    """
    node = graph.nodes[index]
    match node.op:
        case "input":
            tensor = given[node.attr("name")]
            offset = sum(lo * stride for (lo, _), stride in zip(box, tensor.stride(), strict=True))
            return [Piece(node.attr("name"), offset, box, tensor.stride())]
        case "detach" | "opaque":
            return pieces(graph, node.args[0], box, given)
        case "transpose":
            found = pieces(graph, node.args[0], _swapped(box), given)
            return found and [
                p._replace(box=_swapped(p.box), strides=_swapped(p.strides)) for p in found
            ]
        case "slice":
            return _shifted(graph, node.args[0], box, node.attr("axis"), node.attr("start"), given)
        case "concat":
            return _joined(graph, node.args, box, node.attr("axis"), given)
    return None


def cut(graph: Graph, index: int, given: Mapping[str, Tensor]) -> Cut | None:
    """How a matrix that is made of parameters is put together, if it is from a row of several.

    Args:
        graph, index, given: as in `pieces`; what had to be cast is no piece.
    """
    whole = tuple((0, int(size)) for size in graph.nodes[index].shape)
    found = pieces(graph, index, whole, given) if len(whole) == 2 else None
    if not found or len(found) < 2 or any(f"original.{p.memory}" in given for p in found):
        return None
    for axis in (0, 1):
        if all(piece.box[1 - axis] == whole[1 - axis] for piece in found):
            return Cut(axis, tuple(sorted(found, key=lambda piece: piece.box[axis])))
    return None


def _swapped(pair: tuple) -> tuple:
    return (*pair[:-2], pair[-1], pair[-2])


def _shifted(
    graph: Graph, index: int, box: Box, axis: int, by: int, given: Mapping[str, Tensor]
) -> list[Piece] | None:
    found = pieces(graph, index, _moved(box, axis, by), given)
    return found and [p._replace(box=_moved(p.box, axis, -by)) for p in found]


def _moved(box: Box, axis: int, by: int) -> Box:
    axis %= len(box)
    lo, hi = box[axis]
    return (*box[:axis], (lo + by, hi + by), *box[axis + 1 :])


def _joined(
    graph: Graph, parts: Sequence[int], box: Box, axis: int, given: Mapping[str, Tensor]
) -> list[Piece] | None:
    axis %= len(box)
    found: list[Piece] = []
    start = 0
    for part in parts:
        stop = start + int(graph.nodes[part].shape[axis])
        lo, hi = max(start, box[axis][0]), min(stop, box[axis][1])
        if lo < hi:
            inner = (*box[:axis], (lo, hi), *box[axis + 1 :])
            more = _shifted(graph, part, inner, axis, -start, given)
            if more is None:
                return None
            found += more
        start = stop
    return found
