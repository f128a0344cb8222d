"""Views: axes that a person moves about, followed until an operation needs to know where they are.

A program keeps the batch first. `einsum` and `bmm` move it, multiply head by head, and move it
back: followed as a view, nothing is moved at all, and what remains is one product by heads.
"""

import math
from itertools import accumulate
from typing import Any, NamedTuple

from flexrnn.engine.compiler.aten.builder import TO_THE_END, Ref, Unsupported, reshape
from flexrnn.engine.compiler.cuts import MOST, added_up, places
from flexrnn.engine.compiler.graph import BATCH, Graph, Shape
from flexrnn.engine.compiler.matrices import are_many, times

_FEW = 8  # places of which each is taken by itself, as an operation on it alone may do


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
        Unsupported: the batch, or more than the last two axes of a parameter, has moved; or two
            axes behind the batch, not both of them the last, each of more than `MOST` places.
    """
    if not isinstance(value, View):
        return value
    order = [axis for axis in value.axes if axis is not None]
    base: int = value.base
    if order != sorted(order):
        shape = graph.nodes[base].shape
        squeezed = tuple(size for size in shape if size != 1)
        order = [sorted(order).index(axis) for axis in order]
        base = reshape(graph, base, squeezed)
        if BATCH in shape:  # which is always the first
            if order[0]:
                raise Unsupported("it moves the batch")
            base = _rows_reordered(graph, base, order)
        elif order == [*range(len(order) - 2), len(order) - 1, len(order) - 2]:
            base = graph.add("transpose", base)
        else:
            raise Unsupported("it moves axes of a parameter")
    return Ref(reshape(graph, base, shape_of(graph, value)))


def _rows_reordered(graph: Graph, base: int, order: list[int]) -> int:
    """A node with its axes behind the batch in another order, where none has size one.

    The last two change places. Of others one comes forward, or one goes back, whichever has fewer
    places, one after another.
    """
    shape = graph.nodes[base].shape
    moved = next((k for k, axis in enumerate(order) if k != axis), None)
    if moved is None:
        return base
    forward, back = order[moved], moved  # axes of the base
    sizes = int(shape[forward]), int(shape[back])
    if moved == len(order) - 2 and min(sizes) > _FEW:
        return graph.add("transpose", base)
    if min(sizes) > MOST:
        raise Unsupported(f"it swaps axes behind the batch of {sizes[1]} and {sizes[0]} places")
    source, target = (forward, back) if sizes[0] <= sizes[1] else (back, order.index(back))
    rest = [*shape[:source], *shape[source + 1 :]]
    wide = (*rest[:target], 1, *rest[target:])
    axis = source - len(shape)
    parts = [reshape(graph, part, wide) for part in places(graph, base, axis)]
    made = graph.add("concat", *parts, axis=target - len(shape))
    now = list(range(len(shape)))  # axes of the base, as they stand
    now.insert(target, now.pop(source))
    return _rows_reordered(graph, made, [now.index(axis) for axis in order])


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


def is_stretched_in_front(graph: Graph, value: Any, sizes: list[Any]) -> bool:
    """Whether an expansion puts axes in front of the batch, or has the batch behind others."""
    if not isinstance(value, (Ref, View)):
        return False
    shape = shape_of(graph, value)
    if BATCH not in shape:
        return BATCH in sizes[1:]
    return BATCH in shape and shape.index(BATCH) + len(sizes) - len(shape) > 0


def expand(graph: Graph, value: Ref | View, sizes: list[Any]) -> View:
    """Axes of size one become larger, and more are put in front of the batch."""
    view = as_view(graph, value)
    wide = View(view.base, (None,) * (len(sizes) - len(view.axes)) + view.axes)
    old = shape_of(graph, wide)
    shape = tuple(o if s == -1 else s for s, o in zip(sizes, old, strict=True))
    first = shape.index(BATCH)
    order = [first, *(k for k in range(len(shape)) if k != first)]
    base = settle(graph, permute(graph, wide, order))
    made = graph.add("expand", base, shape=tuple(shape[k] for k in order))
    return permute(graph, Ref(made), [order.index(k) for k in range(len(order))])


def turn(graph: Graph, value: Ref | View) -> Ref | View:
    """Both axes exchanged; what has one axis stays."""
    return value if len(as_view(graph, value).axes) < 2 else transpose(graph, value, 0, 1)


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
    """Another shape: followed where axes are split, joined in order, or of size one."""
    seen = _joined(graph, as_view(graph, value), [s for s in sizes if s != 1])
    if (parts := _parts(graph, seen, [s for s in sizes if s != 1])) is None:
        return Ref(reshape(graph, settle(graph, seen), tuple(sizes)))
    numbers, count = {}, 0  # of the new base's axes, by those of the old
    for axis in sorted(parts):
        numbers[axis] = range(count, count + len(parts[axis]))
        count += len(parts[axis])
    shape = tuple(size for axis in sorted(parts) for size in parts[axis])
    following = iter([k for axis in seen.axes if axis is not None for k in numbers[axis]])
    base = Ref(reshape(graph, seen.base, shape))
    return View(base, tuple(None if s == 1 else next(following) for s in sizes))


def _joined(graph: Graph, seen: View, sizes: list[Any]) -> View:
    """Axes of a parameter that become one, where they stand side by side in the base."""
    old = graph.nodes[seen.base].shape
    axes = [axis for axis in seen.axes if axis is not None]
    if BATCH in old or axes == sorted(axes):
        return seen
    groups: list[list[int]] = []
    for size in sizes:
        group = [axes.pop(0)] if axes else []
        while axes and math.prod(int(old[k]) for k in group) < size:
            group.append(axes.pop(0))
        groups.append(group)
    full = [k for k, size in enumerate(old) if size != 1]
    for group in groups:
        first = full.index(group[0]) if group else 0
        if not group or full[first : first + len(group)] != group:
            return seen
    rising = sorted(groups)
    shape = tuple(math.prod(int(old[k]) for k in group) for group in rising)
    return View(Ref(reshape(graph, seen.base, shape)), tuple(map(rising.index, groups)))


def _parts(graph: Graph, seen: View, sizes: list[Any]) -> dict[int, list[Any]] | None:
    """Which of the sizes, none of them 1, each axis of the base becomes; None if any is joined."""
    parts: dict[int, list[Any]] = {}
    rest = list(sizes)
    for axis in seen.axes:
        if axis is None:
            continue
        size: Any = graph.nodes[seen.base].shape[axis]
        taken: list[Any] = []
        while rest and (not taken or (_are_known([size, *taken]) and math.prod(taken) < size)):
            taken.append(rest.pop(0))
        # The batch, or what it is joined with, is one size and no product of others.
        if taken != [size] and not (_are_known([size, *taken]) and math.prod(taken) == size):
            return None
        parts[axis] = taken
    return None if rest else parts


def _are_known(sizes: list[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def select(graph: Graph, value: View, dim: int, index: int) -> View:
    """One place along an axis."""
    size = shape_of(graph, value)[dim]
    first = index if index >= 0 or size == BATCH else index + int(size)
    return squeeze(graph, cut(graph, value, dim, first, first + 1), dim)


def cut(graph: Graph, value: View, dim: int = 0, start: Any = None, stop: Any = None) -> View:
    """A part of an axis, without a step.

    Raises:
        Unsupported: the axis is the batch, and the part is not all of it.
    """
    axis, size = value.axes[dim], shape_of(graph, value)[dim]
    if size == BATCH:
        if start in (None, 0) and (stop in (None, BATCH) or stop >= TO_THE_END):
            return value
        raise Unsupported("it works across the batch")
    start, stop, _ = slice(start, stop).indices(int(size))
    if (start, stop) == (0, size):
        return value
    if not start < stop:
        return nothing(graph, value, dim)
    if axis is None:
        raise Unsupported("a slice of nothing")
    base = graph.nodes[value.base].shape
    node = graph.add("slice", value.base, axis=axis - len(base), start=start, stop=stop)
    axes = (None if k == axis and stop - start == 1 else k for k in value.axes)
    return View(Ref(node), tuple(axes))


def nothing(graph: Graph, value: Ref | View, dim: int) -> View:
    """What is left of a value where an axis has no place any more."""
    shape = [*shape_of(graph, value)]
    shape[dim] = 0
    order = sorted(range(len(shape)), key=lambda k: shape[k] != BATCH)
    made = graph.add("expand", graph.constant(0.0), shape=tuple(shape[k] for k in order))
    return permute(graph, Ref(made), [order.index(k) for k in range(len(order))])


def split(graph: Graph, value: View, sizes: Any, dim: int = 0) -> list[View]:
    """Parts of an axis, of one size or of several."""
    total: Any = shape_of(graph, value)[dim]
    if total == BATCH:
        raise Unsupported("it works across the batch")
    each = [sizes] * -(-total // sizes) if isinstance(sizes, int) else sizes
    stops = [*accumulate(each)]
    return [cut(graph, value, dim, at - n, at) for at, n in zip(stops, each, strict=True)]


def unbind(graph: Graph, value: View, dim: int = 0) -> list[View]:
    """Every place along an axis."""
    size = shape_of(graph, value)[dim]
    if size == BATCH:
        raise Unsupported("it works across the batch")
    return [select(graph, value, dim, k) for k in range(int(size))]


def order_of(graph: Graph, values: tuple[Any, ...]) -> list[int] | None:
    """The order of axes in which the batch of all operands is first; None where it is already."""
    seen = [value for value in values if isinstance(value, (Ref, View))]
    rank = max((len(as_view(graph, value).axes) for value in seen), default=0)
    for value in seen:
        shape = shape_of(graph, value)
        ahead = rank - len(shape)  # axes that another operand puts in front of this one's
        if BATCH in shape[1:] or (ahead and BATCH in shape):
            view = as_view(graph, value)
            last = len(graph.nodes[view.base].shape)
            key = [last if axis is None else axis for axis in view.axes]
            first, *rest = (k + ahead for k in sorted(range(len(key)), key=lambda k: key[k]))
            return [first, *range(ahead), *rest]
    return None


def batch_first(graph: Graph, values: list[Any]) -> list[int] | None:
    """The order of axes in which the batch comes first and all others stay; None where it does."""
    for value in values:
        shape = shape_of(graph, value)
        if BATCH in shape[1:]:
            place = shape.index(BATCH)
            return [place, *(k for k in range(len(shape)) if k != place)]
    return None


def reordered(graph: Graph, value: Any, order: list[int]) -> Any:
    """An operand with its axes in another order, of as many axes as that has."""
    if not isinstance(value, (Ref, View)):
        return value
    axes = as_view(graph, value).axes
    if len(axes) > len(order):
        raise Unsupported("it moves the batch")
    wide = View(as_view(graph, value).base, (None,) * (len(order) - len(axes)) + axes)
    return permute(graph, wide, order)


def mm(graph: Graph, a: Ref | View, w: Ref | View) -> Ref | View:
    """`(B, K) · (K, N)`; `W hᵀ` is `(h Wᵀ)ᵀ`."""
    if BATCH in shape_of(graph, w) and BATCH not in shape_of(graph, a):
        return transpose(
            graph, mm(graph, transpose(graph, w, 0, 1), transpose(graph, a, 0, 1)), 0, 1
        )
    weight = settle(graph, w)
    if BATCH in graph.nodes[weight].shape:
        raise Unsupported("it works across the batch")
    return Ref(graph.add("product", settle(graph, a), weight))


def bmm(graph: Graph, a: Ref | View, w: Ref | View) -> View:
    """`(G, B, K) · (G, K, N)`, head by head: the product of `(B, G, K)`, seen as `(G, B, N)`."""
    left, right = shape_of(graph, a), shape_of(graph, w)
    if left[0] == right[0] == BATCH:
        return _product_of_rows(graph, as_view(graph, a), as_view(graph, w))
    if BATCH in right and BATCH not in left:
        swapped = bmm(graph, transpose(graph, w, 1, 2), transpose(graph, a, 1, 2))
        return transpose(graph, swapped, 1, 2)
    (heads, batch, k), weight = left, settle(graph, w)
    if batch != BATCH or BATCH in right:
        raise Unsupported("a product of two tensors that both depend on the input or the state")
    operand = settle(graph, transpose(graph, a, 0, 1))  # (B, G, K)
    n = graph.nodes[weight].shape[-1]
    if heads == 1:
        operand, weight = reshape(graph, operand, (batch, k)), reshape(graph, weight, (k, n))
    elif graph.nodes[weight].op == "expand":  # one weight for all heads
        weight = reshape(graph, graph.nodes[weight].args[0], (k, n))
    product = reshape(graph, graph.add("product", operand, weight), (batch, heads, n))
    return transpose(graph, Ref(product), 0, 1)


def _product_of_rows(graph: Graph, a: View, w: View) -> View:
    """`(B, M, K) · (B, K, N)`, row by row; of few numbers their products, and the sum over K.

    The three axes stand in an order then in which nothing of either operand has to move.
    """
    sizes = (int(size) for size in (*shape_of(graph, a)[1:], shape_of(graph, w)[2]))
    if are_many(*sizes):
        return as_view(graph, Ref(times(graph, settle(graph, a), settle(graph, w))))
    m_k = None in a.axes or a.axes[1] < a.axes[2]  # pyright: ignore[reportOperatorIssue]
    n_k = None in w.axes or w.axes[2] < w.axes[1]  # pyright: ignore[reportOperatorIssue]
    order = {(True, True): "mnk", (True, False): "mkn", (False, True): "nkm"}.get((m_k, n_k), "kmn")
    axes = [dict(zip("bmk", a.axes, strict=True)), dict(zip("bkn", w.axes, strict=True))]
    alone = shape_of(graph, a)[2] == 1  # the sum has one term
    order = order.replace("k", "") if alone else order
    operands = [
        settle(graph, View(view.base, tuple(names.get(name) for name in "b" + order)))
        for view, names in zip((a, w), axes, strict=True)
    ]
    total = graph.add("mul", *operands)
    found = as_view(graph, Ref(total))
    if not alone:
        k = order.index("k") - 3
        total = graph.add("sum", total) if k == -1 else added_up(graph, total, k)
        found = squeeze(graph, Ref(total), k)
    return found if order.index("m") < order.index("n") else transpose(graph, found, 1, 2)


MOVES = {
    "permute": permute,
    "transpose": transpose,
    "t": turn,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "view": view,
    "_unsafe_view": view,
    "reshape": view,
    "mm": mm,
    "bmm": bmm,
}
OF_VIEWS = {  # what nodes have their own of
    "select": select,
    "slice": cut,
    "split": split,
    "split_with_sizes": split,
    "unbind": unbind,
}
