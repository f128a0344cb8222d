# pyright: reportArgumentType=false
# To Python a number is no constant of Triton's, nor a block one.
"""Activations."""

import math

import triton
import triton.language as tl

from flexrnn.engine.cuda.functions.arithmetic import clamp, maximum
from flexrnn.engine.cuda.functions.error import erfc
from flexrnn.engine.cuda.functions.exponential import expm1, sigmoid, tanh
from flexrnn.engine.cuda.functions.logarithm import softplus

ROOT_HALF = tl.constexpr(math.sqrt(0.5))


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
