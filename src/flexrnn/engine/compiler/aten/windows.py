"""Diagonals and windows: views of an axis that are every n-th place of it, or of two made one."""

from typing import Any

from flexrnn.engine.compiler.aten import views
from flexrnn.engine.compiler.aten.builder import Builder, Handlers, Ref, Unsupported, handles
from flexrnn.engine.compiler.aten.shapes import slice_of, written_into
from flexrnn.engine.compiler.cuts import MOST

HANDLERS: Handlers = {}


def _flat(b: Builder, a: Ref, offset: int, dim1: int, dim2: int) -> tuple[Ref, range, list[int]]:
    """Two axes as one behind all others, the places of a diagonal in it, and the axes' order."""
    rank = len(b.shape(a))
    axes = [rank + b.axis(a, dim) for dim in (dim1, dim2)]
    rows, columns = (int(b.shape(a)[axis]) for axis in axes)
    first = offset if offset >= 0 else -offset * columns
    count = min(rows - max(-offset, 0), columns - max(offset, 0))
    if count < 1:
        raise Unsupported("a diagonal of nothing")
    order = [k for k in range(rank) if k not in axes] + axes
    moved = views.settle(b.graph, views.permute(b.graph, a, order))
    flat = b.ungrouped(moved, -1)
    return flat, range(first, first + (count - 1) * (columns + 1) + 1, columns + 1), order


@handles(HANDLERS, "diagonal")
def _diagonal(b: Builder, a: Ref, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Ref:
    flat, at, _ = _flat(b, a, offset, dim1, dim2)
    return slice_of(b, flat, -1, at)


@handles(HANDLERS, "diagonal_scatter")
def _diagonal_scatter(
    b: Builder, a: Ref, part: Ref, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Any:
    """What is left of a write to a diagonal of a tensor of the step's own."""
    flat, at, order = _flat(b, a, offset, dim1, dim2)
    shape = b.shape(a)
    whole = b.reshape(written_into(b, flat, part, -1, at), tuple(shape[k] for k in order))
    return views.permute(b.graph, whole, [order.index(k) for k in range(len(order))])


@handles(HANDLERS, "unfold")
def _unfold(b: Builder, a: Ref, dim: int, size: int, step: int) -> Ref:
    """Windows that lie so many places apart, each along an axis behind all others."""
    axis = b.axis(a, dim)
    count = (int(b.shape(a)[axis]) - size) // step + 1
    if not 0 < size <= MOST:
        raise Unsupported(f"windows of {size} places, of which a program has {MOST} at the most")
    at = [range(k, k + (count - 1) * step + 1, step) for k in range(size)]
    parts = [slice_of(b, a, axis, places) for places in at]
    return b.concat([b.reshape(part, (*b.shape(part), 1)) for part in parts], -1)
