"""Every row of the table in C++ against torch's function, at ordinary numbers and special ones."""

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexrnn.engine.compiler.ops import OPS, Op
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.cpp import expression, prologue

ATTRIBUTES: dict[str, dict[str, float]] = {"clamp": {"low": -1.0, "high": 1.5}}
BOOLEAN_OPERANDS = {"and": (0, 1), "or": (0, 1), "not": (0,), "where": (0,)}
DTYPES = {"float": torch.float32, "double": torch.float64}

ROW = """
extern "C" __attribute__((visibility("default")))
void {name}_row(const REAL* p, const REAL* q, const REAL* r, REAL* y, long n) {{
    long i = 0;
    for (; i + VL <= n; i += VL) {{
        vec a = load<false>(p + i), b = load<false>(q + i), c = load<false>(r + i);
        store<false>(y + i, {result});
    }}
    if (i == n) return;
    vec a = load<true>(p + i, n - i), b = load<true>(q + i, n - i), c = load<true>(r + i, n - i);
    store<true>(y + i, {result}, n - i);
}}
"""


def attributes(op: Op) -> dict[str, float]:
    return {**dict(op.attributes), **ATTRIBUTES.get(op.name, {})}


def compiled(real: str, isa: Isa) -> ctypes.CDLL:
    """One library with every row."""
    text = prologue(real, isa)
    for name, op in OPS.items():
        letters = "abc"[: len(op.domain)]
        truths = BOOLEAN_OPERANDS.get(name, ())
        operands = [f"truth({x})" if k in truths else x for k, x in enumerate(letters)]
        result = expression(name, *operands, **attributes(op))
        text += ROW.format(name=name, result=f"real({result})" if op.boolean else f"({result})")
    return library(text, isa)


def computed(lib: ctypes.CDLL, name: str, given: tuple[Tensor, ...]) -> Tensor:
    y = torch.empty_like(given[0])
    padded = (*given, *given[:1] * 2)[:3]
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*padded, y)]
    getattr(lib, f"{name}_row")(*pointers, ctypes.c_long(len(y)))
    return y


def special(dtype: torch.dtype) -> list[float]:
    """NaN, infinities, both zeros, denormal and huge numbers, ties, and where a row changes."""
    info = torch.finfo(dtype)
    positive = [0.0, info.smallest_normal * info.eps, info.smallest_normal, info.eps, 0.25, 0.5,
                1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 6.0, 20.0, 20.5, 88.5, 100.0, 104.0, 710.0, 745.5,
                2.0**24 + 2, 1 / info.eps, info.max, torch.inf]  # fmt: skip
    return [torch.nan, *positive, *(-p for p in positive)]


def points(op: Op, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Numbers of the row's domain, ten times as large, and every combination of special ones."""
    count, values = len(op.domain), special(dtype)
    if count == 3:
        values = values[:1] + values[1::4]
    combined = torch.tensor(list(itertools.product(values, repeat=count)), dtype=dtype)
    columns = []
    for k, (low, high) in enumerate(op.domain):
        drawn = torch.empty(4001, dtype=dtype).uniform_(low, high)
        wide = torch.empty(4001, dtype=dtype).uniform_(10 * low, 10 * high)
        column = torch.cat([drawn, wide, combined[:, k]])
        if k in BOOLEAN_OPERANDS.get(op.name, ()):
            column = torch.where(column.isnan(), column, (column > 0.5).to(dtype))
        columns.append(column)
    return tuple(columns)


def by_torch(op: Op, given: tuple[Tensor, ...]) -> Tensor:
    truths = BOOLEAN_OPERANDS.get(op.name, ())
    operands = [x != 0 if k in truths else x for k, x in enumerate(given)]
    return op.torch(*operands, **attributes(op)).to(given[0].dtype)


def _sigmoid(x: Any) -> Any:
    return np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x)))


def _softplus(x: Any) -> Any:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def _elu(x: Any, alpha: float = 1.0) -> Any:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)) * alpha)


def _gelu(x: Any) -> Any:
    half = torch.special.erfc(torch.from_numpy(-x.astype(np.float64)) * 0.5**0.5) * 0.5
    return x * half.numpy()


# On numbers with 64 bits of mantissa: where torch's own function in float64 is not the best there
# is. It loses digits (sigmoid, gelu, elu), fails where the result is huge (cosh) or an operand
# denormal (fmod), or is not the nearest number (sqrt). All others are torch's in float64.
GOLDEN: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
       "tanh", "sinh", "cosh", "sqrt", "fmod", "remainder")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "gelu": _gelu,
    "elu": _elu,
    "selu": lambda x: _elu(x, 1.6732632423543772) * 1.0507009873554805,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * (np.clip(x + 3, 0, 6) / 6),
}  # fmt: skip


def golden(op: Op, given: tuple[Tensor, ...]) -> np.ndarray:
    wide = [x.double().numpy().astype(np.longdouble) for x in given]
    with np.errstate(all="ignore"):
        if op.name in GOLDEN:
            return GOLDEN[op.name](*wide)
        return by_torch(op, tuple(x.double() for x in given)).numpy().astype(np.longdouble)


# Units in the last place; what is not here is the nearest number to the exact result.
ULPS = {
    "exp": 1.5, "exp2": 2, "expm1": 3, "log": 2, "log2": 3, "log10": 3, "log1p": 3, "sigmoid": 3,
    "log_sigmoid": 4, "softplus": 4, "tanh": 3, "sinh": 3, "cosh": 3, "asinh": 3, "acosh": 3,
    "atanh": 3, "erf": 3, "erfc": 5, "sin": 2, "cos": 2, "tan": 2, "asin": 2, "acos": 2, "atan": 2,
    "pow": 3, "atan2": 2, "hypot": 2, "logaddexp": 4, "remainder": 1, "lerp": 3, "rsqrt": 2,
    "elu": 3, "selu": 4, "gelu": 2, "gelu_tanh": 2, "silu": 4, "mish": 8, "hardsigmoid": 2,
    "hardswish": 3, "leaky_relu": 1,
}  # fmt: skip
# Whose digits are those of an operand, for that is what cancels in torch's formula and in ours.
CANCELS = {"lerp", "logaddexp", "gelu", "gelu_tanh", "hardsigmoid", "hardswish"}


# Which make a factor that has underflowed grow again.
SINKS = {"silu", "mish"}


def errors(name: str, got: Tensor, golden: np.ndarray, given: tuple[Tensor, ...]) -> np.ndarray:
    """Of each element, in units of the last place; infinite where only one is NaN."""
    dtype = got.numpy().dtype
    info = np.finfo(dtype)
    with np.errstate(all="ignore"):
        rounded = golden.astype(dtype)
        size = np.abs(rounded)
        if name in CANCELS:
            for x in given:
                size = np.maximum(size, np.abs(x.numpy()))
        if name in SINKS:
            size = np.maximum(size, info.tiny * np.abs(given[0].numpy()))
        size = np.clip(size, info.tiny, info.max * (1 - info.eps))
        off = np.abs(got.numpy().astype(np.longdouble) - golden) / np.spacing(size)
    same = (got.numpy() == rounded) | (np.isnan(got.numpy()) & np.isnan(rounded))
    off[same] = 0
    return np.where(np.isnan(off), np.inf, off)


@pytest.mark.parametrize("real", DTYPES)
def test_every_row_computes_what_torch_does(real: str, isa: Isa) -> None:
    lib, wrong = compiled(real, isa), {}
    for name, op in OPS.items():
        given = points(op, DTYPES[real])
        got = computed(lib, name, given)
        off = errors(name, got, golden(op, given), given)
        worst = int(off.argmax())
        if off[worst] > ULPS.get(name, 0.5):
            at = [float(x[worst]) for x in given]
            wrong[name] = (float(off[worst]), at, float(got[worst]))
    assert wrong == {}


# torch's own answer changes with the length of the tensor.
NO_SIGN = {"maximum", "minimum"}


@pytest.mark.parametrize("real", DTYPES)
def test_a_zero_has_the_sign_that_torch_gives_it(real: str, isa: Isa) -> None:
    lib, wrong = compiled(real, isa), {}
    for name, op in OPS.items():
        given = points(op, DTYPES[real])
        got, expected = computed(lib, name, given), by_torch(op, given)
        zeros = (got == 0) & (expected == 0) & (got.signbit() != expected.signbit())
        if zeros.any() and name not in NO_SIGN:
            at = int(zeros.nonzero()[0])
            wrong[name] = ([float(x[at]) for x in given], float(got[at]), float(expected[at]))
    assert wrong == {}


WHOLE_VECTORS = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "softplus",
                 "log_sigmoid", "logaddexp", "tanh", "erf", "erfc", "gelu", "gelu_tanh", "silu",
                 "elu", "selu", "mish", "sqrt")  # fmt: skip


@pytest.mark.parametrize("real", DTYPES)
def test_functions_of_one_operand_are_right_over_all_numbers(real: str, isa: Isa) -> None:
    lib, dtype = compiled(real, isa), DTYPES[real]
    info = torch.finfo(dtype)
    lowest, highest = {"float": (-45, 38), "double": (-320, 308)}[real]
    sizes = 10 ** torch.empty(40_000, dtype=torch.float64).uniform_(lowest, highest)
    sizes = sizes.to(dtype)
    top = -torch.log(torch.tensor(info.smallest_normal * info.eps, dtype=torch.float64)) + 2
    ranges = torch.empty(40_000, dtype=dtype).uniform_(-float(top), float(top))
    x = torch.cat([sizes, -sizes, ranges, ranges / 10, ranges / 100])
    for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "tanh"):
        off = errors(name, computed(lib, name, (x,)), golden(OPS[name], (x,)), (x,))
        worst = int(off.argmax())
        assert off[worst] <= ULPS[name], (name, float(x[worst]))


@pytest.mark.parametrize("real", DTYPES)
def test_no_lane_of_them_goes_through_libm(real: str, isa: Isa) -> None:
    text = prologue(real, isa)
    for name in WHOLE_VECTORS:
        letters = "abc"[: len(OPS[name].domain)]
        text += ROW.format(name=name, result=expression(name, *letters, **attributes(OPS[name])))
    names = {f"{name}{ending}".encode() for name in WHOLE_VECTORS for ending in ("", "f")}
    assert not names & set(called(library(text, isa)))
    through = text + ROW.format(name="sin", result="sin(a)")  # the test sees a call
    assert {b"sin", b"sinf"} & set(called(library(through, isa)))


def called(lib: ctypes.CDLL) -> list[bytes]:
    """Every name in a library that the loader might look up, and much else."""
    return Path(lib._name).read_bytes().split(b"\0")
