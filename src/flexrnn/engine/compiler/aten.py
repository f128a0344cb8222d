"""From aten's operations to the graph's: what each of them is made of.

Most elementwise ones have a row in `ops.OPS` under the same name; the rest of the table is here.
"""

import math
from collections.abc import Callable
from typing import Any

from flexrnn.engine.compiler import views
from flexrnn.engine.compiler.graph import BATCH, Graph, Shape
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.views import Ref, Unsupported

Value = Any  # a `Ref`, a number, or a list of them


class Builder:
    """A graph under construction, with what handlers need of it."""

    def __init__(self) -> None:
        self.graph = Graph()

    def shape(self, a: Ref) -> Shape:
        """The shape of a node."""
        return self.graph.nodes[a].shape

    def op(self, name: str, *operands: Any, **attrs: Any) -> Ref:
        """A node; operands that are numbers become constants."""
        args = (int(o) if isinstance(o, Ref) else self.graph.constant(o) for o in operands)
        return Ref(self.graph.add(name, *args, **attrs))

    def axis(self, a: Ref, dim: int) -> int:
        """A dimension counted from the end; the batch's is refused."""
        shape = self.shape(a)
        axis = dim if dim < 0 else dim - len(shape)
        if shape[axis] == BATCH:
            raise Unsupported("it works across the batch")
        return axis

    def slice(self, a: Ref, axis: int, start: int, stop: int) -> Ref:
        """A part of a node along an axis."""
        whole = (start, stop) == (0, self.shape(a)[axis])
        return a if whole else self.op("slice", a, axis=axis, start=start, stop=stop)

    def reshape(self, a: Ref, shape: Shape) -> Ref:
        """A node in another shape; the batch stays the first axis."""
        return Ref(views.reshape(self.graph, a, shape))


Handler = Callable[..., Value]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler `(builder, *args, **kwargs)` of the aten operations of these names."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


# Products -----------------------------------------------------------------------------------------


@handles("mm", "matmul")
def _mm(b: Builder, a: Ref, w: Ref) -> Ref:
    if BATCH in b.shape(w):
        raise Unsupported("the right operand of a product depends on the input or the state")
    return b.op("product", a, w)


@handles("addmm")
def _addmm(b: Builder, bias: Ref, a: Ref, w: Ref, *, beta: float = 1, alpha: float = 1) -> Ref:
    product = _mm(b, a, w)
    product = product if alpha == 1 else b.op("mul", product, float(alpha))
    bias = bias if beta == 1 else b.op("mul", bias, float(beta))
    return b.op("add", product, bias)


@handles("t", "numpy_T")
def _t(b: Builder, a: Ref) -> Ref:
    if len(b.shape(a)) < 2:
        return a
    if BATCH in b.shape(a):
        raise Unsupported("it moves the batch")
    return b.op("transpose", a)


# Shapes -------------------------------------------------------------------------------------------


UNMOVED = ("clone", "alias", "detach", "contiguous", "lift_fresh_copy")


@handles(*UNMOVED)
def _same(b: Builder, a: Ref, **kwargs: Any) -> Ref:
    return a


@handles("split", "unsafe_split")
def _split(b: Builder, a: Ref, size: int, dim: int = 0) -> list[Ref]:
    axis = b.axis(a, dim)
    total = int(b.shape(a)[axis])
    return [b.slice(a, axis, k, min(k + size, total)) for k in range(0, total, size)]


@handles("split_with_sizes", "unsafe_split_with_sizes")
def _split_with_sizes(b: Builder, a: Ref, sizes: list[int], dim: int = 0) -> list[Ref]:
    axis, parts, start = b.axis(a, dim), [], 0
    for size in sizes:
        parts.append(b.slice(a, axis, start, start + size))
        start += size
    return parts


@handles("slice")
def _slice(b: Builder, a: Ref, dim: int = 0, start=None, stop=None, step: int = 1) -> Ref:
    shape = b.shape(a)
    if shape[dim] == BATCH and start in (None, 0) and not isinstance(stop, int):
        return a
    axis = b.axis(a, dim)
    if step != 1:
        raise Unsupported("a slice with a step")
    first, last, _ = slice(start, stop).indices(int(shape[axis]))
    return b.slice(a, axis, first, max(first, last))


@handles("select")
def _select(b: Builder, a: Ref, dim: int, index: Ref) -> Ref:
    axis = b.axis(a, dim)
    shape = b.shape(a)
    k = index % int(shape[axis])
    return b.reshape(b.slice(a, axis, k, k + 1), _without(shape, axis))


@handles("unbind")
def _unbind(b: Builder, a: Ref, dim: int = 0) -> list[Ref]:
    axis = b.axis(a, dim)
    return [_select(b, a, dim, k) for k in range(int(b.shape(a)[axis]))]


@handles("cat")
def _cat(b: Builder, parts: list[Ref], dim: int = 0) -> Ref:
    return parts[0] if len(parts) == 1 else b.op("concat", *parts, axis=b.axis(parts[0], dim))


@handles("expand")
def _expand(b: Builder, a: Ref, sizes: list[Any], **kwargs: Any) -> Ref:
    old = b.shape(a)
    padded = (1,) * (len(sizes) - len(old)) + old
    shape = tuple(o if s == -1 else s for s, o in zip(sizes, padded, strict=True))
    return a if shape == old else b.op("expand", a, shape=shape)


# Constants ----------------------------------------------------------------------------------------


def _filled(b: Builder, shape: Shape, value: float) -> Ref:
    number = Ref(b.graph.constant(value))
    return b.op("expand", number, shape=tuple(shape)) if len(shape) else number


HANDLERS |= {
    "full": lambda b, shape, value, **_: _filled(b, shape, _number(value)),
    "zeros": lambda b, shape, **_: _filled(b, shape, 0.0),
    "ones": lambda b, shape, **_: _filled(b, shape, 1.0),
    "scalar_tensor": lambda b, value, **_: _filled(b, (), _number(value)),
    "full_like": lambda b, a, value, **_: _filled(b, b.shape(a), _number(value)),
    "zeros_like": lambda b, a, **_: _filled(b, b.shape(a), 0.0),
    "ones_like": lambda b, a, **_: _filled(b, b.shape(a), 1.0),
}


def _settled(b: Builder, arg: Any) -> Any:
    if isinstance(arg, list):
        return [views.settle(b.graph, a) for a in arg]
    return views.settle(b.graph, arg)


def _number(value: Any) -> float:
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise Unsupported(f"{value!r} is no number")


# Reductions over the hidden axis ------------------------------------------------------------------


def _reduced(b: Builder, name: str, a: Ref, dims: Any, keepdim: bool) -> Ref:
    shape = b.shape(a)
    axes = {b.axis(a, d) for d in ([dims] if isinstance(dims, int) else dims or [])}
    if axes != {-1}:
        raise Unsupported("a reduction over anything but the last axis")
    reduced = b.op(name, a)
    return reduced if keepdim else b.reshape(reduced, shape[:-1])


@handles("sum")
def _sum(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    return _reduced(b, "sum", a, dims, keepdim)


@handles("amax")
def _amax(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False) -> Ref:
    return _reduced(b, "amax", a, dims, keepdim)


@handles("mean")
def _mean(b: Builder, a: Ref, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Ref:
    return b.op("mul", _sum(b, a, dims, keepdim), 1.0 / int(b.shape(a)[-1]))


def _centred(b: Builder, a: Ref) -> tuple[Ref, Ref]:
    """`a` less its mean, and the sum of the squares of that."""
    centred = b.op("sub", a, _mean(b, a, -1, True))
    return centred, b.op("sum", b.op("mul", centred, centred))


@handles("var")
def _var(
    b: Builder, a: Ref, dims: Any = None, *, correction: float = 1, keepdim: bool = False
) -> Ref:
    _sum(b, a, dims)  # refuses other axes
    _, squares = _centred(b, a)
    var = b.op("mul", squares, 1.0 / (int(b.shape(a)[-1]) - correction))
    return var if keepdim else b.reshape(var, b.shape(a)[:-1])


@handles("native_layer_norm")
def _layer_norm(
    b: Builder, a: Ref, shape: list[int], weight: Ref | None, bias: Ref | None, eps: float
) -> list[Ref]:
    if len(shape) != 1:
        raise Unsupported("a layer norm over more than the last axis")
    centred, squares = _centred(b, a)
    scale = b.op("rsqrt", b.op("add", b.op("mul", squares, 1.0 / shape[0]), float(eps)))
    y = b.op("mul", centred, scale)
    y = y if weight is None else b.op("mul", y, weight)
    return [y if bias is None else b.op("add", y, bias)]


@handles("_softmax")
def _softmax(b: Builder, a: Ref, dim: int, half_to_float: bool) -> Ref:
    _sum(b, a, dim)  # refuses other axes
    shifted = b.op("sub", a, b.op("amax", a))
    e = b.op("exp", shifted)
    return b.op("div", e, b.op("sum", e))


@handles("linalg_vector_norm")
def _norm(
    b: Builder, a: Ref, order: float = 2, dims: Any = None, keepdim: bool = False, **kwargs: Any
) -> Ref:
    if order != 2:
        raise Unsupported(f"a norm of order {order}")
    return b.op("sqrt", _sum(b, b.op("mul", a, a), dims, keepdim))


# Elementwise operations that are spelt otherwise than in the table --------------------------------


def _add(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Ref:
    return b.op("add", x, y if alpha == 1 else b.op("mul", y, float(alpha)))


def _sub(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Ref:
    return b.op("sub", x, y if alpha == 1 else b.op("mul", y, float(alpha)))


def _div(b: Builder, x: Any, y: Any, *, rounding_mode: str | None = None) -> Ref:
    quotient = b.op("div", x, y)
    return quotient if rounding_mode is None else b.op(rounding_mode, quotient)


def _pow(b: Builder, x: Any, y: Any) -> Ref:
    easy: dict[Any, Callable[[], Ref]] = {
        2.0: lambda: b.op("mul", x, x),
        3.0: lambda: b.op("mul", b.op("mul", x, x), x),
        0.5: lambda: b.op("sqrt", x),
        -1.0: lambda: b.op("reciprocal", x),
    }
    return easy[y]() if not isinstance(y, Ref) and y in easy else b.op("pow", x, y)


def _clamp(b: Builder, x: Ref, low: Any = None, high: Any = None) -> Ref:
    if isinstance(low, Ref) or isinstance(high, Ref):
        x = x if low is None else b.op("maximum", x, low)
        return x if high is None else b.op("minimum", x, high)
    bounds = {
        "low": -math.inf if low is None else low,
        "high": math.inf if high is None else high,
    }
    return b.op("clamp", x, **bounds)


def _softplus(b: Builder, x: Ref, beta: float = 1, threshold: float = 20) -> Ref:
    if (beta, threshold) != (1, 20):
        raise Unsupported("a softplus with beta or threshold")
    return b.op("softplus", x)


def _elu(b: Builder, x: Ref, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Ref:
    if (alpha, scale, input_scale) == (1.6732632423543772, 1.0507009873554805, 1):
        return b.op("selu", x)
    scaled = x if input_scale == 1 else b.op("mul", x, float(input_scale))
    y = b.op("elu", scaled, alpha=float(alpha))
    return y if scale == 1 else b.op("mul", y, float(scale))


SPELT_OTHERWISE: dict[str, Handler] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda b, x, y, *, alpha=1.0: _sub(b, y, x, alpha=alpha),
    "div": _div,
    "pow": _pow,
    "clamp": _clamp,
    "clamp_min": lambda b, x, low: _clamp(b, x, low),
    "clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "softplus": _softplus,
    "elu": _elu,
    "gelu": lambda b, x, *, approximate="none": b.op(
        "gelu" if approximate == "none" else "gelu_tanh", x
    ),
    "log_sigmoid_forward": lambda b, x: [b.op("log_sigmoid", x)],
    "leaky_relu": lambda b, x, slope=0.01: b.op("leaky_relu", x, negative_slope=float(slope)),
    "hardtanh": lambda b, x, low=-1.0, high=1.0: b.op(
        "hardtanh", x, min_val=float(low), max_val=float(high)
    ),
    "logical_and": lambda b, x, y: b.op("and", x, y),
    "logical_or": lambda b, x, y: b.op("or", x, y),
    "logical_not": lambda b, x: b.op("not", x),
}
SPELT_OTHERWISE |= {  # on truth values; on integers the tracer never gets this far
    f"bitwise_{name}": SPELT_OTHERWISE[f"logical_{name}"] for name in ("and", "or", "not")
}


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
    if name in views.MOVES:
        return views.MOVES[name](b.graph, *args, **kwargs)
    if name in UNMOVED and isinstance(args[0], views.View):
        return args[0]
    args = tuple(_settled(b, arg) for arg in args)
    if name in HANDLERS:
        return HANDLERS[name](b, *args, **kwargs)
    # Of an elementwise operation every operand may be a number.
    args = tuple(a if a is None or isinstance(a, Ref) else _number(a) for a in args)
    if name in SPELT_OTHERWISE:
        return SPELT_OTHERWISE[name](b, *args, **kwargs)
    row = OPS.get(name)
    if row is None or kwargs or len(args) != len(row.domain):
        raise Unsupported("it is not among the operations of the table")
    return b.op(name, *args)


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[len(shape) + axis + 1 :])
