"""Every row of the table in Triton against torch's function, at ordinary numbers and special ones.

Triton interprets the functions here, on any machine; on one with a card they run there as well.
"""

import importlib
import linecache
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flexrnn.engine.compiler.ops import OPS, Op
from flexrnn.engine.cuda.expression import expression, literal

triton = pytest.importorskip("triton", reason="Triton is not installed")
# Torch 2.11 brings 3.6, and 2.14 brings 3.8.
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
HOPPER = ("cuda", 90, 32)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LETTERS = {"float32": "fp32", "float64": "fp64"}
KERNEL = """
@jit
def kernel(p, q, r, y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)[None, :]
    a, b, c = tl.load(p + i), tl.load(q + i), tl.load(r + i)
    tl.store(y + i, {result})
"""

# Beside what is allowed everywhere: NumPy's functions, which differ from machine to machine by an
# ulp, stand for the card's here, and some rows are made of several of them.
ULPS = {"exp": 3, "exp2": 2, "log": 3, "log2": 3, "log10": 4, "log1p": 4, "sigmoid": 4, "sinh": 5,
        "cosh": 5, "asinh": 4, "atanh": 4, "asin": 3, "atan": 3, "atan2": 3, "tan": 4, "silu": 5,
        "erf": 1, "log_sigmoid": 5, "softplus": 5, "gelu_tanh": 3, "erfc": 5}  # fmt: skip
SINKS = {"silu", "mish"}
ON_A_CARD = 3  # more: by which its exponential, its division and its logarithm are off at most


@contextmanager
def interpretation(on: bool) -> Iterator[None]:
    """Whether Triton interprets what is decorated meanwhile; whoever imported it, and when."""
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = on
        yield


def functions(interpreted: bool) -> ModuleType:
    """The package of functions once more, decorated so or so; the process keeps its own."""
    name, above = "flexrnn.engine.cuda.functions", "flexrnn.engine.cuda"
    with pytest.MonkeyPatch.context() as patch, interpretation(interpreted):
        for module in [module for module in sys.modules if module.startswith(name)]:
            patch.delitem(sys.modules, module)
        before = vars(sys.modules[above]).get("functions")
        loaded = importlib.import_module(name)
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]
        delattr(sys.modules[above], "functions")
        if before is not None:
            sys.modules[above].__dict__["functions"] = before
    return loaded


class Kernels:
    """Kernels of one expression each, of operands `a`, `b`, `c`."""

    def __init__(self, interpreted: bool) -> None:
        self.interpreted, self.functions = interpreted, functions(interpreted)
        self.device = "cpu" if interpreted else "cuda"

    def of(self, result: str) -> Any:
        text = KERNEL.format(result=result)
        name = f"<{self.interpreted} {result}>".replace('"', "'")  # as the assembler reads it
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        space = {**vars(self.functions), "__name__": name, "jit": triton.jit}
        with interpretation(self.interpreted):
            exec(compile(text, name, "exec"), space)
        return space["kernel"]

    def computed(self, result: str, given: tuple[Tensor, ...]) -> Tensor:
        """The expression of numbers, which are repeated until the last block is full."""
        count = len(given[0])
        block = 1 << (count - 1).bit_length() if self.interpreted else 1024
        padded = torch.arange(-(-count // block) * block) % count
        columns = [x[padded].to(self.device) for x in (*given, *given[:1] * 2)[:3]]
        y = torch.empty_like(columns[0])
        with np.errstate(all="ignore"):
            options = {} if self.interpreted else {"enable_fp_fusion": True}
            self.of(result)[(len(padded) // block,)](*columns, y, N=block, **options)
        return y[:count].cpu()


@pytest.fixture(scope="module")
def interpreted() -> Kernels:
    return Kernels(interpreted=True)


CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")


# Where there is a card, Triton may be an older one, whose interpreter computes otherwise.
NO_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="the card itself is asked")


@pytest.fixture(scope="module", params=[pytest.param(True, marks=NO_CARD),
                                        pytest.param(False, marks=CARD)],
                ids=["interpreted", "on a card"])  # fmt: skip
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(interpreted=request.param)


def skip_if_rounded_twice(kernels: Kernels) -> None:
    if OLD and kernels.interpreted:
        pytest.skip("this Triton's interpreter rounds the product in `fma` before it adds")


def row(rows: Any, op: Op) -> str:
    """An expression of a row, as a number where it is a truth value."""
    truths = rows.TRUTHS.get(op.name, ())
    names = "abc"[: len(op.domain)]
    operands = [f"({name} != 0.0)" if k in truths else name for k, name in enumerate(names)]
    result = expression(op.name, *operands, **rows.attributes(op))
    return f"({result}).to(a.dtype)" if op.boolean else result


def allowed(rows: Any, name: str, given: tuple[Tensor, ...], kernels: Kernels) -> Any:
    limit = np.full(len(given[0]), max(ULPS.get(name, 0), rows.ULPS.get(name, 0.5)))
    if name == "pow" and kernels.interpreted and given[0].dtype == torch.float64:
        a, b = (x.double() for x in given)
        exponent = (b * a.abs().log2()).abs().nan_to_num(0, 0, 0).numpy()
        return limit + np.where(exponent < 1100, exponent + 2, 0)  # which its comment owns up to
    return limit if kernels.interpreted or limit[0] <= 0.5 else limit + ON_A_CARD


def errors(rows: Any, op: Op, given: tuple[Tensor, ...], kernels: Kernels) -> Any:
    """By how many ulp a row is off at each number, beyond what it may be."""
    got, golden = kernels.computed(row(rows, op), given), rows.golden(op, given)
    off = rows.errors(op.name, got, golden, given) - allowed(rows, op.name, given, kernels)
    if not kernels.interpreted and given[0].dtype == torch.float32:  # a card may take it for 0
        tiniest = torch.finfo(torch.float32).smallest_normal
        exact = torch.from_numpy(golden.astype(np.float64))
        for x in (*given, exact):
            off = np.where(((x != 0) & (x.abs() <= tiniest)).numpy(), 0, off)
        if op.name in SINKS:  # whose factor that is so small grows again
            off = np.where((exact.abs() <= tiniest * given[0].abs()).numpy(), 0, off)
    return got, off


@pytest.mark.parametrize("real", DTYPES)
def test_every_row_computes_what_torch_does(rows: Any, real: str, kernels: Kernels) -> None:
    skip_if_rounded_twice(kernels)
    wrong = {}
    for name, op in OPS.items():
        given = rows.points(op, DTYPES[real])
        got, off = errors(rows, op, given, kernels)
        worst = int(off.argmax())
        if off[worst] > 0:
            at = [float(x[worst]) for x in given]
            wrong[name] = (float(off[worst]), at, float(got[worst]))
    assert wrong == {}


# Which zero is the greater is left open; torch's answer depends on the length of a tensor.
NO_SIGN = {"relu", "relu6"}


@pytest.mark.parametrize("real", DTYPES)
def test_a_zero_has_the_sign_that_torch_gives_it(rows: Any, real: str, kernels: Kernels) -> None:
    wrong = {}
    for name, op in OPS.items():
        given = rows.points(op, DTYPES[real])
        got, expected = kernels.computed(row(rows, op), given), rows.by_torch(op, given)
        zeros = (got == 0) & (expected == 0) & (got.signbit() != expected.signbit())
        if zeros.any() and name not in rows.NO_SIGN | NO_SIGN:
            at = int(zeros.nonzero()[0])
            wrong[name] = ([float(x[at]) for x in given], float(got[at]), float(expected[at]))
    assert wrong == {}


@pytest.mark.parametrize("real", DTYPES)
def test_functions_of_one_operand_are_right_over_all_numbers(
    rows: Any, real: str, kernels: Kernels
) -> None:
    skip_if_rounded_twice(kernels)
    x = rows.all_numbers(DTYPES[real])
    for name in ("exp", "exp2", "expm1", "log1p", "sigmoid", "tanh", "sinh", "asinh", "atan"):
        _, off = errors(rows, OPS[name], (x,), kernels)
        worst = int(off.argmax())
        assert off[worst] <= 0, (name, float(x[worst]), float(off[worst]))


NUMBERS = (0.0, -0.0, 0.1, -0.1, 1.0, 3, 1e-3, 1e-45, 3.4e38, 1e300, 5e-324, -math.inf, math.inf,
           math.nan)  # fmt: skip


@pytest.mark.parametrize("real", DTYPES)
def test_a_literal_is_the_number_to_the_last_bit(real: str, kernels: Kernels) -> None:
    given = (torch.zeros(1, dtype=DTYPES[real]),)
    for number in NUMBERS:
        if OLD and number == 0 and math.copysign(1, number) < 0:
            continue  # which an older Triton cannot say
        expected = torch.tensor([number], dtype=DTYPES[real])
        for text in (f"tl.where(a == 0.0, {literal(number)}, a)", literal(number, real)):
            got = kernels.computed(text, given)
            assert got.numpy().tobytes() == expected.numpy().tobytes() or number != number
            assert got.isnan() == expected.isnan()


def source(kernels: Kernels, result: str, real: str) -> Any:
    """A kernel for Triton's compiler."""
    from triton.compiler import ASTSource

    signature = dict.fromkeys("pqry", f"*{LETTERS[real]}") | {"N": "constexpr"}
    return ASTSource(kernels.of(result), signature, {(4,): 128})


def ttir(kernels: Kernels, result: str, real: str) -> str:
    """A kernel as Triton has typed it, for which no card is needed."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    target = GPUTarget(*HOPPER)
    backend: Any = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options({"enable_fp_fusion": True})
    module_map, generators = backend.get_module_map(), backend.get_codegen_implementation(options)
    made = source(kernels, result, real).make_ir(target, options, generators, module_map, context)
    return str(made)


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    return Kernels(interpreted=False)


OTHER = {"float32": r"\bf64\b", "float64": r"\bf32\b"}


@pytest.mark.skipif(OLD, reason="this Triton writes down numbers of float32 that it does not use")
@pytest.mark.parametrize("real", DTYPES)
def test_a_number_takes_the_type_of_its_block(rows: Any, real: str, compiled: Kernels) -> None:
    with_numbers = {
        **{name: row(rows, op) for name, op in OPS.items()},
        "operator": f"a * {literal(0.1)} + {literal(math.inf)}",
        "leaky_relu": expression("leaky_relu", "a", negative_slope=0.1),
        "operand": expression("div", literal(0.1, real), "b"),
        "choice": expression("where", "a > b", literal(0.1, real), literal(0.2, real)),
    }
    for name, result in with_numbers.items():
        other = re.search(OTHER[real], ttir(compiled, result, real))
        assert other is None, (name, other)
    narrow = ttir(compiled, "a + tl.full((), 0.1, tl.float32)", "float64")
    assert re.search(OTHER["float64"], narrow)  # the test sees one


def ptx(kernels: Kernels, result: str, real: str, folder: Path) -> str:
    from triton.backends.compiler import GPUTarget

    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        options = {"enable_fp_fusion": True}
        made = triton.compile(source(kernels, result, real), GPUTarget(*HOPPER), options)
    return made.asm["ptx"]


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_a_gate_costs_one_exponential_and_one_division(
    name: str, compiled: Kernels, tmp_path: Path
) -> None:
    text = ptx(compiled, expression(name, "a"), "float32", tmp_path)
    assert len(re.findall(r"\bex2\.", text)) == 1
    assert len(re.findall(r"\bdiv\.|\brcp\.", text)) == 1
    assert not re.findall(r"\bbra\b|\bcall\b|\.rn\.ftz|\bdiv\.rn\b", text)


@pytest.mark.parametrize("real", DTYPES)
@pytest.mark.parametrize("name", ["pow", "fmod", "div", "sqrt", "round", "erf"])
def test_what_only_a_card_runs_compiles(
    name: str, real: str, rows: Any, compiled: Kernels, tmp_path: Path
) -> None:
    text = ptx(compiled, row(rows, OPS[name]), real, tmp_path)
    if name in ("div", "sqrt"):  # the nearest number, as torch's
        assert f"{name}.rn.f{real[-2:]}" in text
    assert ".extern .func" not in text  # CUDA's functions are found
