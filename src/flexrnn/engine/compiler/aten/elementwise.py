"""Elementwise operations that aten spells otherwise than the table `ops.OPS`."""

import math
from collections.abc import Callable
from typing import Any

from flexrnn.engine.compiler.aten.builder import Builder, Handlers, Ref, Unsupported
from flexrnn.engine.compiler.ops import OPS


def _add(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Ref:
    return b.op("add", x, y if alpha == 1 else b.op("mul", y, float(alpha)))


def _sub(b: Builder, x: Any, y: Any, *, alpha: float = 1) -> Ref:
    return b.op("sub", x, y if alpha == 1 else b.op("mul", y, float(alpha)))


def _div(b: Builder, x: Any, y: Any, *, rounding_mode: str | None = None) -> Ref:
    if rounding_mode == "floor":  # floor(x / y) would be 10 for 1 // 0.1, which is 9
        return b.op("round", b.op("div", b.op("sub", x, b.op("remainder", x, y)), y))
    quotient = b.op("div", x, y)
    return quotient if rounding_mode is None else b.op(rounding_mode, quotient)


def _pow(b: Builder, x: Any, y: Any) -> Ref:
    easy: dict[Any, Callable[[], Ref]] = {
        2.0: lambda: b.op("square", x),
        3.0: lambda: b.op("mul", b.op("mul", x, x), x),
        0.5: lambda: b.op("sqrt", x),
        -1.0: lambda: b.op("reciprocal", x),
    }
    return easy[y]() if not isinstance(y, Ref) and y in easy else b.op("pow", x, y)


def _clamp(b: Builder, x: Ref, low: Any = None, high: Any = None, **bounds: Any) -> Ref:
    low, high = bounds.get("min", low), bounds.get("max", high)
    if isinstance(low, Ref) or isinstance(high, Ref):
        # At a tie the derivative is x's, as autograd has it; `maximum` would share it.
        if isinstance(low, Ref) and high is not None:  # where they meet the lower one gets none
            low = b.op("where", b.op("lt", low, high), low, b.op("detach", low))
        x = x if low is None else b.op("where", b.op("lt", x, low), low, x)
        return x if high is None else b.op("where", b.op("gt", x, high), high, x)
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if low > high:  # it is the upper one, whatever x is
        return b.op("clamp", b.op("detach", x), low=float(high), high=float(high))
    return b.op("clamp", x, low=float(low), high=float(high))


def _hardtanh(b: Builder, x: Ref, low: float = -1.0, high: float = 1.0) -> Ref:
    if (low, high) == (0, 6):
        return b.op("relu6", x)
    return b.op("hardtanh", x, min_val=float(low), max_val=float(high))


def _softplus(b: Builder, x: Ref, beta: float = 1, threshold: float = 20) -> Ref:
    z = x if beta == 1 else b.op("mul", x, float(beta))
    if threshold == 20:  # the table's
        y = b.op("softplus", z)
        return y if beta == 1 else b.op("div", y, float(beta))
    far = b.op("gt", z, float(threshold))
    y = b.op("logaddexp", b.op("where", far, 0.0, z), 0.0)
    return b.op("where", far, x, b.op("div", y, float(beta)))


def _elu(b: Builder, x: Ref, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Ref:
    if input_scale != 1:
        raise Unsupported("an elu whose operand is scaled")
    if (alpha, scale) == (1.6732632423543772, 1.0507009873554805):
        return b.op("selu", x)
    y = b.op("elu", x, alpha=float(alpha))
    return y if scale == 1 else b.op("mul", y, float(scale))


def _celu(b: Builder, x: Ref, alpha: float = 1) -> Ref:
    """Not as torch spells it, by `where`: far above 0 its derivative would be 0 times infinity."""
    if alpha == 1:
        return b.op("elu", x, alpha=1.0)
    y = b.op("elu", b.op("div", x, float(alpha)), alpha=1.0)
    return b.op("mul", y, float(alpha))


def _nan_to_num(b: Builder, x: Ref, nan: float, high: float, low: float) -> Ref:
    y = b.op("where", b.op("ne", x, x), nan, x)
    y = b.op("where", b.op("eq", x, math.inf), high, y)
    return b.op("where", b.op("eq", x, -math.inf), low, y)


def _xlogy(b: Builder, x: Any, y: Any) -> Ref:
    """0 where x is, unless y is not a number; and flat where then there is no logarithm."""
    none = b.op("or", b.op("le", y, 0.0), b.op("eq", y, math.inf))
    flat = b.op("and", b.op("eq", x, 0.0), none)
    return b.op("where", flat, 0.0, b.op("mul", x, b.op("log", b.op("where", flat, 1.0, y))))


def _xlog1py(b: Builder, x: Any, y: Any) -> Ref:
    """The same of 1 + y, to which small y are not added."""
    none = b.op("or", b.op("le", y, -1.0), b.op("eq", y, math.inf))
    flat = b.op("and", b.op("eq", x, 0.0), none)
    return b.op("where", flat, 0.0, b.op("mul", x, b.op("log1p", b.op("where", flat, 0.0, y))))


def _signbit(b: Builder, x: Any) -> Ref:
    return b.op("or", b.op("lt", x, 0.0), b.op("lt", b.op("reciprocal", x), 0.0))  # -0.0, too


def _copysign(b: Builder, x: Any, y: Any) -> Ref:
    size = b.op("abs", x)
    return b.op("where", _signbit(b, y), b.op("neg", size), size)


def _logaddexp2(b: Builder, x: Any, y: Any) -> Ref:
    x, y = (b.op("mul", a, math.log(2)) for a in (x, y))
    return b.op("mul", b.op("logaddexp", x, y), 1 / math.log(2))


def _sinc(b: Builder, x: Ref) -> Ref:
    zero = b.op("eq", x, 0.0)
    angle = b.op("mul", b.op("where", zero, 1.0, x), math.pi)
    return b.op("where", zero, 1.0, b.op("div", b.op("sin", angle), angle))


SPELT: Handlers = {
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
    "celu": _celu,
    "gelu": lambda b, x, *, approximate="none": b.op(
        "gelu" if approximate == "none" else "gelu_tanh", x
    ),
    "log_sigmoid_forward": lambda b, x: [b.op("log_sigmoid", x)],
    "leaky_relu": lambda b, x, slope=0.01: b.op("leaky_relu", x, negative_slope=float(slope)),
    "hardtanh": _hardtanh,
    "nan_to_num": _nan_to_num,
    "xlogy": _xlogy,
    "special_xlogy": _xlogy,
    "special_xlog1py": _xlog1py,
    "signbit": _signbit,
    "_neg_view": lambda b, x: b.op("neg", x),
    "sgn": lambda b, x: b.op("sign", x),
    "copysign": _copysign,
    "logaddexp2": _logaddexp2,
    "sinc": _sinc,
    "special_sinc": _sinc,
    "isnan": lambda b, x: b.op("ne", x, x),
    "logical_and": lambda b, x, y: b.op("and", x, y),
    "logical_or": lambda b, x, y: b.op("or", x, y),
    "logical_xor": lambda b, x, y: b.op("ne", b.truth(x), b.truth(y)),
    "logical_not": lambda b, x: b.op("not", x),
}
SPELT |= {  # on truth values; on integers the tracer never gets this far
    f"bitwise_{name}": SPELT[f"logical_{name}"] for name in ("and", "or", "xor", "not")
}


def is_elementwise(name: str) -> bool:
    """Whether an aten operation takes numbers one by one, and so operands of several dtypes."""
    return name in OPS or name in SPELT
