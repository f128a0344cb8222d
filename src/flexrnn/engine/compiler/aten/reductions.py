"""What works along the hidden axis, or others behind the batch: sums, maxima, norms, softmax."""

import math
from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from typing import Any

from flexrnn.engine.compiler.aten import elementwise, views
from flexrnn.engine.compiler.aten.builder import Builder, Handlers, Ref, Unsupported, handles
from flexrnn.engine.compiler.cuts import MOST, added_up, places
from flexrnn.engine.compiler.graph import BATCH, Shape
from flexrnn.engine.compiler.turned import turned

HANDLERS: Handlers = {}
_FEW = 8  # places that are combined one by one
_NARROW = 4  # numbers of an axis, as many as leave most of a vector empty


def _axes(b: Builder, a: Ref, dims: Any) -> list[int]:
    """The axes that are reduced, from the end; the batch's is refused."""
    shape = b.shape(a)
    if not dims and not isinstance(dims, int):
        dims = range(len(shape))
    return sorted({b.axis(a, d) for d in ([dims] if isinstance(dims, int) else dims)})


def _count(b: Builder, a: Ref, dims: Any) -> int:
    return math.prod(int(b.shape(a)[axis]) for axis in _axes(b, a, dims))


def _moved(b: Builder, a: Ref, order: list[int]) -> Ref:
    return views.settle(b.graph, views.permute(b.graph, a, order))


def _with_last(b: Builder, a: Ref, axes: list[int]) -> list[int]:
    """An order of the axes in which some are behind all others."""
    rank = len(b.shape(a))
    return [k for k in range(rank) if k - rank not in axes] + [rank + axis for axis in axes]


def _in_a_row(b: Builder, a: Ref, axes: list[int]) -> Ref:
    """`a` with what is reduced along one axis, the last."""
    shape = b.shape(a)
    if axes == [-2] and (other := turned(b.graph, a)) is not None:
        return Ref(other)
    rest = [size for axis, size in zip(range(-len(shape), 0), shape, strict=True)
            if axis not in axes]  # fmt: skip
    moved = _moved(b, a, _with_last(b, a, axes))
    return b.reshape(moved, (*rest, math.prod(int(shape[axis]) for axis in axes)))


def _left(shape: Shape, axes: list[int], keepdim: bool) -> Shape:
    """What is left of a shape."""
    pairs = zip(range(-len(shape), 0), shape, strict=True)
    return tuple(1 if k in axes else size for k, size in pairs if keepdim or k not in axes)


def _reduced(name: str) -> Callable[..., Ref]:
    """A reduction by an operation of the graph."""

    def reduction(
        b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any
    ) -> Ref:
        axes = _axes(b, a, dims)
        return b.reshape(b.op(name, _in_a_row(b, a, axes)), _left(b.shape(a), axes, keepdim))

    return reduction


def _combined(b: Builder, a: Ref, axis: int, combine: Callable[[Ref, Ref], Ref]) -> Ref:
    """The places of one axis: each with its neighbour, while there are many; the rest in turn."""
    while (size := int(b.shape(a)[axis])) > _FEW:
        even = size - size % 2
        pairs = b.grouped(b.slice(a, axis, 0, even), axis, 2)
        made = combine(*(b.ungrouped(Ref(k), axis) for k in places(b.graph, pairs, axis)))
        a = b.concat([made, b.slice(a, axis, even, size)] if size > even else [made], axis)
    return reduce(combine, map(Ref, places(b.graph, a, axis)))


HANDLERS["amax"] = _amax = _reduced("amax")
_summed = _reduced("sum")


@handles(HANDLERS, "sum")
def _sum(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    axes = _axes(b, a, dims)
    if len(axes) > 1 and axes != [*range(-len(axes), 0)]:  # others stand behind: one by one
        total = reduce(lambda x, axis: _sum(b, x, axis, True), axes, a)
        return b.reshape(total, _left(b.shape(a), axes, keepdim))
    if axes == [-1] and (total := _of_narrow(b, b.real(a))) is not None:
        return b.reshape(total, _left(b.shape(a), axes, keepdim))
    if len(axes) != 1 or axes == [-1] or int(b.shape(a)[axes[0]]) > MOST >= int(b.shape(a)[-1]):
        return _summed(b, a, axes, keepdim)
    total = Ref(added_up(b.graph, b.real(a), axes[0]))
    return b.reshape(total, _left(b.shape(a), axes, keepdim))


def _of_narrow(b: Builder, a: Ref) -> Ref | None:
    """The sum along a last axis of two to four numbers, turned over where little moves for it."""
    shape = b.shape(a)
    if len(shape) < 3 or not 1 < int(shape[-1]) <= _NARROW or shape[-2] == BATCH:
        return None
    wide = int(shape[-2]) > _FEW and turned(b.graph, a)
    return Ref(added_up(b.graph, wide, -2)) if wide else None


@handles(HANDLERS, "prod")
def _prod(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    axes, left = _axes(b, a, dims), b.shape(a)
    axis = -2 if axes == [-2] else -1
    row = a if axis == -2 else _in_a_row(b, a, axes)
    shape = b.shape(row)
    if axis == -1 and len(shape) > 2 and min(map(int, shape[-2:])) > _FEW:
        row, axis = Ref(b.graph.add("transpose", row)), -2  # of all rows at once
    product = _combined(b, row, axis, lambda x, y: b.op("mul", x, y))
    return b.reshape(product, _left(left, axes, keepdim))


def _accumulated(name: str, verb: str) -> Callable[..., Ref]:
    """What an operation makes of the places of one axis in turn."""

    def accumulated(b: Builder, a: Ref, dim: int, **kwargs: Any) -> Ref:
        axis = b.axis(a, dim)
        if name == "add" and BATCH not in b.shape(a):
            raise Unsupported("it adds up what is the same for all rows, which torch does ahead")
        if (size := int(b.shape(a)[axis])) > MOST:
            raise Unsupported(
                f"it {verb} {size} numbers, of which a program has {MOST} at the most"
            )
        made = accumulate(map(Ref, places(b.graph, a, axis)), lambda x, y: b.op(name, x, y))
        return b.concat([*made], axis)

    return accumulated


HANDLERS |= {
    "cumprod": _accumulated("mul", "multiplies"),
    "cumsum": _accumulated("add", "adds up"),  # inside another of torch's; else it is spelt
}


def _running(no_better: str) -> Callable[..., list[Ref]]:
    """Of every place the best one up to there, of several the last; it gets the derivative."""

    def cummax(b: Builder, a: Ref, dim: int) -> list[Ref]:
        def better(best: Ref, other: Ref) -> Ref:
            nan = b.op("ne", other, other)
            stays = b.op("not", b.op("or", nan, b.op(no_better, best, other)))
            return b.op("where", stays, best, other)

        axis = b.axis(a, dim)
        if (size := int(b.shape(a)[axis])) > MOST:
            raise Unsupported(
                f"it compares {size} numbers, of which a program has {MOST} at the most"
            )
        return [b.concat([*accumulate(map(Ref, places(b.graph, a, axis)), better)], axis)]

    return cummax


HANDLERS |= {"cummax": _running("le"), "cummin": _running("ge")}


@handles(HANDLERS, "any")
def _any(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    return b.truth(_amax(b, b.real(b.truth(a)), dims, keepdim))


@handles(HANDLERS, "all")
def _all(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    return b.op("not", _any(b, b.op("not", a), dims, keepdim))


@handles(HANDLERS, "amin")
def _amin(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    return b.op("neg", _amax(b, b.op("neg", a), dims, keepdim))


@handles(HANDLERS, "max")
def _max(b: Builder, a: Ref, dim: int | None = None, keepdim: bool = False) -> Ref | list[Ref]:
    return _amax(b, a) if dim is None else [_first(b, a, dim, keepdim, "le")]


@handles(HANDLERS, "min")
def _min(b: Builder, a: Ref, dim: int | None = None, keepdim: bool = False) -> Ref | list[Ref]:
    return _amin(b, a) if dim is None else [_first(b, a, dim, keepdim, "ge")]


def _first(b: Builder, a: Ref, dim: int, keepdim: bool, no_better: str) -> Ref:
    """The value at the first best place, which gets all of the derivative; `amax` shares it."""

    def better(best: Ref, other: Ref) -> Ref:
        stays = b.op("or", b.op(no_better, other, best), b.op("ne", best, best))
        return b.op("where", stays, best, other)

    axis = b.axis(a, dim)
    return b.reshape(_combined(b, a, axis, better), _left(b.shape(a), [axis], keepdim))


@handles(HANDLERS, "mean")
def _mean(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    return b.op("div", _sum(b, a, dims, keepdim), float(_count(b, a, dims)))


def _centred(b: Builder, a: Ref) -> tuple[Ref, Ref]:
    """`a` less its mean along the last axis, and the sum of the squares of that."""
    centred = b.op("sub", a, _mean(b, a, -1, True))
    return centred, b.op("sum", b.op("mul", centred, centred))


@handles(HANDLERS, "var")
def _var(
    b: Builder, a: Ref, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> Ref:
    axes = _axes(b, a, dims)
    _, squares = _centred(b, _in_a_row(b, a, axes))
    freedom = _count(b, a, axes) - (1 if correction is None else correction)
    variance = b.op("div", squares, float(max(freedom, 0)))
    return b.reshape(variance, _left(b.shape(a), axes, keepdim))


@handles(HANDLERS, "std")
def _std(b: Builder, a: Ref, dims: Any = None, **kwargs: Any) -> Ref:
    return _root(b, _var(b, a, dims, **kwargs))


@handles(HANDLERS, "var_mean")
def _var_mean(b: Builder, a: Ref, dims: Any = None, *, keepdim: bool = False, **kw: Any) -> Any:
    return [_var(b, a, dims, keepdim=keepdim, **kw), _mean(b, a, dims, keepdim)]


@handles(HANDLERS, "std_mean")
def _std_mean(b: Builder, a: Ref, dims: Any = None, *, keepdim: bool = False, **kw: Any) -> Any:
    return [_std(b, a, dims, keepdim=keepdim, **kw), _mean(b, a, dims, keepdim)]


def _root(b: Builder, a: Ref) -> Ref:
    """The square root, whose derivative at 0 is taken as 0: a norm of nothing has no direction."""
    zero = b.op("eq", a, 0.0)
    return b.op("where", zero, 0.0, b.op("sqrt", b.op("where", zero, 1.0, a)))


def _of_order(b: Builder, a: Ref, order: float, dims: Any, keepdim: bool) -> Ref:
    """A norm by powers; flat at units that are 0, and where all of them are."""

    def power(a: Ref, exponent: float) -> Ref:
        zero = b.op("eq", a, 0.0)
        safe = b.op("where", zero, 1.0, a)
        return b.op("where", zero, 0.0, elementwise.SPELT["pow"](b, safe, exponent))

    return power(_sum(b, power(b.op("abs", a), order), dims, keepdim), 1 / order)


@handles(HANDLERS, "linalg_vector_norm", "norm")
def _norm(
    b: Builder, a: Ref, order: float = 2, dims: Any = None, keepdim: bool = False, **kwargs: Any
) -> Ref:
    if order == 1:
        return _sum(b, b.op("abs", a), dims, keepdim)
    if order == math.inf:
        return _amax(b, b.op("abs", a), dims, keepdim)
    if order == -math.inf:
        return _amin(b, b.op("abs", a), dims, keepdim)
    if order == 0:
        return _sum(b, b.op("ne", a, 0.0), dims, keepdim)
    if order != 2:
        if order < 0:
            raise Unsupported(f"a norm of order {order}")
        return _of_order(b, a, float(order), dims, keepdim)
    return _root(b, _sum(b, b.op("mul", a, a), dims, keepdim))


@handles(HANDLERS, "native_layer_norm")
def _layer_norm(
    b: Builder, a: Ref, shape: list[int], weight: Ref | None, bias: Ref | None, eps: float
) -> list[Ref]:
    row = _in_a_row(b, a, list(range(-len(shape), 0)))
    y = b.reshape(_standardized(b, row, eps), b.shape(a))
    return [_affine(b, y, weight, bias)]


@handles(HANDLERS, "native_group_norm")
def _group_norm(
    b: Builder,
    a: Ref,
    weight: Ref | None,
    bias: Ref | None,
    rows: Any,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> list[Ref]:
    shape = b.shape(a)
    heads = b.reshape(a, (BATCH, groups, channels * positions // groups))
    y = b.reshape(_standardized(b, heads, eps), shape)
    wide = (channels, *(1 for _ in shape[2:]))
    return [_affine(b, y, *(p if p is None else b.reshape(p, wide) for p in (weight, bias)))]


def _standardized(b: Builder, a: Ref, eps: float) -> Ref:
    """`a` with mean 0 and variance 1 along the last axis."""
    centred, squares = _centred(b, a)
    variance = b.op("div", squares, float(b.shape(a)[-1]))
    return b.op("mul", centred, b.op("rsqrt", b.op("add", variance, float(eps))))


def _affine(b: Builder, y: Ref, weight: Ref | None, bias: Ref | None) -> Ref:
    y = y if weight is None else b.op("mul", y, weight)
    return y if bias is None else b.op("add", y, bias)


@handles(HANDLERS, "_softmax")
def _softmax(b: Builder, a: Ref, dim: int, half_to_float: bool) -> Ref:
    order = _with_last(b, a, [b.axis(a, dim)])
    a = _moved(b, a, order)
    # Any shift gives the same: none of it belongs to the derivative.
    e = b.op("exp", b.op("sub", a, b.op("detach", b.op("amax", a))))
    y = b.op("div", e, b.op("sum", e))
    return _moved(b, y, [order.index(k) for k in range(len(order))])


@handles(HANDLERS, "logsumexp")
def _logsumexp(b: Builder, a: Ref, dims: Any, keepdim: bool = False) -> Ref:
    axes = _axes(b, a, dims)
    row = _in_a_row(b, a, axes)
    largest = b.op("detach", b.op("amax", row))
    finite = b.op("lt", b.op("abs", largest), math.inf)  # the shift must not make inf - inf
    shift = b.op("where", finite, largest, 0.0)
    total = b.op("sum", b.op("exp", b.op("sub", row, shift)))
    return b.reshape(b.op("add", b.op("log", total), shift), _left(b.shape(a), axes, keepdim))


# Which operand names the axes.
ALONG = dict.fromkeys(
    ("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "var", "std", "_softmax",
     "logsumexp", "cumprod", "cumsum", "cummax", "cummin", "std_mean", "var_mean", "flip"), 1
) | {"linalg_vector_norm": 2, "norm": 2, "roll": 2}  # fmt: skip


def reordered(
    b: Builder,
    along: Callable[..., Any],
    place: int,
    order: list[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What works along axes of a view whose batch is not first, by one whose batch is; then back.

    The axes are the operand at that place.
    """
    dims = args[place] if len(args) > place else None
    if dims is None or dims == []:
        raise Unsupported("it works across the batch")
    gone = [d % len(order) for d in ([dims] if isinstance(dims, int) else dims)]
    moved = [order.index(d) for d in gone]
    given = list(args)
    given[0] = views.settle(b.graph, views.reordered(b.graph, args[0], order))
    given[place] = moved[0] if isinstance(dims, int) else moved
    made = along(b, *given, **kwargs)

    def back(result: Ref) -> views.View:
        left = order if len(b.shape(result)) == len(order) else [d for d in order if d not in gone]
        return views.permute(b.graph, result, [left.index(d) for d in sorted(left)])

    return [*map(back, made)] if isinstance(made, list) else back(made)
