"""Rows and units that a person makes one axis: `h.view(-1, d)`, then a norm or a map for all.

A program has no axis of B·G rows. It computes with `(B, G, ...)`, and what is written as the same
for every row is the same for every head of every row. So it is with states that are stacked in
front of the batch, `states.view(-1, n)`, and with all that the nodes of a graph have,
`A @ z.view(n, -1)` where z is `(N, S, B)`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flexrnn.engine.compiler.aten import elementwise, reductions, views
from flexrnn.engine.compiler.aten.builder import TO_THE_END, Builder, Ref, Unsupported, Value
from flexrnn.engine.compiler.aten.shapes import ALIKE, UNMOVED
from flexrnn.engine.compiler.graph import BATCH
from flexrnn.engine.compiler.matrices import times


class Rows(NamedTuple):
    """A size: so many for each row of the batch."""

    times: int


class Joined(NamedTuple):
    """A node `(B, G, ...)`, seen as `(B·G, ...)`; or as `(G·B, ...)`, where heads stand first."""

    base: Ref
    behind: bool = False  # the batch is behind the heads
    at: int = 0  # where among the other axes both are seen


VIEWS = ("view", "_unsafe_view", "reshape")
_TURNS = ("t", "transpose", "permute")
_AS_ONE = "it takes the batch and another axis as one; an axis of its own may do"
_BY_ROWS = ("mm", "addmm", "native_layer_norm")  # where both are the first axis
_ALIKE = (*ALIKE, *UNMOVED)
_NEW = ("unsqueeze", "stack")  # which make an axis
_CUTS = ("cat", "stack", "slice", "select", "unbind", "split", "split_with_sizes")
# Where an operation names axes.
_AXES = (
    reductions.ALONG
    | dict.fromkeys(("unsqueeze", "squeeze", *_CUTS), 1)
    | {"split": 2, "split_with_sizes": 2}
)


def is_made(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation makes one axis of rows and others."""
    return name in VIEWS and any(isinstance(size, Rows) for size in args[1])


def join(b: Builder, value: Value, sizes: list[Any]) -> Joined:
    """A node seen as one of whose axes one are the rows, so many for each."""
    at = next(k for k, size in enumerate(sizes) if isinstance(size, Rows))
    before, heads, after = sizes[:at], sizes[at].times, sizes[at + 1 :]
    if isinstance(value, Joined):
        behind, between = value.behind, b.shape(value.base)[1] if value.behind else 1
        ahead = b.shape(value.base)[2 : 2 + value.at]
        value = _in_order(b, value)
    else:
        shape = views.shape_of(b.graph, value)
        place = shape.index(BATCH) if BATCH in shape else 0
        fits = (k for k in range(place + 1) if _times(shape[:k]) == _times(before))
        ahead = shape[: next(fits, 0)]
        between = _times(shape[len(ahead) : place])
        behind = between != 1
        value = views.permute(b.graph, value, _first(place, len(shape)))
    if _times(ahead) != _times(before) or (behind and between != heads):
        raise Unsupported("it moves the batch")
    seen = views.view(b.graph, value, [BATCH, *before, heads, *after])
    order = [0, at + 1, *(k for k in range(1, len(sizes) + 1) if k != at + 1)]
    return Joined(views.settle(b.graph, views.permute(b.graph, seen, order)), behind, at)


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
    seen = [value for value in _values(args) if isinstance(value, Joined)]
    first, others = seen[0], [v for v in _values(args) if isinstance(v, (Ref, views.View))]
    heads, behind = {b.shape(value.base)[1] for value in seen}, {value.behind for value in seen}
    shapes = [views.shape_of(b.graph, value) for value in others]
    if len(heads) > 1 or len(behind) > 1 or any(BATCH in shape for shape in shapes):
        raise Unsupported("it joins the batch with another axis, beside what is not so joined")
    if name in VIEWS:
        return _parted(b, first, args[1])
    if name in _TURNS:
        return _turned(b, first, _order(name, _rank(b, first), args[1:]))
    if name == "mm" and args[1] is first and first.at == 1 and len(seen) == 1:
        turned = _turned(b, first, [1, 0]), views.transpose(b.graph, args[0], 0, 1)
        return _turned(b, lower(b, name, turned, kwargs, lowered), [1, 0])
    if name == "bmm" and len(seen) == 2 and not any(value.at for value in seen):
        return Joined(Ref(times(b.graph, *(b.real(value.base) for value in args))), first.behind)
    if elementwise.is_elementwise(name) or name in _ALIKE:
        rank = max(*(_rank(b, value) for value in seen), *map(len, shapes), 0)
        at = {value.at + rank - _rank(b, value) for value in seen}
        if len(at) > 1:
            raise Unsupported(_AS_ONE)
        aligned = [_aligned(b, value, rank, *at) for value in args]
        return _seen(b, lowered(b, name, tuple(aligned), kwargs), first.behind, *at)
    if name in _AXES:
        return _along(b, name, args, seen, lambda *plain: lowered(b, name, plain, kwargs))
    if name not in _BY_ROWS or any(value.at for value in seen):
        raise Unsupported(_AS_ONE)
    return _seen(b, lowered(b, name, _apart(args), kwargs), first.behind, 0)


def _seen(b: Builder, made: Any, behind: bool, at: int) -> Value:
    if isinstance(made, list):
        return [_seen(b, value, behind, at) for value in made]
    return Joined(views.settle(b.graph, made), behind, at)


def _rank(b: Builder, value: Joined) -> int:
    """How many axes are seen."""
    return len(b.shape(value.base)) - 1


def _in_order(b: Builder, value: Joined) -> views.View:
    """With the heads where they are seen, the batch in front of all."""
    rest = [k + (k <= value.at) for k in range(1, len(b.shape(value.base)))]
    rest[value.at] = 1
    return views.permute(b.graph, value.base, [0, *rest])


def _turned(b: Builder, value: Joined, order: list[int]) -> Joined:
    """Axes in another order."""
    rest = [2 + d - (d > value.at) for d in order if d != value.at]
    moved = views.permute(b.graph, value.base, [0, 1, *rest])
    return Joined(views.settle(b.graph, moved), value.behind, order.index(value.at))


def _order(name: str, rank: int, dims: tuple[Any, ...]) -> list[int]:
    """In which order axes stand behind one of `_TURNS`."""
    if name == "permute":
        return [d % rank for d in dims[0]]
    order = [*range(rank)]
    first, second = dims or (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return order


def _parted(b: Builder, value: Joined, sizes: list[Any]) -> views.View:
    """The batch apart from its heads again; what was on either side of it stays there."""
    place = sizes.index(BATCH) if BATCH in sizes else 0
    before = b.shape(value.base)[1 if value.behind else 2 : 2 + value.at]
    if _times(sizes[:place]) != _times(before):
        raise Unsupported("it moves the batch")
    rest = [*sizes[:place], *sizes[place + 1 :]]
    seen = views.view(b.graph, _in_order(b, value), [BATCH, *rest])
    order = [*range(1, place + 1), 0, *range(place + 1, len(sizes))]
    return views.permute(b.graph, seen, order)


def _aligned(b: Builder, value: Any, rank: int, at: int) -> Any:
    """An operand of an elementwise operation, whose axes stand as those of a node `(B, G, ...)`."""
    if isinstance(value, Joined):
        shape = b.shape(value.base)
        return b.reshape(value.base, (*shape[:2], *(1,) * (rank + 1 - len(shape)), *shape[2:]))
    if not isinstance(value, (Ref, views.View)) or not at:
        return value
    wide = views.as_view(b.graph, value)
    axes = (None,) * (rank - len(wide.axes)) + wide.axes
    return views.permute(b.graph, views.View(wide.base, axes), _first(at, rank))


def _along(
    b: Builder,
    name: str,
    args: tuple[Any, ...],
    seen: list[Joined],
    run: Callable[..., Any],
) -> Value:
    """An operation along other axes, which `run` makes of nodes."""
    first, rank, place = seen[0], _rank(b, seen[0]), _AXES[name]
    if any(_rank(b, value) != rank or value.at != first.at for value in seen):
        raise Unsupported(_AS_ONE)
    dims = args[place] if len(args) > place else 0 if name in _CUTS else None
    new = name in _NEW
    several = [d % (rank + new) for d in ([dims] if isinstance(dims, int) else dims or [])]
    whole = args[2:3] in ((), (0,), (None,)) and args[3:] in ((), (TO_THE_END,))
    if name == "slice" and several == [first.at] and whole:
        return first
    at = first.at + sum(d <= first.at for d in several) if new else first.at
    if not several or (at in several):
        raise Unsupported("it works across the batch")
    moved = [d + 1 + (d < at) for d in several]
    plain = _apart(args)
    made = run(*plain[:place], moved[0] if isinstance(dims, int) else moved, *plain[place + 1 :])
    one = made[0] if isinstance(made, list) else made
    gone = rank + 1 - len(views.shape_of(b.graph, one))
    if gone > 0 and gone != len(several):
        raise Unsupported(_AS_ONE)
    return _seen(b, made, first.behind, at - sum(d < at for d in several) * (gone > 0))


def _first(place: int, rank: int) -> list[int]:
    """The order of axes in which one is the first."""
    return [place, *(k for k in range(rank) if k != place)]


def _times(sizes: Any) -> int:
    if not all(isinstance(size, int) for size in sizes):
        raise Unsupported("it moves the batch")
    return math.prod(sizes)


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
