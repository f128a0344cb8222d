"""What works along the hidden axis: sums, maxima, means, norms, softmax."""

import math
from typing import Any

from flexrnn.engine.compiler.aten.builder import (
    Builder,
    Handlers,
    Ref,
    Unsupported,
    handles,
    without,
)
from flexrnn.engine.compiler.graph import BATCH

HANDLERS: Handlers = {}


def _axis(b: Builder, a: Ref, dims: Any) -> int:
    """The one axis that is reduced; the batch's is refused, and so are several."""
    axes = {b.axis(a, d) for d in ([dims] if isinstance(dims, int) else dims or [])}
    if len(axes) != 1:
        raise Unsupported("a reduction over several axes at once")
    return axes.pop()


def _last(b: Builder, a: Ref, dims: Any) -> None:
    if _axis(b, a, dims) != -1:
        raise Unsupported("a reduction over anything but the last axis")


def _shaped(b: Builder, reduced: Ref, axis: int, keepdim: bool) -> Ref:
    return reduced if keepdim else b.reshape(reduced, without(b.shape(reduced), axis))


def _is_of_all(dims: Any) -> bool:
    return not dims and not isinstance(dims, int)


def _in_a_row(b: Builder, a: Ref) -> Ref:
    """All numbers of a parameter along one axis."""
    return b.reshape(a, (_count(b.shape(a)),))


@handles(HANDLERS, "sum")
def _sum(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    if _is_of_all(dims):
        return b.reshape(b.op("sum", _in_a_row(b, a)), ())
    axis = _axis(b, a, dims)
    if axis == -1:
        return _shaped(b, b.op("sum", a), axis, keepdim)
    parts = [b.slice(a, axis, k, k + 1) for k in range(int(b.shape(a)[axis]))]
    total = parts[0]
    for part in parts[1:]:  # over heads: there are few
        total = b.op("add", total, part)
    return _shaped(b, total, axis, keepdim)


@handles(HANDLERS, "amax")
def _amax(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    if _is_of_all(dims):
        return b.reshape(b.op("amax", _in_a_row(b, a)), ())
    _last(b, a, dims)
    return _shaped(b, b.op("amax", a), -1, keepdim)


@handles(HANDLERS, "amin")
def _amin(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    return b.op("neg", _amax(b, b.op("neg", a), dims, keepdim))


@handles(HANDLERS, "max")
def _max(b: Builder, a: Ref, *dims: Any) -> Ref:
    return _amax(b, a) if not dims else _place()


@handles(HANDLERS, "min")
def _min(b: Builder, a: Ref, *dims: Any) -> Ref:
    return _amin(b, a) if not dims else _place()


def _place() -> Ref:
    # The derivative goes to that place, were there several that are equal; amax shares it.
    raise Unsupported(
        "it finds a place as well; amax and amin, which find the value alone, would do"
    )


@handles(HANDLERS, "mean")
def _mean(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    shape = b.shape(a)
    count = _count(shape) if _is_of_all(dims) else shape[_axis(b, a, dims)]
    return b.op("div", _sum(b, a, dims, keepdim), float(count))


def _count(shape: Any) -> int:
    if BATCH in shape:
        raise Unsupported("it works across the batch")
    return math.prod(map(int, shape))


def _centred(b: Builder, a: Ref) -> tuple[Ref, Ref]:
    """`a` less its mean, and the sum of the squares of that."""
    centred = b.op("sub", a, _mean(b, a, -1, True))
    return centred, b.op("sum", b.op("mul", centred, centred))


@handles(HANDLERS, "var")
def _var(
    b: Builder, a: Ref, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> Ref:
    _last(b, a, dims)
    _, squares = _centred(b, a)
    freedom = int(b.shape(a)[-1]) - (1 if correction is None else correction)
    return _shaped(b, b.op("div", squares, float(max(freedom, 0))), -1, keepdim)


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


@handles(HANDLERS, "linalg_vector_norm")
def _norm(
    b: Builder, a: Ref, order: float = 2, dims: Any = None, keepdim: bool = False, **kwargs: Any
) -> Ref:
    if order == 1:
        return _sum(b, b.op("abs", a), dims, keepdim)
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    return _root(b, _sum(b, b.op("mul", a, a), dims, keepdim))


@handles(HANDLERS, "native_layer_norm")
def _layer_norm(
    b: Builder, a: Ref, shape: list[int], weight: Ref | None, bias: Ref | None, eps: float
) -> list[Ref]:
    if len(shape) != 1:
        raise Unsupported("a layer norm over more than the last axis")
    return [_affine(b, _standardized(b, a, eps), weight, bias)]


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
    if len(b.shape(a)) != 2:
        raise Unsupported("a group norm of more than the hidden axis")
    heads = b.reshape(a, (BATCH, groups, channels // groups))
    y = b.reshape(_standardized(b, heads, eps), (BATCH, channels))
    return [_affine(b, y, weight, bias)]


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
    _last(b, a, dim)
    # Any shift gives the same: none of it belongs to the derivative.
    e = b.op("exp", b.op("sub", a, b.op("detach", b.op("amax", a))))
    return b.op("div", e, b.op("sum", e))


@handles(HANDLERS, "logsumexp")
def _logsumexp(b: Builder, a: Ref, dims: Any, keepdim: bool = False) -> Ref:
    _last(b, a, dims)
    largest = b.op("detach", b.op("amax", a))
    finite = b.op("lt", b.op("abs", largest), math.inf)  # the shift must not make inf - inf
    shift = b.op("where", finite, largest, 0.0)
    total = b.op("sum", b.op("exp", b.op("sub", a, shift)))
    return _shaped(b, b.op("add", b.op("log", total), shift), -1, keepdim)
