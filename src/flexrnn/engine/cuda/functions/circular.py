# pyright: reportArgumentType=false
# To Python a number is no constant of Triton's, nor a block one.
"""Circular functions and their inverses."""

import math

import triton
import triton.language as tl

from flexrnn.engine.cuda.functions.arithmetic import (
    copysign,
    hexadecimal,
    is_negative,
    maximum,
    minimum,
    polynomial,
    sqrt,
    table,
)

PI = tl.constexpr(math.pi)
PI_LOW_32 = tl.constexpr(float.fromhex("-0x1.777a5cp-24"))
PI_LOW_64 = tl.constexpr(float.fromhex("0x1.1a62633145c07p-53"))


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


# (asin(x) - x) / x ** 3 of x * x, |x| <= 1/2; and atan's, |x| <= tan(pi / 8).
ASIN_32 = table(0.03808502356, 0.02655454221, 0.04500138007, 0.07498855073, 0.1666667241)
ASIN_64 = hexadecimal("""
    0x1.d72b2bc8155f8p-6 -0x1.e6aaa8a0a04ccp-7 0x1.1d189408314eep-6 0x1.65a9c4dfcf8b2p-8
    0x1.52420b04b37bep-7 0x1.782651caa6547p-7 0x1.c9cf07674736ap-7 0x1.1c4d35cf95421p-6
    0x1.6e8bb1c8209a2p-6 0x1.f1c71c1db0623p-6 0x1.6db6db6e31f13p-5 0x1.3333333332ecap-4
    0x1.5555555555556p-3""")
ATAN_32 = table(-0.06451718869, 0.1074366832, -0.1426394975, 0.1999954031, -0.3333333176)
ATAN_64 = hexadecimal("""
    -0x1.3a2b7a07caea9p-6 0x1.41603647c7a7cp-5 -0x1.a098bb6ba4941p-5 0x1.dfe61e80903d2p-5
    -0x1.10fa75382537fp-4 0x1.3b1262d95579ep-4 -0x1.745d0b26b83e7p-4 0x1.c71c7185314cbp-4
    -0x1.24924924360cbp-3 0x1.999999999934ap-3 -0x1.5555555555555p-2""")


@triton.jit
def _part_of_pi(part: tl.constexpr, x):
    """A part of pi plus x, to the last digit of the sum."""
    if x.dtype == tl.float32:
        return (x + PI_LOW_32 * part) + PI * part
    else:
        return (x + PI_LOW_64 * part) + PI * part


@triton.jit
def _small_asin(x):
    z = x * x
    if x.dtype == tl.float32:
        return x * z * polynomial(z, ASIN_32) + x
    else:
        return x * z * polynomial(z, ASIN_64) + x


@triton.jit
def asin(x):
    a = tl.abs(x)
    far = _part_of_pi(0.5, _small_asin(sqrt((1.0 - a) * 0.5)) * -2.0)
    return tl.where(a < 0.5, _small_asin(x), copysign(far, x))


@triton.jit
def acos(x):
    far = _small_asin(sqrt((1.0 - tl.abs(x)) * 0.5)) * 2.0
    far = tl.where(x < 0.0, _part_of_pi(1.0, -far), far)
    return tl.where(tl.abs(x) < 0.5, _part_of_pi(0.5, -_small_asin(x)), far)


@triton.jit
def _atan_below_1(x):  # 0 <= x <= 1
    far = x > 0.41421356
    t = tl.where(far, (x - 1.0) / (x + 1.0), x)
    z = t * t
    if x.dtype == tl.float32:
        y = t * z * polynomial(z, ATAN_32) + t
    else:
        y = t * z * polynomial(z, ATAN_64) + t
    return tl.where(far, _part_of_pi(0.25, y), y)


@triton.jit
def atan(x):
    a = tl.abs(x)
    y = _atan_below_1(tl.where(a > 1.0, 1.0 / a, a))
    return copysign(tl.where(a > 1.0, _part_of_pi(0.5, -y), y), x)


@triton.jit
def atan2(a, b):
    p, q = tl.abs(a), tl.abs(b)
    most, least = maximum(p, q), minimum(p, q)
    ratio = tl.where(least == most, 1.0, least / most)
    y = _atan_below_1(tl.where(most == 0.0, 0.0, ratio))
    y = tl.where(p > q, _part_of_pi(0.5, -y), y)
    y = tl.where(is_negative(b), _part_of_pi(1.0, -y), y)
    return copysign(y, a)
