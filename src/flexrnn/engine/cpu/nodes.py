"""What is computed for many rows at once, outside of loops.

As the interpreter does it, but for large products: by our own library, where that is faster.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import Graph, Node
from flexrnn.engine.cpu.outer import Outer, is_faster, multiply
from flexrnn.engine.cpu.pieces import Cut, Piece, cut
from flexrnn.engine.cpu.saved import part

_LITTLE = 1 << 21  # multiplications for which calling our library takes longer than it saves
_FEW = 3  # rows for which laying out a weight takes longer than it saves


def compute(
    node: Node,
    args: Sequence[Tensor],
    lead: tuple[int, ...],
    like: Tensor,
    threads: int,
    into: Tensor | None = None,
    *,
    narrow: bool = False,
) -> Tensor:
    """One node on tensors.

    Args:
        node, args, like: as `interpreter.compute`.
        lead: the axes in front of what there is at every step: `(T, B)` or `(N,)`.
        threads: that there are.
        into: memory for the result, if it has some already, all in one piece.
        narrow: as `multiply`.
    """
    if not (is_faster() and node.op == "product" and _is_ours(args[0], args[1], like)):
        if into is not None and node.op == "product" and _is_plain(args[0], args[1], like):
            torch.mm(flat(args[0]), args[1], out=into.view(-1, args[1].shape[1]))
            return into
        value = interpreter.compute(node, [*args], lead, like)
        return value if into is None else into.copy_(value)
    rows, weight = args
    if into is None:
        into = like.new_empty((*rows.shape[:-1], weight.shape[1]))
    multiply([product(rows, weight, into)], threads, narrow=narrow)
    return into


def product(rows: Tensor, weight: Tensor, into: Tensor) -> Outer:
    """Rows by a weight, into memory in one piece; both may have several axes in front."""
    left, total = flat(rows).T, into.view(-1, weight.shape[1])
    return Outer([[left]], [[weight]], [[total]], adds=False)


def product_of_pieces(
    rows: Tensor, weight: Cut, memory: Mapping[str, Tensor], into: Tensor
) -> Outer:
    """Likewise, by a weight of several pieces, each where it lies in one of these memories."""
    found = [
        part(memory[piece.memory], _sizes(piece), piece.offset, piece.strides)
        for piece in weight.pieces
    ]
    spans = [piece.box[weight.axis] for piece in weight.pieces]
    left, total = flat(rows).T, into.view(-1, into.shape[-1])
    if weight.axis == 0:
        return Outer([[left[a:b] for a, b in spans]], [found], [[total]], adds=False)
    totals = [total[:, a:b] for a, b in spans]
    return Outer([[left]], [[piece] for piece in found], [totals], adds=False)


def cut_of(graph: Graph, index: int, rows: int, given: Mapping[str, Tensor]) -> Cut | None:
    """The pieces of the weight by which a node multiplies rows, if our library reads them."""
    node = graph.nodes[index]
    if not (is_faster() and node.op == "product"):
        return None
    weight = [int(size) for size in graph.nodes[node.args[1]].shape]
    if len(weight) != 2 or not is_large(rows, weight):
        return None
    return cut(graph, node.args[1], given)


def _sizes(piece: Piece) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in piece.box)


def _is_ours(rows: Tensor, weight: Tensor, like: Tensor) -> bool:
    """Whether a product is one of our library's, and large."""
    if not _is_plain(rows, weight, like):
        return False
    return is_large(rows.numel() // weight.shape[0], weight.shape)


def _is_plain(rows: Tensor, weight: Tensor, like: Tensor) -> bool:
    """Whether a product is that of two matrices, all of one dtype."""
    return weight.dim() == 2 and rows.dtype == weight.dtype == like.dtype


def flat(rows: Tensor) -> Tensor:
    """All rows `(..., K)`, of every step, as a matrix."""
    return rows.reshape(-1, rows.shape[-1])


def is_large(rows: int, weight: Sequence[int]) -> bool:
    """Whether calling our library saves more time than it takes."""
    return rows * math.prod(weight) >= _LITTLE and pays(rows, weight)


def pays(rows: int, weight: Sequence[int]) -> bool:
    """Whether our library gets something from laying out a weight: neither side is a vector's."""
    inner, columns = weight
    return rows > _FEW and inner > 1 and columns > 1
