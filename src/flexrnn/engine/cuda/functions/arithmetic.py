# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# To Python a number is no constant of Triton's, nor a block one.
"""Signs, choices, division, roundings and rests."""

import math
from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

# Triton's interpreter calls no function of CUDA's: `pow` and `fmod` have other forms there.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
ALL = tl.constexpr(tl.PropagateNan.ALL)
INF = tl.constexpr(math.inf)


def table(*numbers: float) -> Any:
    return numbers if INTERPRETED else tl.constexpr(numbers)  # the interpreter takes it as it is


def hexadecimal(text: str) -> Any:
    return table(*(float.fromhex(word) for word in text.split()))


@triton.jit
def polynomial(x, C: tl.constexpr):
    p = x * C[0] + C[1]
    for k in tl.static_range(2, len(C)):
        p = p * x + C[k]
    return p


@triton.jit
def copysign(size, sign):
    if size.dtype == tl.float32:
        positive = size.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bits = positive | (sign.to(tl.int32, bitcast=True) & -0x80000000)
        return bits.to(tl.float32, bitcast=True)
    else:
        positive = size.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        bits = positive | (sign.to(tl.int64, bitcast=True) & -0x8000000000000000)
        return bits.to(tl.float64, bitcast=True)


@triton.jit
def is_negative(x):  # or -0.0
    if x.dtype == tl.float32:
        return x.to(tl.int32, bitcast=True) < 0
    else:
        return x.to(tl.int64, bitcast=True) < 0


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=ALL)


@triton.jit
def clamp(x, low: tl.constexpr, high: tl.constexpr):
    if low != low or high != high:
        return x * float("nan")
    else:
        return minimum(maximum(x, low), high)


@triton.jit
def sign(x):  # of NaN 0
    return (x > 0.0).to(x.dtype) - (x < 0.0).to(x.dtype)


@triton.jit
def div(a, b):
    if (a + b).dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def reciprocal(x):
    return div(1.0, x)


@triton.jit
def sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def lerp(a, b, w):
    return tl.where(tl.abs(w) < 0.5, a + w * (b - a), b - (b - a) * (1.0 - w))


@triton.jit
def hypot(a, b):
    p, q = tl.abs(a), tl.abs(b)
    most, least = maximum(p, q), minimum(p, q)
    ratio = least / tl.where(most == 0.0, 1.0, most)
    y = most * sqrt(ratio * ratio + 1.0)
    return tl.where((p == INF) | (q == INF), INF, y)


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def single(x):  # as many digits as float32 has
    return x.to(tl.float32).to(x.dtype)


@triton.jit
def rint(x):  # ties to even
    a = tl.abs(x)
    if x.dtype == tl.float32:
        return tl.where(a < 2.0**23, copysign((a + 2.0**23) - 2.0**23, x), x)
    else:
        return tl.where(a < 2.0**52, copysign((a + 2.0**52) - 2.0**52, x), x)


@triton.jit
def fmod(a, b):
    if not INTERPRETED:
        return libdevice.fmod(a, b)
    else:
        return a % b


@triton.jit
def remainder(a, b):  # of the sign of b
    rest = fmod(a, b)
    return tl.where((rest != 0.0) & ((b < 0.0) ^ (rest < 0.0)), rest + b, rest)
