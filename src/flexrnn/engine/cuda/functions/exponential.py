# pyright: reportArgumentType=false
# To Python a number is no constant of Triton's, nor a block one.
"""exp and what is made of it."""

import math

import triton
import triton.language as tl

from flexrnn.engine.cuda.functions.arithmetic import (
    clamp,
    copysign,
    hexadecimal,
    maximum,
    minimum,
    polynomial,
    table,
)

LOG2_E = tl.constexpr(1 / math.log(2))
LN2 = tl.constexpr(math.log(2))
LN2_LOW = tl.constexpr(-float.fromhex("0x1.05c611p-29"))  # what float32 cuts off
HALF_E = tl.constexpr(math.e / 2)
ROUNDER_32 = tl.constexpr(1.5 * 2.0**23)  # added to a small number, it leaves the nearest integer
ROUNDER_64 = tl.constexpr(1.5 * 2.0**52)


@triton.jit
def _in_powers_of_2(x):
    """For float32, x log2(e) as it is rounded, and what rounding has taken from x."""
    y = x * LOG2_E
    return y, tl.fma(y, -LN2_LOW, tl.fma(y, -LN2, x))


@triton.jit
def exp(x):
    if x.dtype == tl.float32:
        y, rest = _in_powers_of_2(clamp(x, -104.0, 89.0))
        return tl.exp2(y) * (rest + 1.0)  # a sum of infinities would be NaN
    else:
        return tl.exp(x)


@triton.jit
def exp_below_0(x):
    if x.dtype == tl.float32:
        y, rest = _in_powers_of_2(maximum(x, -104.0))
        power = tl.exp2(y)
        return tl.fma(power, rest, power)
    else:
        return tl.exp(x)


EXPM1_32 = table(1.3926213142e-3, 8.3632031456e-3, 4.1666556150e-2, 1.6666576266e-1, 0.5)
EXPM1_64 = hexadecimal("""
    0x1.af38d53857513p-26 0x1.2891a8c1d838dp-22 0x1.71de0d9c145d0p-19 0x1.a019b8ef67c6cp-16
    0x1.a01a01a7c8d47p-13 0x1.6c16c17893833p-10 0x1.11111111109adp-7 0x1.5555555553d4fp-5
    0x1.5555555555556p-3 0x1.0000000000001p-1""")


@triton.jit
def _reduced(x):
    """x = n ln 2 + r: half of 2 ** n, and exp(r) - 1."""
    if x.dtype == tl.float32:
        shifted = x * LOG2_E + ROUNDER_32
        n = shifted - ROUNDER_32
        r = tl.fma(n, -LN2_LOW, tl.fma(n, -LN2, x))
        half = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F000000).to(
            tl.float32, bitcast=True
        )
        return half, r * r * polynomial(r, EXPM1_32) + r
    else:
        shifted = x * LOG2_E + ROUNDER_64
        n = shifted - ROUNDER_64
        # The first part ends in zeros, so that its product is exact.
        r = (x - n * 0.69314718055989033) - n * 5.497923018708371e-14
        half = ((shifted.to(tl.int64, bitcast=True) << 52) + 0x3FE0000000000000).to(
            tl.float64, bitcast=True
        )
        return half, r * r * polynomial(r, EXPM1_64) + r


@triton.jit
def expm1(x):
    if x.dtype == tl.float32:
        half, small = _reduced(clamp(x, -20.0, 89.0))
    else:
        half, small = _reduced(clamp(x, -40.0, 710.0))
    # Of half, since 2 ** n may be infinite where expm1 is not.
    return copysign((small * half + (half - 0.5)) * 2.0, x)


@triton.jit
def sigmoid(x):  # from exp(-|x|): every digit right where the result is small, too
    e = exp_below_0(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (e + 1.0)


TANH_32 = table(-6.610227831e-3, 2.130938866e-2, -5.390942883e-2, 0.1333311373,
                        -0.3333333201)  # fmt: skip


@triton.jit
def tanh(x):
    a = tl.abs(x)
    if x.dtype == tl.float32:
        # The error of this exp is that of a small part of the result.
        far = 1.0 - 2.0 / (tl.exp(a + a) + 1.0)
        z = x * x
        return tl.where(a < 0.55, x * (z * polynomial(z, TANH_32) + 1.0), copysign(far, x))
    else:  # -m / (2 + m) where m = exp(-2 |x|) - 1
        half, small = _reduced(maximum(a * -2.0, -40.0))
        m = (small * half + (half - 0.5)) * 2.0
        return copysign(m / (m + 2.0), x)


@triton.jit
def sinh(x):
    a = tl.abs(x)
    half = _half_exp(a)
    m = expm1(minimum(a, 1.0))
    return copysign(tl.where(a < 1.0, (m + m / (m + 1.0)) * 0.5, half - 0.25 / half), x)


@triton.jit
def cosh(x):
    half = _half_exp(tl.abs(x))
    return half + 0.25 / half


@triton.jit
def _half_exp(a):  # which is finite somewhat longer than exp(a); a - 1 is exact where a is large
    return exp(a - 1.0) * HALF_E
