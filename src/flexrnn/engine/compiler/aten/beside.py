"""Tensors side by side: joined along an axis, or along a new one that may be in front of the batch.

A program keeps the batch first, and so is what it joins, until the axis that is put in front of it
is seen.
"""

from typing import Any

from flexrnn.engine.compiler.aten import views
from flexrnn.engine.compiler.aten.builder import Builder, Handlers, Ref, handles

BESIDE: Handlers = {}  # which take operands as they are seen, and not nodes alone


@handles(BESIDE, "cat")
def _cat(b: Builder, parts: list[Any], dim: int = 0) -> Any:
    order = views.batch_first(b.graph, parts)
    if order is None:
        return _joined(b, [views.settle(b.graph, part) for part in parts], dim)
    moved = [views.settle(b.graph, views.reordered(b.graph, part, order)) for part in parts]
    made = _joined(b, moved, order.index(dim % len(order)))
    return views.permute(b.graph, made, [order.index(k) for k in range(len(order))])


def _joined(b: Builder, parts: list[Ref], dim: int) -> Ref:
    axis = b.axis(parts[0], dim)
    parts = [part for part in parts if b.shape(part)[axis] != 0] or parts[:1]
    return b.concat(parts, axis)


@handles(BESIDE, "stack")
def _stack(b: Builder, parts: list[Any], dim: int = 0) -> Any:
    return _cat(b, [views.unsqueeze(b.graph, part, dim) for part in parts], dim)
