"""Arithmetic of complex numbers, spelt in real ones."""

import cmath
import math
from collections.abc import Callable
from typing import Any

from torch import fx

from flexrnn.engine.compiler.complexes.parts import (
    chosen,
    equals,
    is_number,
    minus,
    negative,
    of,
    over,
    plus,
    times,
)
from flexrnn.engine.compiler.complexes.writer import Pair, Part, Writer, aten

_MOST = 16  # a whole power up to this one is multiplied
_exp, _sin, _cos, _sinh, _cosh, _tanh = map(of, ("exp", "sin", "cos", "sinh", "cosh", "tanh"))


def add(w: Writer, a: Pair, b: Pair) -> Pair:
    """`a + b`."""
    return Pair(plus(w, a.real, b.real), plus(w, a.imag, b.imag))


def sub(w: Writer, a: Pair, b: Pair) -> Pair:
    """`a - b`."""
    return Pair(minus(w, a.real, b.real), minus(w, a.imag, b.imag))


def mul(w: Writer, a: Pair, b: Pair) -> Pair:
    """`a b`."""
    return product(w, a, b, times)


def product(w: Writer, a: Pair, b: Pair, by: Callable[[Writer, Part, Part], Part]) -> Pair:
    """Of two complex numbers, by a product of real ones that is 0 where an operand is."""
    real = minus(w, by(w, a.real, b.real), by(w, a.imag, b.imag))
    return Pair(real, plus(w, by(w, a.real, b.imag), by(w, a.imag, b.real)))


def scaled(w: Writer, a: Pair, number: Any) -> Pair:
    """`a` times a number of Python's, which may be complex."""
    if isinstance(number, complex):
        return mul(w, a, Pair(number.real, number.imag))
    return Pair(times(w, a.real, number), times(w, a.imag, number))


def conj(w: Writer, a: Pair) -> Pair:
    """The conjugate."""
    return Pair(a.real, negative(w, a.imag))


def reciprocal(w: Writer, a: Pair) -> Pair:
    """Of a number whose square may be too large: by the larger part, which has no derivative."""
    if is_number(a.real) and is_number(a.imag):
        found = 1 / complex(a.real, a.imag)
        return Pair(found.real, found.imag)
    if equals(a.imag, 0):
        return Pair(w(aten.reciprocal.default, a.real), 0)
    if equals(a.real, 0):
        return Pair(0, negative(w, w(aten.reciprocal.default, a.imag)))
    size = _larger(w, *w.whole(a))
    real, imag = (over(w, part, size) for part in w.whole(a))
    square = plus(w, times(w, real, real), times(w, imag, imag))
    square = times(w, square, size)
    return Pair(over(w, real, square), negative(w, over(w, imag, square)))


def div(w: Writer, a: Pair, b: Pair) -> Pair:
    """`a / b`."""
    if equals(b.imag, 0):
        return Pair(over(w, a.real, b.real), over(w, a.imag, b.real))
    return mul(w, a, reciprocal(w, b))


def _larger(w: Writer, a: fx.Node, b: fx.Node) -> fx.Node:
    sizes = (w(aten.detach.default, w(aten.abs.default, part)) for part in (a, b))
    return w(aten.maximum.default, *sizes)


def magnitude(w: Writer, a: Pair) -> fx.Node:
    """`|a|`, of numbers whose square may be too large or small; at 0 its derivative is 0."""
    if equals(a.imag, 0) or equals(a.real, 0):
        return w(aten.abs.default, a.real if equals(a.imag, 0) else a.imag)
    parts = w.whole(a)
    size = _larger(w, *parts)
    nothing = w(aten.eq.Scalar, size, 0.0)
    endless = w(aten.eq.Scalar, size, math.inf)
    unit = chosen(w, w(aten.logical_or.default, nothing, endless), 1.0, size)
    squares = (w(aten.square.default, over(w, part, unit)) for part in parts)
    square = chosen(w, nothing, 1.0, w(aten.add.Tensor, *squares))
    return w(aten.mul.Tensor, w(aten.sqrt.default, square), size)


def angle(w: Writer, a: Pair) -> fx.Node:
    """`arg a`; at 0 its derivative is 0."""
    real, imag = w.whole(a)
    return w(aten.atan2.default, imag, real)


def sgn(w: Writer, a: Pair) -> Pair:
    """`a / |a|`, and flat where that is 0 / 0."""
    size = magnitude(w, a)
    nothing = w(aten.eq.Scalar, size, 0.0)
    size = chosen(w, nothing, 1.0, size)
    real, imag = (
        0 if equals(p, 0) else chosen(w, nothing, 0.0, over(w, p, size)) for p in a
    )  # fmt: skip
    return Pair(real, imag)


def polar(w: Writer, size: Part, turn: Part) -> Pair:
    """Of a length and an angle."""
    return Pair(times(w, size, _cos(w, turn)), times(w, size, _sin(w, turn)))


def exp(w: Writer, a: Pair) -> Pair:
    """`exp a`."""
    return polar(w, _exp(w, a.real), a.imag)


def log(w: Writer, a: Pair) -> Pair:
    """`log |a| + i arg a`."""
    return Pair(w(aten.log.default, magnitude(w, a)), angle(w, a))


def sin(w: Writer, a: Pair) -> Pair:
    """`sin a`."""
    real = times(w, _sin(w, a.real), _cosh(w, a.imag))
    return Pair(real, times(w, _cos(w, a.real), _sinh(w, a.imag)))


def cos(w: Writer, a: Pair) -> Pair:
    """`cos a`."""
    real = times(w, _cos(w, a.real), _cosh(w, a.imag))
    return Pair(real, negative(w, times(w, _sin(w, a.real), _sinh(w, a.imag))))


def sinh(w: Writer, a: Pair) -> Pair:
    """`sinh a`."""
    real = times(w, _sinh(w, a.real), _cos(w, a.imag))
    return Pair(real, times(w, _cosh(w, a.real), _sin(w, a.imag)))


def cosh(w: Writer, a: Pair) -> Pair:
    """`cosh a`."""
    real = times(w, _cosh(w, a.real), _cos(w, a.imag))
    return Pair(real, times(w, _sinh(w, a.real), _sin(w, a.imag)))


def tanh(w: Writer, a: Pair) -> Pair:
    """`(t + i s c (1 - t²)) / (c² + t² s²)`, which is never inf / inf as sinh / cosh may be."""
    real, imag = w.whole(a)
    t, s, c = _tanh(w, real), _sin(w, imag), _cos(w, imag)
    square = times(w, t, t)
    below = plus(w, times(w, c, c), times(w, square, times(w, s, s)))
    above = times(w, times(w, s, c), minus(w, 1.0, square))
    return Pair(over(w, t, below), over(w, above, below))


def tan(w: Writer, a: Pair) -> Pair:
    """`-i tanh(i a)`."""
    turned = tanh(w, Pair(negative(w, a.imag), a.real))
    return Pair(turned.imag, negative(w, turned.real))


def sigmoid(w: Writer, a: Pair) -> Pair:
    """`(1 + tanh(a / 2)) / 2`."""
    half = scaled(w, tanh(w, scaled(w, a, 0.5)), 0.5)
    return Pair(plus(w, half.real, 0.5), half.imag)


def power(w: Writer, a: Pair, exponent: Any) -> Pair:
    """A power whose exponent is known."""
    if isinstance(exponent, complex):
        if exponent.imag:
            raise w.refused("a complex power of complex numbers, for which exp and log would do")
        exponent = exponent.real
    if exponent < 0:
        return reciprocal(w, power(w, a, -exponent))
    if exponent == int(exponent) and 0 < exponent <= _MOST:
        return _whole_power(w, a, int(exponent))
    if not exponent:
        return Pair(1, 0)
    size = w(aten.pow.Tensor_Scalar, magnitude(w, a), exponent)
    return polar(w, size, times(w, angle(w, a), exponent))


def _whole_power(w: Writer, a: Pair, exponent: int) -> Pair:
    if exponent == 1:
        return a
    half = _whole_power(w, a, exponent // 2)
    square = mul(w, half, half)
    return mul(w, square, a) if exponent % 2 else square


def power_of(w: Writer, base: Any, a: Pair) -> Pair:
    """A power of a number."""
    if not base:
        raise w.refused("a power of 0")
    return exp(w, scaled(w, a, cmath.log(base)))
