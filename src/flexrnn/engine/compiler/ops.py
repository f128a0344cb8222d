"""The elementwise operations: a table, one row an operation.

A row holds the torch function, its derivative, whether it is cheap enough to be computed again in
the backward pass, the domain on which tests draw its operands, and room for the forms that engines
emit. A derivative is written with the same functions as a step: it runs on tensors (so a test
compares it with autograd's) and on the expressions of a graph (so the compiler differentiates).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # as everybody writes it

Derivative = Callable[..., tuple[Any, ...]]


class Op(NamedTuple):
    """One elementwise operation."""

    name: str
    torch: Callable[..., Tensor]  # the operands, then the attributes by keyword
    vjp: Derivative | None  # (g, y, *operands, **attributes) -> a cotangent an operand, or None
    domain: tuple[tuple[float, float], ...]  # an interval an operand
    cheap: bool = True  # a handful of additions and multiplications, no transcendental function
    boolean: bool = False  # the result is a truth value
    attributes: tuple[tuple[str, float], ...] = ()  # numbers that are part of it, with defaults
    # How engines write it, of operands {a}, {b}, {c} and attributes by name; a call of the row's
    # name where nothing is said.
    form: str = ""  # in every language
    cpp: str = ""  # in C++, where it differs
    triton: str = ""  # in Triton's Python, where it differs

    def written(self, form: str, operands: tuple[str, ...], literal: Callable[[float], str],
                attributes: dict[str, float]) -> str:  # fmt: skip
        """The operation in an engine's language.

        Args:
            form: in that language, or empty: `cpp` or `triton`.
            operands: as that language has them; names, or in brackets.
            literal: a number in that language.
            attributes: the numbers that belong to it; those left out are the default.
        """
        numbers = {key: literal(attributes.get(key, value)) for key, value in self.attributes}
        if form := form or self.form:
            return form.format(
                name=self.name, **dict(zip("abc", operands, strict=False)), **numbers
            )
        return f"{self.name}({', '.join((*operands, *numbers.values()))})"


REAL = (-3.0, 3.0)
POSITIVE = (0.1, 3.0)
UNIT = (-0.9, 0.9)

OWN = "tl.{name}({a})"  # one of Triton's own functions


class Expression:
    """What the graph's expressions are, so that this table need not know the graph."""

    def apply(self, name: str, *operands: Any, **attributes: float) -> "Expression":
        """The expression `name(*operands)`; some operands may be numbers."""
        raise NotImplementedError


def call(name: str, *operands: Any, **attributes: float) -> Any:
    """Apply the operation of that name to tensors, or to expressions."""
    for operand in operands:
        if isinstance(operand, Expression):
            return operand.apply(name, *operands, **attributes)
    floats = [o for o in operands if isinstance(o, Tensor) and o.is_floating_point()]
    tensors = [o if isinstance(o, Tensor) else torch.full_like(floats[0], o) for o in operands]
    return OPS[name].torch(*tensors, **attributes)


def _unary(
    name: str, function: Callable[..., Tensor], derivative: Any, domain=REAL, **kwargs
) -> Op:
    """A row with one operand; `derivative(g, y, x)` is its one cotangent, 0 where it is flat."""
    if derivative == 0:
        return Op(name, function, None, (domain,), **kwargs)
    return Op(name, function, lambda g, y, x, **a: (derivative(g, y, x, **a),), (domain,), **kwargs)


def _binary(
    name: str, function: Callable[..., Tensor], vjp: Any, *domains: Any, **kwargs: Any
) -> Op:
    return Op(name, function, vjp, domains or (REAL, REAL), **kwargs)


def _select(condition: Any, a: Any, b: Any) -> Any:
    return call("where", condition, a, b)


def _inside(x: Any, low: float, high: float) -> Any:
    return call("and", call("gt", x, low), call("lt", x, high))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _d_gelu(g: Any, y: Any, x: Any) -> Any:
    density = call("exp", x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return g * ((call("erf", x * math.sqrt(0.5)) + 1.0) * 0.5 + x * density)


def _d_gelu_tanh(g: Any, y: Any, x: Any) -> Any:
    k = math.sqrt(2 / math.pi)
    t = call("tanh", (x + x * x * x * 0.044715) * k)
    inner = (x * x * (3 * 0.044715) + 1.0) * k
    return g * ((t + 1.0) * 0.5 + x * (1.0 - t * t) * inner * 0.5)


def _d_silu(g: Any, y: Any, x: Any) -> Any:
    s = call("sigmoid", x)
    return g * (s + y * (1.0 - s))


def _d_mish(g: Any, y: Any, x: Any) -> Any:
    t, s = call("tanh", call("softplus", x)), call("sigmoid", x)
    return g * (t + x * s * (1.0 - t * t))


def _d_logaddexp(g: Any, y: Any, a: Any, b: Any) -> Any:
    # Not exp(a - y), where y has been rounded.
    return g * call("sigmoid", a - b), g * call("sigmoid", b - a)


def _d_remainder(g: Any, y: Any, a: Any, b: Any) -> Any:
    # Not floor(a / b): 1 / 0.1 is 10 when it has been rounded, and 0.1 goes into 1 nine times.
    whole = _select(call("eq", b, 0.0), a, a - y)  # 0 leaves no remainder, and goes in for ever
    quotient = call("round", whole / b)
    # What is endless goes into numbers of the other sign -1 times.
    other = call("and", call("eq", call("abs", b), math.inf), call("ne", a, y))
    return g, -(g * _select(other, -1.0, quotient))


def _d_pow(g: Any, y: Any, a: Any, b: Any) -> Any:
    # 0 ** 0 is 1 whatever moves a little, and so is 0 ** b 0.
    flat, rests = call("eq", b, 0.0), call("and", call("eq", a, 0.0), call("ge", b, 0.0))
    return (
        _select(flat, 0.0, g * b * call("pow", a, b - 1.0)),
        _select(rests, 0.0, g * y * call("log", a)),
    )


def _d_atan2(g: Any, y: Any, a: Any, b: Any) -> Any:
    squares = a * a + b * b
    scale = _select(call("eq", squares, 0.0), 0.0, g / squares)  # no direction at the origin
    return scale * b, -(scale * a)


def _d_extremum(better: str) -> Derivative:
    """Of maximum and minimum; at a tie both operands get half, as in autograd."""

    def vjp(g: Any, y: Any, a: Any, b: Any) -> tuple[Any, Any]:
        tie, first, half = call("eq", a, b), call(better, a, b), g * 0.5
        return (
            _select(tie, half, _select(first, g, 0.0)),
            _select(tie, half, _select(first, 0.0, g)),
        )

    return vjp


def _d_number(better: str, other: str) -> Derivative:
    """Of fmax and fmin, which take what is a number; as autograd of this torch has it."""

    def shared(g: Any, y: Any, a: Any, b: Any) -> tuple[Any, Any]:
        """At a tie both operands get half, and all where one is no number."""
        most = _select(call("eq", a, b), g * 0.5, g)
        return (
            _select(call(other, a, b), 0.0, most),
            _select(call(better, a, b), 0.0, most),
        )

    def whole(g: Any, y: Any, a: Any, b: Any) -> tuple[Any, Any]:
        """The one that is taken gets all: the first at a tie, or where none is a number."""
        first = call("or", call(other, b, a), call("ne", b, b))
        if _TORCH >= (2, 15):  # at a tie both get half
            tie, half = call("eq", a, b), g * 0.5
            return (
                _select(tie, half, _select(first, g, 0.0)),
                _select(tie, half, _select(first, 0.0, g)),
            )
        first = call("or", first, call("eq", a, b))
        return _select(first, g, 0.0), _select(first, 0.0, g)

    return shared if _TORCH == (2, 14) else whole


_TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def _compare(name: str, function: Callable[..., Tensor], form: str) -> Op:
    return Op(name, function, None, (REAL, REAL), boolean=True, form=form)


def _d_clamp(g: Any, y: Any, x: Any, low: float, high: float) -> Any:
    inside = call("and", call("ge", x, low), call("le", x, high))
    return _select(inside, g, 0.0)


_ROWS = [
    # arithmetic
    _binary("add", torch.add, lambda g, y, a, b: (g, g), form="{a} + {b}"),
    _binary("sub", torch.sub, lambda g, y, a, b: (g, -g), form="{a} - {b}"),
    _binary("mul", torch.mul, lambda g, y, a, b: (g * b, g * a), form="{a} * {b}"),
    _binary("div", torch.div, lambda g, y, a, b: (g / b, -(g * y) / b), REAL, POSITIVE,
            cpp="{a} / {b}"),
    _binary("pow", torch.pow, _d_pow, POSITIVE, REAL, cheap=False),
    _binary("maximum", torch.maximum, _d_extremum("gt")),
    _binary("minimum", torch.minimum, _d_extremum("lt")),
    _binary("fmax", torch.fmax, _d_number("gt", "lt"),
            cpp="select(({a} >= {b}) | ({b} != {b}), {a}, {b})",
            triton="tl.where(({a} >= {b}) | ({b} != {b}), {a}, {b})"),
    _binary("fmin", torch.fmin, _d_number("lt", "gt"),
            cpp="select(({a} <= {b}) | ({b} != {b}), {a}, {b})",
            triton="tl.where(({a} <= {b}) | ({b} != {b}), {a}, {b})"),
    _binary("atan2", torch.atan2, _d_atan2, POSITIVE, POSITIVE, cheap=False),
    _binary("hypot", torch.hypot, lambda g, y, a, b: (g * a / y, g * b / y), POSITIVE, POSITIVE,
            cheap=False),
    _binary("logaddexp", torch.logaddexp, _d_logaddexp, cheap=False),
    _binary("fmod", torch.fmod, lambda g, y, a, b: (g, -(g * call("trunc", a / b))),
            REAL, POSITIVE),
    _binary("remainder", torch.remainder, _d_remainder, REAL, POSITIVE),
    Op("lerp", torch.lerp, lambda g, y, a, b, w: (g * (1.0 - w), g * w, g * (b - a)),
       (REAL, REAL, (0.0, 1.0))),
    # Triton 3.6 takes -x for 0 - x, which has the other zero.
    _unary("neg", torch.neg, lambda g, y, x: -g, form="-{a}", triton="{a} * -1.0"),
    _unary("abs", torch.abs, lambda g, y, x: g * call("sign", x), triton=OWN),
    _unary("sign", torch.sign, 0),
    _unary("reciprocal", torch.reciprocal, lambda g, y, x: -(g * y * y), POSITIVE,
            cpp="REAL(1) / {a}"),
    _unary("square", torch.square, lambda g, y, x: g * x * 2.0, form="{a} * {a}"),
    _unary("sqrt", torch.sqrt, lambda g, y, x: g * 0.5 / y, POSITIVE),
    _unary("rsqrt", torch.rsqrt, lambda g, y, x: g * y * y * y * -0.5, POSITIVE,
            cpp="REAL(1) / sqrt({a})", triton=OWN),
    _unary("floor", torch.floor, 0, triton=OWN),
    _unary("ceil", torch.ceil, 0, triton=OWN),
    _unary("round", torch.round, 0, form="rint({a})"),
    _unary("trunc", torch.trunc, 0),
    _unary("single", lambda x: x.float().to(x.dtype), lambda g, y, x: call("single", g)),
    _unary("frac", torch.frac, lambda g, y, x: g, form="{a} - trunc({a})"),
    # exponentials and their inverses
    _unary("exp", torch.exp, lambda g, y, x: g * y, cheap=False),
    _unary("exp2", torch.exp2, lambda g, y, x: g * y * math.log(2), cheap=False, triton=OWN),
    _unary("expm1", torch.expm1, lambda g, y, x: g * (y + 1.0), cheap=False),
    _unary("log", torch.log, lambda g, y, x: g / x, POSITIVE, cheap=False, triton=OWN),
    _unary("log2", torch.log2, lambda g, y, x: g / x * (1 / math.log(2)), POSITIVE, cheap=False,
           triton=OWN),
    _unary("log10", torch.log10, lambda g, y, x: g / x * (1 / math.log(10)), POSITIVE, cheap=False),
    _unary("log1p", torch.log1p, lambda g, y, x: g / (x + 1.0), UNIT, cheap=False),
    _unary("sigmoid", torch.sigmoid, lambda g, y, x: g * y * (1.0 - y), cheap=False),
    _unary("log_sigmoid", F.logsigmoid, lambda g, y, x: g * call("sigmoid", -x), cheap=False),
    _unary("softplus", F.softplus, lambda g, y, x: _select(  # torch's is x itself above 20
        call("gt", x, 20.0), g, g * call("sigmoid", x)), cheap=False),
    _unary("tanh", torch.tanh, lambda g, y, x: g * (1.0 - y * y), cheap=False),
    _unary("sinh", torch.sinh, lambda g, y, x: g * call("cosh", x), cheap=False),
    _unary("cosh", torch.cosh, lambda g, y, x: g * call("sinh", x), cheap=False),
    _unary("asinh", torch.asinh, lambda g, y, x: g * call("rsqrt", x * x + 1.0), cheap=False),
    _unary("acosh", torch.acosh, lambda g, y, x: g * call("rsqrt", x * x - 1.0), (1.1, 3.0),
           cheap=False),
    _unary("atanh", torch.atanh, lambda g, y, x: g / (1.0 - x * x), UNIT, cheap=False),
    _unary("erf", torch.erf, lambda g, y, x: g * call("exp", -(x * x)) * (2 / math.sqrt(math.pi)),
           cheap=False, triton=OWN),
    _unary("erfc", torch.erfc,
           lambda g, y, x: g * call("exp", -(x * x)) * (-2 / math.sqrt(math.pi)), cheap=False),
    # circular functions
    _unary("sin", torch.sin, lambda g, y, x: g * call("cos", x), cheap=False, triton=OWN),
    _unary("cos", torch.cos, lambda g, y, x: -(g * call("sin", x)), cheap=False, triton=OWN),
    _unary("tan", torch.tan, lambda g, y, x: g * (y * y + 1.0), (-1.2, 1.2), cheap=False),
    _unary("asin", torch.asin, lambda g, y, x: g * call("rsqrt", 1.0 - x * x), UNIT,
           cheap=False),
    _unary("acos", torch.acos, lambda g, y, x: -(g * call("rsqrt", 1.0 - x * x)), UNIT,
           cheap=False),
    _unary("atan", torch.atan, lambda g, y, x: g / (x * x + 1.0), cheap=False),
    # activations
    _unary("relu", torch.relu, lambda g, y, x: _select(call("le", y, 0.0), 0.0, g)),
    _unary("relu6", F.relu6, lambda g, y, x: _select(_inside(x, 0.0, 6.0), g, 0.0)),
    _unary("leaky_relu", F.leaky_relu, lambda g, y, x, negative_slope: _select(
        call("gt", x, 0.0), g, g * negative_slope), attributes=(("negative_slope", 0.01),)),
    _unary("elu", F.elu, lambda g, y, x, alpha: _select(
        call("gt", x, 0.0), g, g * alpha * call("exp", x)), cheap=False,
        attributes=(("alpha", 1.0),)),
    _unary("selu", F.selu, lambda g, y, x: _select(call("gt", x, 0.0), g * _SELU_SCALE,
        g * (_SELU_SCALE * _SELU_ALPHA) * call("exp", x)), cheap=False),
    _unary("gelu", F.gelu, _d_gelu, cheap=False),
    _unary("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), _d_gelu_tanh, cheap=False),
    _unary("silu", F.silu, _d_silu, cheap=False),
    _unary("mish", F.mish, _d_mish, cheap=False),
    _unary("hardtanh", F.hardtanh, lambda g, y, x, min_val, max_val: _select(
        _inside(x, min_val, max_val), g, 0.0), attributes=(("min_val", -1.0), ("max_val", 1.0)),
        form="clamp({a}, {min_val}, {max_val})"),
    _unary("hardsigmoid", F.hardsigmoid, lambda g, y, x: _select(
        _inside(x, -3.0, 3.0), g * (1 / 6), 0.0), (-4.0, 4.0)),
    _unary("hardswish", F.hardswish, lambda g, y, x: _select(
        call("gt", x, -3.0), _select(call("lt", x, 3.0), g * (x * (1 / 3) + 0.5), g), 0.0),
        (-4.0, 4.0)),
    _unary("clamp", lambda x, low, high: torch.clamp(x, low, high), _d_clamp,
           attributes=(("low", -math.inf), ("high", math.inf))),
    # comparison and choice
    _compare("gt", torch.gt, "{a} > {b}"),
    _compare("ge", torch.ge, "{a} >= {b}"),
    _compare("lt", torch.lt, "{a} < {b}"),
    _compare("le", torch.le, "{a} <= {b}"),
    _compare("eq", torch.eq, "{a} == {b}"),
    _compare("ne", torch.ne, "{a} != {b}"),
    Op("and", torch.logical_and, None, (REAL, REAL), boolean=True, form="{a} & {b}"),
    Op("or", torch.logical_or, None, (REAL, REAL), boolean=True, form="{a} | {b}"),
    Op("not", torch.logical_not, None, (REAL,), boolean=True, form="~{a}"),
    Op("where", torch.where,
       lambda g, y, c, a, b: (None, _select(c, g, 0.0), _select(c, 0.0, g)), (REAL, REAL, REAL),
       cpp="select({a}, {b}, {c})", triton="tl.where({a}, {b}, {c})"),
]  # fmt: skip

OPS: dict[str, Op] = {row.name: row for row in _ROWS}
