"""Rows and heads that a person makes one axis: `h.view(-1, d)`, then a norm or a map for all.

A program has no axis of B·G rows. It computes with `(B, G, ...)`, and what is written as the same
for every row is the same for every head of every row.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flexrnn.engine.compiler.aten import elementwise, reductions, views
from flexrnn.engine.compiler.aten.builder import TO_THE_END, Builder, Ref, Unsupported, Value
from flexrnn.engine.compiler.aten.shapes import UNMOVED
from flexrnn.engine.compiler.graph import BATCH


class Rows(NamedTuple):
    """A size: so many for each row of the batch."""

    times: int


class Joined(NamedTuple):
    """A node `(B, G, ...)`, seen as `(B·G, ...)`."""

    base: Ref


VIEWS = ("view", "_unsafe_view", "reshape")
_BY_ROWS = ("mm", "addmm", "native_layer_norm", "_to_copy", "detach", *UNMOVED)
# Where an operation names axes.
_AXES = reductions.ALONG | {"cat": 1, "slice": 1, "select": 1, "unbind": 1, "unsqueeze": 1,
                            "split": 2, "split_with_sizes": 2}  # fmt: skip


def join(b: Builder, value: Value, sizes: list[Any]) -> Joined:
    """A node seen as one whose first axis are the rows, so many for each."""
    base = value.base if isinstance(value, Joined) else views.settle(b.graph, value)
    return Joined(b.reshape(base, (BATCH, sizes[0].times, *sizes[1:])))


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
    values = [*_values(args)]
    heads = {b.shape(value.base)[1] for value in values if isinstance(value, Joined)}
    others = [value for value in values if isinstance(value, (Ref, views.View))]
    shapes = [views.shape_of(b.graph, value) for value in others]
    rank = min(len(b.shape(v.base)) - 1 for v in values if isinstance(v, Joined))
    if any(len(shape) > rank for shape in shapes) and elementwise.is_elementwise(name):
        raise Unsupported("it puts an axis in front of the batch, which another has joined")
    if len(heads) > 1 or any(BATCH in shape for shape in shapes):
        raise Unsupported("it joins the batch with another axis, beside what is not so joined")
    plain = _apart(args)
    if name in VIEWS:
        return lowered(b, name, plain, kwargs)
    if name == "slice" and args[1:3] in ((0, 0), (0, None)) and args[3:] in ((), (TO_THE_END,)):
        return args[0]
    if name in _AXES:
        plain = _behind(plain, _AXES[name], rank + (name == "unsqueeze"))
    elif not elementwise.is_elementwise(name) and name not in _BY_ROWS:
        raise Unsupported("it takes the batch and another axis as one; an axis of its own may do")
    made = lowered(b, name, plain, kwargs)
    several = isinstance(made, list)
    found = [Joined(views.settle(b.graph, value)) for value in (made if several else [made])]
    return found if several else found[0]


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
