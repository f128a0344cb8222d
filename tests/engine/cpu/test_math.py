"""Every row of the table in C++ against torch's function, at ordinary numbers and special ones."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.cpp import expression, prologue

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


def compiled(rows: Any, real: str, isa: Isa) -> ctypes.CDLL:
    """One library with every row."""
    text = prologue(real, isa)
    for name, op in OPS.items():
        letters = "abc"[: len(op.domain)]
        truths = rows.TRUTHS.get(name, ())
        operands = [f"truth({x})" if k in truths else x for k, x in enumerate(letters)]
        result = expression(name, *operands, **rows.attributes(op))
        text += ROW.format(name=name, result=f"real({result})" if op.boolean else f"({result})")
    return library(text, isa)


def computed(lib: ctypes.CDLL, name: str, given: tuple[Tensor, ...]) -> Tensor:
    y = torch.empty_like(given[0])
    padded = (*given, *given[:1] * 2)[:3]
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*padded, y)]
    getattr(lib, f"{name}_row")(*pointers, ctypes.c_long(len(y)))
    return y


@pytest.mark.parametrize("real", DTYPES)
def test_every_row_computes_what_torch_does(rows: Any, real: str, isa: Isa) -> None:
    lib, wrong = compiled(rows, real, isa), {}
    for name, op in OPS.items():
        given = rows.points(op, DTYPES[real])
        got = computed(lib, name, given)
        off = rows.errors(name, got, rows.golden(op, given), given)
        worst = int(off.argmax())
        if off[worst] > rows.ULPS.get(name, 0.5):
            at = [float(x[worst]) for x in given]
            wrong[name] = (float(off[worst]), at, float(got[worst]))
    assert wrong == {}


@pytest.mark.parametrize("real", DTYPES)
def test_a_zero_has_the_sign_that_torch_gives_it(rows: Any, real: str, isa: Isa) -> None:
    lib, wrong = compiled(rows, real, isa), {}
    for name, op in OPS.items():
        given = rows.points(op, DTYPES[real])
        got, expected = computed(lib, name, given), rows.by_torch(op, given)
        zeros = (got == 0) & (expected == 0) & (got.signbit() != expected.signbit())
        if zeros.any() and name not in rows.NO_SIGN:
            at = int(zeros.nonzero()[0])
            wrong[name] = ([float(x[at]) for x in given], float(got[at]), float(expected[at]))
    assert wrong == {}


WHOLE_VECTORS = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "softplus",
                 "log_sigmoid", "logaddexp", "tanh", "erf", "erfc", "gelu", "gelu_tanh", "silu",
                 "elu", "selu", "mish", "sqrt", "sinh", "cosh", "asinh", "acosh", "atanh", "atan",
                 "atan2", "hypot")  # fmt: skip
OF_ALL = ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "tanh", "sinh",
          "cosh", "asinh", "acosh", "atan", "sin", "cos")  # fmt: skip


@pytest.mark.parametrize("real", DTYPES)
def test_functions_of_one_operand_are_right_over_all_numbers(
    rows: Any, real: str, isa: Isa
) -> None:
    lib, dtype = compiled(rows, real, isa), DTYPES[real]
    x = rows.all_numbers(dtype)
    for name in OF_ALL:
        off = rows.errors(name, computed(lib, name, (x,)), rows.golden(OPS[name], (x,)), (x,))
        worst = int(off.argmax())
        assert off[worst] <= rows.ULPS[name], (name, float(x[worst]))


@pytest.mark.parametrize("real", DTYPES)
@pytest.mark.parametrize("alike", [False, True], ids=["of any two sizes", "of like sizes"])
def test_functions_of_two_operands_are_right_over_all_numbers(
    rows: Any, real: str, isa: Isa, alike: bool
) -> None:
    lib, dtype = compiled(rows, real, isa), DTYPES[real]
    a = rows.all_numbers(dtype)
    ratio = torch.empty_like(a).uniform_(-18, 18).exp2()  # small enough for no lane to be special
    b = a.roll(1) * ratio if alike else rows.all_numbers(dtype)[torch.randperm(len(a))]
    a = a.roll(1) if alike else a
    for name in ("atan2", "hypot", "remainder"):
        off = rows.errors(name, computed(lib, name, (a, b)), rows.golden(OPS[name], (a, b)), (a, b))
        worst = int(off.argmax())
        assert off[worst] <= rows.ULPS[name], (name, float(a[worst]), float(b[worst]))


@pytest.mark.parametrize("real", DTYPES)
def test_waves_near_their_zeros_and_far_from_0(rows: Any, real: str, isa: Isa) -> None:
    lib, dtype = compiled(rows, real, isa), DTYPES[real]
    far = 9e4 if real == "float" else 9e8
    angles = torch.arange(-2_000, 2_000, dtype=torch.float64) * (torch.pi / 2)
    near = (angles * torch.tensor([1.0, 25.0]).unsqueeze(1)).flatten()
    anywhere = torch.empty(40_000, dtype=torch.float64).uniform_(-far, far)
    for x in (near.to(dtype), anywhere.to(dtype)):
        for name in ("sin", "cos"):
            off = rows.errors(name, computed(lib, name, (x,)), rows.golden(OPS[name], (x,)), (x,))
            worst = int(off.argmax())
            assert off[worst] <= rows.ULPS[name], (name, float(x[worst]))


@pytest.mark.parametrize("real", DTYPES)
def test_vectors_of_one_special_number(rows: Any, real: str, isa: Isa) -> None:
    """Where no lane is special by itself, the whole vector goes another way."""
    lib, dtype = compiled(rows, real, isa), DTYPES[real]
    sizes = [0.0, 1e-38, 1e-6, 0.5, 1.0, 1.5, 20.0, 1e7, 1e8, 1e16, 1e17, 1e38, torch.inf]
    for size in (torch.nan, *sizes, *(-size for size in sizes)):
        x = torch.full((33,), size, dtype=dtype)
        for name in (*OF_ALL, "atanh", "tan", "asin"):
            got, golden = computed(lib, name, (x,)), rows.golden(OPS[name], (x,))
            off = rows.errors(name, got, golden, (x,))
            assert off.max() <= rows.ULPS.get(name, 0.5), (name, size)
            zeros = (got == 0) & (torch.from_numpy(golden.astype(float)) == 0)
            signs = torch.from_numpy(np.signbit(golden))
            assert name in rows.NO_SIGN or not (zeros & (got.signbit() != signs)).any(), name


@pytest.mark.parametrize("real", DTYPES)
def test_powers_by_products(rows: Any, real: str, isa: Isa) -> None:
    exponents = {halves: f"power{halves}".replace("-", "_") for halves in range(-8, 9) if halves}
    text = prologue(real, isa)
    for halves, name in exponents.items():
        text += ROW.format(name=name, result=f"power<{halves}>(a)")
    lib, dtype = library(text, isa), DTYPES[real]
    sizes = torch.empty(1_000, dtype=torch.float64).uniform_(-4, 4)
    special = torch.tensor([0.0, -0.0, 1, -1, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([10**sizes, -(10**sizes), special]).to(dtype)
    for halves, name in exponents.items():
        with np.errstate(all="ignore"):
            golden = np.power(x.numpy().astype(np.longdouble), halves / 2)
        off = rows.errors("pow", computed(lib, name, (x,)), golden, (x,))
        worst = int(off.argmax())
        assert off[worst] <= 4, (halves / 2, float(x[worst]))
        signs = torch.from_numpy(np.signbit(golden))
        assert not ((x == 0) & (computed(lib, name, (x,)).signbit() != signs)).any(), halves / 2


@pytest.mark.parametrize("real", DTYPES)
def test_no_lane_of_them_goes_through_libm(rows: Any, real: str, isa: Isa) -> None:
    text = prologue(real, isa)
    for name in WHOLE_VECTORS:
        letters = "abc"[: len(OPS[name].domain)]
        text += ROW.format(
            name=name, result=expression(name, *letters, **rows.attributes(OPS[name]))
        )
    names = {f"{name}{ending}".encode() for name in WHOLE_VECTORS for ending in ("", "f")}
    assert not names & set(called(library(text, isa)))
    through = text + ROW.format(name="tan", result="tan(a)")  # the test sees a call
    assert {b"tan", b"tanf"} & set(called(library(through, isa)))


def called(lib: ctypes.CDLL) -> list[bytes]:
    """Every name in a library that the loader might look up, and much else."""
    return Path(lib._name).read_bytes().split(b"\0")
