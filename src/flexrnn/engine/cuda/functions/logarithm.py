"""log and what is made of it."""

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

from flexrnn.engine.cuda.functions.arithmetic import (
    INF,
    INTERPRETED,
    copysign,
    maximum,
    minimum,
    sqrt,
)
from flexrnn.engine.cuda.functions.exponential import LN2, exp, exp_below_0

LOG10_E = tl.constexpr(1 / math.log(10))
LOG10_E_LOW_32 = tl.constexpr(float.fromhex("-0x1.5b235ep-27"))
LOG10_E_LOW_64 = tl.constexpr(float.fromhex("0x1.95355baaafad3p-57"))


@triton.jit
def log10(x):
    y = tl.log(x)
    if x.dtype == tl.float32:
        return tl.where(tl.abs(y) < INF, tl.fma(y, LOG10_E, y * LOG10_E_LOW_32), y)
    else:  # a number in Triton 3.6's `fma` is of float32, one in an operator is not
        return tl.where(tl.abs(y) < INF, y * LOG10_E + y * LOG10_E_LOW_64, y)


@triton.jit
def log1p(x):  # u has lost what x - (u - 1) gives back
    u = x + 1.0
    y = tl.log(u)
    return tl.where((x > -1.0) & (x < INF), copysign(y + (x - (u - 1.0)) / u, x), y)


@triton.jit
def softplus(x):  # torch's is x itself above 20
    return tl.where(x > 20.0, x, log1p(exp(minimum(x, 20.0))))


@triton.jit
def log_sigmoid(x):
    return minimum(x, 0.0) - log1p(exp_below_0(-tl.abs(x)))


@triton.jit
def logaddexp(a, b):
    most = maximum(a, b)
    y = most + log1p(exp_below_0(-tl.abs(a - b)))
    return tl.where((a == b) & (tl.abs(a) == INF), a, y)


@triton.jit
def asinh(x):
    a = tl.abs(x)
    square = a * a
    near = log1p(a + square / (sqrt(square + 1.0) + 1.0))
    if x.dtype == tl.float32:
        return copysign(tl.where(a > 1e4, tl.log(a) + LN2, near), x)
    else:
        return copysign(tl.where(a > 1e9, tl.log(a) + LN2, near), x)


@triton.jit
def acosh(x):
    t = x - 1.0
    near = log1p(t + sqrt(t * (t + 2.0)))
    if x.dtype == tl.float32:
        return tl.where(x < 1.0, float("nan"), tl.where(x > 1e4, tl.log(x) + LN2, near))
    else:
        return tl.where(x < 1.0, float("nan"), tl.where(x > 1e9, tl.log(x) + LN2, near))


@triton.jit
def atanh(x):
    a = tl.abs(x)
    return copysign(log1p((a + a) / (1.0 - a)) * 0.5, x)


@triton.jit
def pow(a, b):  # noqa: A001  # as the row
    if not INTERPRETED:
        return libdevice.pow(a, b)
    else:  # float64 loses as many ulp as |b log2(a)|
        size = tl.exp2(b.to(tl.float64) * tl.log2(tl.abs(a).to(tl.float64))).to((a + b).dtype)
        size = tl.where((tl.abs(a) == 1.0) & (b == b) | (b == 0.0), 1.0, size)
        whole, odd = tl.floor(b) == b, tl.floor(b * 0.5) * 2.0 != b
        signed = tl.where((a < 0.0) & (a > -INF) & ~whole, float("nan"), size)
        negative = whole & odd & (tl.abs(b) < INF)
        signed = tl.where(negative, copysign(signed, a), signed)
        return tl.where(a == 1.0, 1.0, tl.where(b == 1.0, a, signed))
