"""Views: axes that a person moves about, followed until an operation needs to know where they are.

A program keeps the batch first. `einsum` and `bmm` move it, multiply head by head, and move it
back: followed as a view, nothing is moved at all, and what remains is one product by heads.
"""

from typing import Any, NamedTuple

from flexrnn.engine.compiler.aten.builder import Ref, Unsupported, reshape
from flexrnn.engine.compiler.graph import BATCH, Graph, Shape


class View(NamedTuple):
    """A node whose axes stand in another order, with axes of size one between them."""

    base: Ref
    axes: tuple[int | None, ...]  # axes of the base; None for an axis of size one


def as_view(graph: Graph, value: Ref | View) -> View:
    """A node as a view of itself."""
    if isinstance(value, View):
        return value
    shape = graph.nodes[value].shape
    return View(value, tuple(None if size == 1 else k for k, size in enumerate(shape)))


def shape_of(graph: Graph, value: Ref | View) -> Shape:
    """The shape as the person sees it."""
    view = as_view(graph, value)
    shape = graph.nodes[view.base].shape
    return tuple(1 if axis is None else shape[axis] for axis in view.axes)


def settle(graph: Graph, value: Any) -> Any:
    """A node in the place of a view; anything else as it is.

    Raises:
        Unsupported: the batch, or more than the last two axes of a parameter, has moved.
    """
    if not isinstance(value, View):
        return value
    order = [axis for axis in value.axes if axis is not None]
    base: int = value.base
    if order != sorted(order):
        swapped = [*order[:-2], order[-1], order[-2]]
        if BATCH in graph.nodes[base].shape or swapped != sorted(order):
            moved = "the batch" if BATCH in graph.nodes[base].shape else "axes of a parameter"
            raise Unsupported(f"it moves {moved}")
        squeezed = tuple(size for size in graph.nodes[base].shape if size != 1)
        base = graph.add("transpose", reshape(graph, base, squeezed))
    return Ref(reshape(graph, base, shape_of(graph, value)))


def permute(graph: Graph, value: Ref | View, dims: list[int]) -> View:
    """The axes in another order."""
    view = as_view(graph, value)
    return View(view.base, tuple(view.axes[d] for d in dims))


def transpose(graph: Graph, value: Ref | View, dim0: int, dim1: int) -> View:
    """Two axes exchanged."""
    view = as_view(graph, value)
    dims = list(range(len(view.axes)))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(graph, view, dims)


def unsqueeze(graph: Graph, value: Ref | View, dim: int) -> View:
    """An axis of size one more."""
    axes = list(as_view(graph, value).axes)
    axes.insert(dim if dim >= 0 else dim + len(axes) + 1, None)
    return View(as_view(graph, value).base, tuple(axes))


def squeeze(graph: Graph, value: Ref | View, dim: Any = None) -> View:
    """Axes of size one less."""
    view = as_view(graph, value)
    rank = len(view.axes)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims}
    kept = (a for k, a in enumerate(view.axes) if a is not None or k not in gone)
    return View(view.base, tuple(kept))


def view(graph: Graph, value: Ref | View, sizes: list[Any]) -> Ref | View:
    """Another shape: followed where only axes of size one come and go, else a reshape."""
    seen = as_view(graph, value)
    order = [axis for axis in seen.axes if axis is not None]
    if [s for s in shape_of(graph, seen) if s != 1] == [s for s in sizes if s != 1]:
        following = iter(order)
        return View(seen.base, tuple(None if s == 1 else next(following) for s in sizes))
    return Ref(reshape(graph, settle(graph, seen), tuple(sizes)))


def bmm(graph: Graph, a: Ref | View, w: Ref | View) -> View:
    """`(G, B, K) · (G, K, N)`, head by head: the product of `(B, G, K)`, seen as `(G, B, N)`."""
    (heads, batch, k), weight = shape_of(graph, a), settle(graph, w)
    left = settle(graph, transpose(graph, a, 0, 1))  # (B, G, K)
    n = graph.nodes[weight].shape[-1]
    if batch != BATCH or BATCH in graph.nodes[weight].shape:
        raise Unsupported("a product of two tensors that both depend on the input or the state")
    if heads == 1:
        left, weight = reshape(graph, left, (batch, k)), reshape(graph, weight, (k, n))
    product = reshape(graph, graph.add("product", left, weight), (batch, heads, n))
    return transpose(graph, Ref(product), 0, 1)


MOVES = {
    "permute": permute,
    "transpose": transpose,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "view": view,
    "_unsafe_view": view,
    "reshape": view,
    "bmm": bmm,
}
