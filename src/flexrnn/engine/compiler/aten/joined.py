"""Rows and heads that a person makes one axis: `h.view(-1, d)`, then a norm or a map for all.

A program has no axis of B·G rows. It computes with `(B, G, ...)`, and what is written as the same
for every row is the same for every head of every row. So it is with states that are stacked in
front of the batch, `states.view(-1, n)`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flexrnn.engine.compiler.aten import elementwise, reductions, views
from flexrnn.engine.compiler.aten.builder import TO_THE_END, Builder, Ref, Unsupported, Value
from flexrnn.engine.compiler.aten.shapes import ALIKE, UNMOVED
from flexrnn.engine.compiler.graph import BATCH


class Rows(NamedTuple):
    """A size: so many for each row of the batch."""

    times: int


class Joined(NamedTuple):
    """A node `(B, G, ...)`, seen as `(B·G, ...)`; or as `(G·B, ...)`, where heads stand first."""

    base: Ref
    behind: bool = False  # the batch is behind the heads
    lying: bool = False  # of one unit: `(1, B·G)` is what is seen of `(B, G, 1)`


VIEWS = ("view", "_unsafe_view", "reshape")
_TURNS = ("t", "transpose", "permute")
_AS_ONE = "it takes the batch and another axis as one; an axis of its own may do"
_BY_ROWS = ("mm", "addmm", "native_layer_norm", *ALIKE, *UNMOVED)
# Where an operation names axes.
_AXES = reductions.ALONG | {"cat": 1, "slice": 1, "select": 1, "unbind": 1, "unsqueeze": 1,
                            "split": 2, "split_with_sizes": 2}  # fmt: skip


def join(b: Builder, value: Value, sizes: list[Any]) -> Joined:
    """A node seen as one whose first axis are the rows, so many for each."""
    heads = sizes[0].times
    if isinstance(value, Joined):
        base, behind = value.base, value.behind
        before = b.shape(base)[1] if behind else heads
    else:
        shape = views.shape_of(b.graph, value)
        place = shape.index(BATCH) if BATCH in shape else 0
        before = math.prod(int(size) for size in shape[:place])
        behind = before != 1
        if place:
            order = [place, *(k for k in range(len(shape)) if k != place)]
            value = views.permute(b.graph, value, order)
        base = views.settle(b.graph, value)
    if behind and before != heads:
        raise Unsupported("it moves the batch")
    return Joined(b.reshape(base, (BATCH, heads, *sizes[1:])), behind)


def is_joined(args: Any) -> bool:
    """Whether there is one among operands."""
    return any(isinstance(value, Joined) for value in _values(args))


def lower(
    b: Builder,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    lowered: Callable[..., Any],
) -> Value:
    """An operation on rows of the batch and of heads alike, by the one on both axes.

    Args:
        b, name, args, kwargs: as of `aten.lower`.
        lowered: that.
    """
    if name in _TURNS:
        rank = len(b.shape(args[0].base)) - 1
        return _turned(b, args[0], _order(name, rank, args[1:]))
    values = [*_values(args)]
    seen = [value for value in values if isinstance(value, Joined)]
    if any(value.lying for value in seen) and name not in (*VIEWS, *UNMOVED):
        raise Unsupported(_AS_ONE)
    heads, behind = {b.shape(value.base)[1] for value in seen}, {value.behind for value in seen}
    others = [value for value in values if isinstance(value, (Ref, views.View))]
    shapes = [views.shape_of(b.graph, value) for value in others]
    rank = min(len(b.shape(value.base)) - 1 for value in seen)
    if any(len(shape) > rank for shape in shapes) and elementwise.is_elementwise(name):
        raise Unsupported("it puts an axis in front of the batch, which another has joined")
    if len(heads) > 1 or len(behind) > 1 or any(BATCH in shape for shape in shapes):
        raise Unsupported("it joins the batch with another axis, beside what is not so joined")
    plain = _apart(args)
    if name in VIEWS:
        return _in_front(b, seen[0], args[1]) if seen[0].behind else lowered(b, name, plain, kwargs)
    if name == "slice" and args[1:3] in ((0, 0), (0, None)) and args[3:] in ((), (TO_THE_END,)):
        return args[0]
    if name in _AXES:
        plain = _behind(plain, _AXES[name], rank + (name == "unsqueeze"))
    elif not elementwise.is_elementwise(name) and name not in _BY_ROWS:
        raise Unsupported(_AS_ONE)
    made = lowered(b, name, plain, kwargs)
    several = isinstance(made, list)
    nodes = [views.settle(b.graph, value) for value in (made if several else [made])]
    found = [Joined(node, seen[0].behind) for node in nodes]
    return found if several else found[0]


def _turned(b: Builder, value: Joined, order: list[int]) -> Joined:
    """Axes in another order: those behind the rows, or both of rows that have one unit.

    The latter are turned by `Categorical.sample`, and made of several axes again.
    """
    rank = len(b.shape(value.base)) - 1
    if order == [*range(rank)]:
        return value
    if order == [1, 0] and b.shape(value.base)[2] == 1:
        return value._replace(lying=not value.lying)
    if order[0] != 0 or value.lying:
        raise Unsupported(_AS_ONE)
    moved = views.permute(b.graph, value.base, [0, *(k + 1 for k in order)])
    return value._replace(base=views.settle(b.graph, moved))


def _order(name: str, rank: int, dims: tuple[Any, ...]) -> list[int]:
    """In which order axes stand behind one of `_TURNS`."""
    if name == "permute":
        return [d % rank for d in dims[0]]
    order = [*range(rank)]
    first, second = dims or (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return order


def _in_front(b: Builder, value: Joined, sizes: list[Any]) -> views.View:
    """Heads in front of the batch, apart from it again; they may be several axes."""
    before = sizes[: sizes.index(BATCH)] if BATCH in sizes else []
    if math.prod(before) != b.shape(value.base)[1]:
        raise Unsupported("it moves the batch")
    place = len(before)
    base = b.reshape(value.base, (BATCH, *before, *sizes[place + 1 :]))
    order = [*range(1, place + 1), 0, *range(place + 1, len(sizes))]
    return views.permute(b.graph, base, order)


def _behind(args: tuple[Any, ...], place: int, rank: int) -> tuple[Any, ...]:
    """Operands with axes as they count where the first one is two."""
    dims = args[place] if len(args) > place else 0
    several = [dims] if isinstance(dims, int) else dims
    if not several or any(dim in (0, -rank) for dim in several):
        raise Unsupported("it works across the batch")
    moved = [dim + 1 if dim > 0 else dim for dim in several]
    return (*args[:place], moved[0] if isinstance(dims, int) else moved, *args[place + 1 :])


def _values(args: Any) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, list):
            yield from _values(arg)
        else:
            yield arg


def _apart(args: Any) -> Any:
    """Operands with nodes in the place of what is seen of them."""
    kind = list if isinstance(args, list) else tuple
    return kind(
        arg.base if isinstance(arg, Joined) else _apart(arg) if isinstance(arg, list) else arg
        for arg in args
    )
