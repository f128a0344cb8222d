"""From aten's operations, as torch writes them down, to the graph's.

Axes that are only moved about are followed (`views.py`); an elementwise operation has a row in
`ops.OPS`, or is spelt by rows (`elementwise.py`); the rest is products, shapes and constants
(`shapes.py`, `beside.py`, `windows.py`) and what works along the hidden axis (`reductions.py`).
"""

from typing import Any

from flexrnn.engine.compiler.aten import (
    beside,
    custom,
    elementwise,
    joined,
    reductions,
    shapes,
    views,
    windows,
)
from flexrnn.engine.compiler.aten.builder import Builder, Ref, Unsupported, Value, number
from flexrnn.engine.compiler.aten.joined import VIEWS, Joined, Rows
from flexrnn.engine.compiler.aten.views import settle
from flexrnn.engine.compiler.ops import OPS

__all__ = [
    "CUSTOM",
    "DECOMPOSED",
    "VIEWS",
    "Builder",
    "Joined",
    "Ref",
    "Rows",
    "Unsupported",
    "Value",
    "lower",
    "promotes",
    "settle",
]

HANDLERS = shapes.HANDLERS | windows.HANDLERS | reductions.HANDLERS | custom.HANDLERS
CUSTOM = tuple(custom.HANDLERS)  # not aten's

# What torch itself can say by simpler operations, as autograd differentiates it.
DECOMPOSED = (
    *("addcdiv", "addcmul", "glu", "hardshrink", "softshrink", "threshold"),
    *("_log_softmax", "logit", "masked_fill", "mv", "_prelu_kernel", "special_entr"),
    *("new_full", "new_ones", "new_zeros"),
    *("addmv", "addr", "deg2rad", "rad2deg", "isinf", "isneginf", "isposinf", "nansum"),
    *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "rot90", "mse_loss", "aminmax"),
    "soft_margin_loss",
)


def lower(b: Builder, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    """What the aten operation `name` becomes: a node, or a list of nodes.

    Args:
        b: where nodes are made.
        name: without its overload.
        args, kwargs: of the operation; a `Ref` stands for a node.

    Raises:
        Unsupported: it has no form in the graph.
        ValueError: the operands' shapes do not fit.
    """
    if joined.is_made(name, args):
        return joined.join(b, args[0], args[1])
    if joined.is_joined(args):
        return joined.lower(b, name, args, kwargs, lower)
    if name == "expand" and views.is_stretched_in_front(b.graph, args[0], args[1]):
        return views.expand(b.graph, args[0], args[1])
    if name in views.MOVES:
        return views.MOVES[name](b.graph, *args, **kwargs)
    strided = name == "slice" and args[4:] not in ((), (1,))  # that makes an axis of its own
    if name in views.OF_VIEWS and isinstance(args[0], views.View) and not strided:
        return views.OF_VIEWS[name](b.graph, *args[:4], **kwargs)
    if name in shapes.UNMOVED and isinstance(args[0], views.View):
        return args[0]
    if name in beside.BESIDE:
        return beside.BESIDE[name](b, *args, **kwargs)
    if name in HANDLERS:
        if name in reductions.ALONG and (order := views.order_of(b.graph, args[:1])) is not None:
            place = reductions.ALONG[name]
            return reductions.reordered(b, HANDLERS[name], place, order, args, kwargs)
        if name in shapes.ALIKE and (order := views.batch_first(b.graph, [*args[:1]])) is not None:
            first = views.settle(b.graph, views.reordered(b.graph, args[0], order))
            made = HANDLERS[name](b, first, *args[1:], **kwargs)
            return views.permute(b.graph, made, [order.index(k) for k in range(len(order))])
        return HANDLERS[name](b, *(_settled(b, arg) for arg in args), **kwargs)
    # Of an elementwise operation every operand may be a number.
    row, spelling = OPS.get(name), elementwise.SPELT.get(name)
    if spelling is None and (row is None or kwargs or len(args) != len(row.domain)):
        raise Unsupported("it is not among the operations of the table")
    order = views.order_of(b.graph, args)
    if order is not None:
        args = tuple(views.reordered(b.graph, arg, order) for arg in args)
    args = tuple(_settled(b, arg) for arg in args)
    args = tuple(a if a is None or isinstance(a, Ref) else number(a) for a in args)
    made = b.op(name, *args) if spelling is None else spelling(b, *args, **kwargs)
    if order is None or isinstance(made, list):
        return made
    return views.permute(b.graph, made, [order.index(k) for k in range(len(order))])


def promotes(name: str) -> bool:
    """Whether an aten operation takes operands of several dtypes."""
    return elementwise.is_elementwise(name)


def _settled(b: Builder, arg: Any) -> Any:
    if isinstance(arg, list):
        return [settle(b.graph, a) for a in arg]
    return settle(b.graph, arg)
