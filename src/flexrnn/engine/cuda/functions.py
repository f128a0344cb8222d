# pyright: basic, reportIndexIssue=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false, reportOptionalMemberAccess=false
# Triton reads these functions; to Python its blocks and its functions have other types.
"""Elementwise functions on blocks of float32 or float64, with torch's results at ties and limits.

What a generated kernel calls by name; the table of operations says which rows are Triton's own.
They call Triton's builtins alone, none of its library, so that they are interpreted wherever they
were imported to be. A number takes the type of the block beside it, and would be float32 alone: so
no name stands for one. Polynomials have the highest power first; they interpolate at Chebyshev
points, computed with 60 digits.

In float32 a card takes what is nearer to 0 than every normal number for 0 in `exp2`, `floor`,
`ceil`, `rsqrt` and `log2`, and in what is made of them. A `/` between blocks of float32 errs by up
to 2 ulp there; `div`, which a person's own division becomes, is the nearest number, as torch's is.
"""

import math
from typing import Any

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Triton's interpreter calls no function of CUDA's: `pow` and `fmod` have other forms there.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
ALL = tl.constexpr(tl.PropagateNan.ALL)
INF = tl.constexpr(math.inf)
LOG2_E = tl.constexpr(1 / math.log(2))
LN2 = tl.constexpr(math.log(2))
LN2_LOW = tl.constexpr(-float.fromhex("0x1.05c611p-29"))  # what float32 cuts off
LOG10_E = tl.constexpr(1 / math.log(10))
LOG10_E_LOW_32 = tl.constexpr(float.fromhex("-0x1.5b235ep-27"))
LOG10_E_LOW_64 = tl.constexpr(float.fromhex("0x1.95355baaafad3p-57"))
PI = tl.constexpr(math.pi)
PI_LOW_32 = tl.constexpr(float.fromhex("-0x1.777a5cp-24"))
PI_LOW_64 = tl.constexpr(float.fromhex("0x1.1a62633145c07p-53"))
HALF_E = tl.constexpr(math.e / 2)
ROOT_HALF = tl.constexpr(math.sqrt(0.5))
ROUNDER_32 = tl.constexpr(1.5 * 2.0**23)  # added to a small number, it leaves the nearest integer
ROUNDER_64 = tl.constexpr(1.5 * 2.0**52)


def _table(*numbers: float) -> Any:
    return numbers if INTERPRETED else tl.constexpr(numbers)  # the interpreter takes it as it is


def _hex(text: str) -> Any:
    return _table(*(float.fromhex(word) for word in text.split()))


@triton.jit
def _polynomial(x, C: tl.constexpr):
    p = x * C[0] + C[1]
    for k in tl.static_range(2, len(C)):
        p = p * x + C[k]
    return p


@triton.jit
def _copysign(size, sign):
    if size.dtype == tl.float32:
        positive = size.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bits = positive | (sign.to(tl.int32, bitcast=True) & -0x80000000)
        return bits.to(tl.float32, bitcast=True)
    else:
        positive = size.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        bits = positive | (sign.to(tl.int64, bitcast=True) & -0x8000000000000000)
        return bits.to(tl.float64, bitcast=True)


@triton.jit
def _is_negative(x):  # or -0.0
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


# -- exp and what is made of it -------------------------------------------------------------------


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
def _exp_below_0(x):
    if x.dtype == tl.float32:
        y, rest = _in_powers_of_2(maximum(x, -104.0))
        power = tl.exp2(y)
        return tl.fma(power, rest, power)
    else:
        return tl.exp(x)


EXPM1_32 = _table(1.3926213142e-3, 8.3632031456e-3, 4.1666556150e-2, 1.6666576266e-1, 0.5)
EXPM1_64 = _hex("""
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
        return half, r * r * _polynomial(r, EXPM1_32) + r
    else:
        shifted = x * LOG2_E + ROUNDER_64
        n = shifted - ROUNDER_64
        # The first part ends in zeros, so that its product is exact.
        r = (x - n * 0.69314718055989033) - n * 5.497923018708371e-14
        half = ((shifted.to(tl.int64, bitcast=True) << 52) + 0x3FE0000000000000).to(
            tl.float64, bitcast=True
        )
        return half, r * r * _polynomial(r, EXPM1_64) + r


@triton.jit
def expm1(x):
    if x.dtype == tl.float32:
        half, small = _reduced(clamp(x, -20.0, 89.0))
    else:
        half, small = _reduced(clamp(x, -40.0, 710.0))
    # Of half, since 2 ** n may be infinite where expm1 is not.
    return _copysign((small * half + (half - 0.5)) * 2.0, x)


@triton.jit
def sigmoid(x):  # from exp(-|x|): every digit right where the result is small, too
    e = _exp_below_0(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (e + 1.0)


TANH_32 = _table(-6.610227831e-3, 2.130938866e-2, -5.390942883e-2, 0.1333311373,
                        -0.3333333201)  # fmt: skip


@triton.jit
def tanh(x):
    a = tl.abs(x)
    if x.dtype == tl.float32:
        # The error of this exp is that of a small part of the result.
        far = 1.0 - 2.0 / (tl.exp(a + a) + 1.0)
        z = x * x
        return tl.where(a < 0.55, x * (z * _polynomial(z, TANH_32) + 1.0), _copysign(far, x))
    else:  # -m / (2 + m) where m = exp(-2 |x|) - 1
        half, small = _reduced(maximum(a * -2.0, -40.0))
        m = (small * half + (half - 0.5)) * 2.0
        return _copysign(m / (m + 2.0), x)


@triton.jit
def sinh(x):
    a = tl.abs(x)
    half = _half_exp(a)
    m = expm1(minimum(a, 1.0))
    return _copysign(tl.where(a < 1.0, (m + m / (m + 1.0)) * 0.5, half - 0.25 / half), x)


@triton.jit
def cosh(x):
    half = _half_exp(tl.abs(x))
    return half + 0.25 / half


@triton.jit
def _half_exp(a):  # which is finite somewhat longer than exp(a); a - 1 is exact where a is large
    return exp(a - 1.0) * HALF_E


# -- log and what is made of it -------------------------------------------------------------------


@triton.jit
def log10(x):
    y = tl.log(x)
    if x.dtype == tl.float32:
        return tl.where(tl.abs(y) < INF, tl.fma(y, LOG10_E, y * LOG10_E_LOW_32), y)
    else:
        return tl.where(tl.abs(y) < INF, tl.fma(y, LOG10_E, y * LOG10_E_LOW_64), y)


@triton.jit
def log1p(x):  # u has lost what x - (u - 1) gives back
    u = x + 1.0
    y = tl.log(u)
    return tl.where((x > -1.0) & (x < INF), _copysign(y + (x - (u - 1.0)) / u, x), y)


@triton.jit
def softplus(x):  # torch's is x itself above 20
    return tl.where(x > 20.0, x, log1p(exp(minimum(x, 20.0))))


@triton.jit
def log_sigmoid(x):
    return minimum(x, 0.0) - log1p(_exp_below_0(-tl.abs(x)))


@triton.jit
def logaddexp(a, b):
    most = maximum(a, b)
    y = most + log1p(_exp_below_0(-tl.abs(a - b)))
    return tl.where((a == b) & (tl.abs(a) == INF), a, y)


@triton.jit
def asinh(x):
    a = tl.abs(x)
    square = a * a
    near = log1p(a + square / (sqrt(square + 1.0) + 1.0))
    if x.dtype == tl.float32:
        return _copysign(tl.where(a > 1e4, tl.log(a) + LN2, near), x)
    else:
        return _copysign(tl.where(a > 1e9, tl.log(a) + LN2, near), x)


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
    return _copysign(log1p((a + a) / (1.0 - a)) * 0.5, x)


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
        signed = tl.where(negative, _copysign(signed, a), signed)
        return tl.where(a == 1.0, 1.0, tl.where(b == 1.0, a, signed))


# -- the error function ---------------------------------------------------------------------------

# erfc(x) = exp(-x x) p(t) / (1 + 2 x), t = (x - c) / (x + c), from 0.65 on.
ERFC_32 = _table(-1.471589319e-3, 1.050303574e-3, 8.770821616e-3, -7.995991036e-3,
                        -5.423028022e-2, 1.640488952e-1, -1.660297811e-1, -9.276378900e-2,
                        1.276978374)  # fmt: skip
ERFC_64 = _hex("""
    -0x1.3684d7bdd5609p-29 0x1.7ee854192b8a8p-24 -0x1.28b895eb0c9c3p-24 -0x1.4d19e56b79002p-21
    0x1.3fcb83c405326p-22 0x1.d393f1eaca85ep-19 -0x1.79c1ca160d15ep-21 -0x1.5159da4525744p-16
    0x1.4b9b2ad6baf51p-18 0x1.065b6cf25908fp-13 -0x1.b910da429d1fbp-14 -0x1.98db5f1b0d480p-11
    0x1.ef1bda505e9e2p-10 0x1.4b884ea0eda08p-9 -0x1.8574c40895976p-6 0x1.17ca2877c8431p-4
    -0x1.e88b803a507afp-4 0x1.098366a5b4ec5p-3 -0x1.85a15c58aa288p-5 -0x1.15c084bb9e901p-3
    0x1.40c522d7e4987p+0""")


@triton.jit
def erfc(x):
    if x.dtype == tl.float32:
        a = minimum(tl.abs(x), 11.0)  # where it has become 0
        p = _polynomial((a - 2.0) / (a + 2.0), ERFC_32)
        upper = (a.to(tl.int32, bitcast=True) & -0x1000).to(tl.float32, bitcast=True)
    else:
        a = minimum(tl.abs(x), 28.0)
        p = _polynomial((a - 3.0) / (a + 3.0), ERFC_64)
        upper = (a.to(tl.int64, bitcast=True) & -0x8000000).to(tl.float64, bitcast=True)
    square = a * a
    lost = (upper * upper - square) + (a + upper) * (a - upper)  # by rounding the square
    tail = _exp_below_0(-square) * ((p - p * lost) / (a + a + 1.0))
    return tl.where(tl.abs(x) < 0.65, 1.0 - tl.erf(x), tl.where(x < 0.0, 2.0 - tail, tail))


# -- circular functions ---------------------------------------------------------------------------


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


# (asin(x) - x) / x ** 3 of x * x, |x| <= 1/2; and atan's, |x| <= tan(pi / 8).
ASIN_32 = _table(0.03808502356, 0.02655454221, 0.04500138007, 0.07498855073, 0.1666667241)
ASIN_64 = _hex("""
    0x1.d72b2bc8155f8p-6 -0x1.e6aaa8a0a04ccp-7 0x1.1d189408314eep-6 0x1.65a9c4dfcf8b2p-8
    0x1.52420b04b37bep-7 0x1.782651caa6547p-7 0x1.c9cf07674736ap-7 0x1.1c4d35cf95421p-6
    0x1.6e8bb1c8209a2p-6 0x1.f1c71c1db0623p-6 0x1.6db6db6e31f13p-5 0x1.3333333332ecap-4
    0x1.5555555555556p-3""")
ATAN_32 = _table(-0.06451718869, 0.1074366832, -0.1426394975, 0.1999954031, -0.3333333176)
ATAN_64 = _hex("""
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
        return x * z * _polynomial(z, ASIN_32) + x
    else:
        return x * z * _polynomial(z, ASIN_64) + x


@triton.jit
def asin(x):
    a = tl.abs(x)
    far = _part_of_pi(0.5, _small_asin(sqrt((1.0 - a) * 0.5)) * -2.0)
    return tl.where(a < 0.5, _small_asin(x), _copysign(far, x))


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
        y = t * z * _polynomial(z, ATAN_32) + t
    else:
        y = t * z * _polynomial(z, ATAN_64) + t
    return tl.where(far, _part_of_pi(0.25, y), y)


@triton.jit
def atan(x):
    a = tl.abs(x)
    y = _atan_below_1(tl.where(a > 1.0, 1.0 / a, a))
    return _copysign(tl.where(a > 1.0, _part_of_pi(0.5, -y), y), x)


@triton.jit
def atan2(a, b):
    p, q = tl.abs(a), tl.abs(b)
    most, least = maximum(p, q), minimum(p, q)
    ratio = tl.where(least == most, 1.0, least / most)
    y = _atan_below_1(tl.where(most == 0.0, 0.0, ratio))
    y = tl.where(p > q, _part_of_pi(0.5, -y), y)
    y = tl.where(_is_negative(b), _part_of_pi(1.0, -y), y)
    return _copysign(y, a)


# -- activations ----------------------------------------------------------------------------------


@triton.jit
def clamp(x, low: tl.constexpr, high: tl.constexpr):
    if low != low or high != high:
        return x * float("nan")
    else:
        return minimum(maximum(x, low), high)


@triton.jit
def relu(x):
    return maximum(x, 0.0)


@triton.jit
def relu6(x):
    return clamp(x, 0.0, 6.0)


@triton.jit
def hardsigmoid(x):
    return clamp(x + 3.0, 0.0, 6.0) * (1 / 6)


@triton.jit
def hardswish(x):
    return x * hardsigmoid(x)


@triton.jit
def leaky_relu(x, slope: tl.constexpr):
    return tl.where(x > 0.0, x, x * slope)


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def elu(x, alpha: tl.constexpr):
    return tl.where(x > 0.0, x, expm1(x) * alpha)


@triton.jit
def selu(x):
    return elu(x, 1.6732632423543772) * 1.0507009873554805


@triton.jit
def gelu(x):  # by erfc, for 1 + erf would lose the digits of a small result
    return x * 0.5 * erfc(x * -ROOT_HALF)


@triton.jit
def gelu_tanh(x):
    return x * 0.5 * (tanh((x + x * x * x * 0.044715) * 0.7978845608028654) + 1.0)


@triton.jit
def mish(x):
    return x * tanh(softplus(x))


# -- choice, rounding and rests -------------------------------------------------------------------


@triton.jit
def sign(x):  # of NaN 0
    return (x > 0.0).to(x.dtype) - (x < 0.0).to(x.dtype)


@triton.jit
def lerp(a, b, w):
    return tl.where(tl.abs(w) < 0.5, a + w * (b - a), b - (b - a) * (1.0 - w))


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def rint(x):  # ties to even
    a = tl.abs(x)
    if x.dtype == tl.float32:
        return tl.where(a < 2.0**23, _copysign((a + 2.0**23) - 2.0**23, x), x)
    else:
        return tl.where(a < 2.0**52, _copysign((a + 2.0**52) - 2.0**52, x), x)


@triton.jit
def hypot(a, b):
    p, q = tl.abs(a), tl.abs(b)
    most, least = maximum(p, q), minimum(p, q)
    ratio = least / tl.where(most == 0.0, 1.0, most)
    y = most * sqrt(ratio * ratio + 1.0)
    return tl.where((p == INF) | (q == INF), INF, y)


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
