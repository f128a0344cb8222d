"""Generated kernels by Triton's compiler and NVIDIA's assembler, for which no card is needed."""

import io
import math
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import kernels, plan, tiers
from flexrnn.engine.cuda.calls import Call
from flexrnn.engine.cuda.emit import FIRST_POINTER
from tests.engine.cuda import odd

triton = pytest.importorskip("triton", reason="Triton is not installed")

SHARED = 227 << 10  # bytes that a program has on compute capability 9.0
AMPERE, HOPPER = 80, 90
POINTER = {"tl.float32": "*fp32", "tl.float64": "*fp64", "tl.bfloat16": "*bf16",
           "tl.float16": "*fp16", "tl.uint8": "*u8"}  # fmt: skip
OF_GRID = {"begin": "i32", "end": "i32", "T": "i32", "B": "i32", "layout": "*i64",
           "meeting": "*i64"}  # fmt: skip
FIXED = {"REVERSE": False, "RAGGED": False, "M": 16, "PRECISION": "ieee"}


def loops(cell: Any, hidden_size: int, dtype: torch.dtype, **marks: Any) -> list[Any]:
    """The loop there and the loop back of a layer."""
    layer = flexrnn.FlexRNN(cell, 8, hidden_size)
    program = flexrnn.explain(layer, torch.randn(2, 3, 8)).steps[0].program
    assert program is not None
    found = plan.plan_of(program, program.fields[:1], dtype)
    return [found.forward, found.backward]


def compiled(
    loop: Any, arch: int, itemsize: int, *, by_value: bool, ragged: bool
) -> dict[str, tuple[int, int]]:
    """Of every kernel of a loop, its bytes of shared memory and of registers that were spilled.

    `sequence` with wide tiles, the others with narrow ones, `grid` where the table may take it. A
    step that gets its arguments by value calls the same stage as one that finds them in a table,
    which has pointers to load beside: it is compiled where it is asked for.
    """
    source, found = loop.source(16, even=True), {}
    fixed = {**FIXED, "RAGGED": ragged}
    call = Call(9, 16, False, "ieee", itemsize, processors=132, shared=SHARED)

    def pointers(used: tuple[str, ...]) -> dict[str, str]:
        return pointers_to(source, used)

    wanted = []
    for kernel in loop.source().sequence.kernels:
        options = kernels.WHOLE if source.narrow else kernels.TILED
        counts = {"T": "i32", "B": "i32", "layout": "*i64"}
        text = loop.source().sequence.text
        wanted.append((text, kernel.name, counts, pointers(kernel.used), options))
    grid = next(tier for tier in tiers.TIERS if tier.name == "grid")
    if grid.cost(source, call) < math.inf:
        options = kernels.resident(call, len(source.parts))
        fixed |= {"WARPS": options["num_warps"], "STAGE": -1}
        wanted.append((source.grid.text, "grid", OF_GRID, pointers(source.grid.used),
                       {**options, "launch_cooperative_grid": True}))  # fmt: skip
    options = kernels.of_step(itemsize)
    for kernel in source.steps.kernels:
        counts = {"t": "i32", "T": "i32", "B": "i32", "layout": "*i64"}
        if by_value:
            wanted.append((source.steps.text, kernel.name, counts, pointers(kernel.used), options))
        wanted.append((source.steps.text, f"replayed_{kernel.name}",
                       {"table": "*i64", "ahead": "i32"}, {}, options))  # fmt: skip
    for text, name, counts, given, options in wanted:
        made, spilled = compile_one(text, name, {**counts, **given}, fixed, options, arch)
        found[name] = made.metadata.shared, spilled
    return found


def compile_one(
    text: str,
    name: str,
    given: dict[str, str],
    fixed: dict[str, Any],
    options: Mapping[str, Any],
    arch: int = HOPPER,
) -> tuple[Any, int]:
    """A kernel, and how many bytes of its registers were spilled."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernels.module(text)[name]
    constant = {"layout": None, **fixed} if not fixed["RAGGED"] else fixed
    constant = {name: value for name, value in constant.items() if name in kernel.arg_names}
    signature = {**given, **dict.fromkeys(constant, "constexpr")}
    aligned = {(k,): [["tt.divisibility", 16]] for k, kind in enumerate(signature.values())
               if kind.startswith("*")}  # fmt: skip
    with redirect_stdout(io.StringIO()) as told:  # what the assembler says
        made = triton.compile(
            ASTSource(kernel, signature, constant, aligned), GPUTarget("cuda", arch, 32), options
        )
    spills = re.findall(r"(\d+) bytes spill stores", told.getvalue())
    assert spills, told.getvalue()
    return made, max(map(int, spills))


def pointers_to(source: Any, used: tuple[str, ...]) -> dict[str, str]:
    """The types of the memory that a kernel is given."""
    buffers = (source.buffers[name] for name in used)
    return {b.name: POINTER[b.element] for b in buffers}


def resident(loop: Any, itemsize: int, *, tall: int = 16, **call: Any) -> tuple[Any, int]:
    """The kernel `grid`, with tiles of 16 units; as `compile_one`."""
    source = loop.source(16)
    given = Call(9, tall, False, "ieee", itemsize, processors=132, shared=SHARED, tall=tall)
    given = given._replace(**call)
    options = kernels.resident(given, len(source.parts))
    fixed = {**given.fixed, "WARPS": options["num_warps"], "STAGE": -1}
    pointers = {**OF_GRID, **pointers_to(source, source.grid.used)}
    return compile_one(source.grid.text, "grid", pointers, fixed, options)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Any:
    with triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        triton.knobs.nvidia.dump_ptxas_log = True
        yield


CASES = [
    (flexrnn.cells.LSTMCell, 64, torch.float32, AMPERE, True),
    (flexrnn.cells.LSTMCell, 128, torch.bfloat16, HOPPER, False),
    (flexrnn.cells.LSTMCell, 1000, torch.float32, HOPPER, False),
    (flexrnn.cells.LSTMCell, 1024, torch.bfloat16, HOPPER, True),
    (flexrnn.cells.LSTMCell, 100, torch.float64, HOPPER, False),
    (flexrnn.cells.GRUCell, 60, torch.float16, HOPPER, True),
    (flexrnn.cells.LayerNormLSTMCell, 300, torch.bfloat16, HOPPER, False),
    # What the compiler wants more of shapes and types than the interpreter.
    (odd.ShortAndLong, 200, torch.float32, HOPPER, False),
    (odd.Joined, 200, torch.float32, HOPPER, False),
    (odd.Everywhere, 32, torch.float32, HOPPER, False),
    (odd.Seen, 32, torch.float32, HOPPER, False),
    (odd.Multiplied, 32, torch.float32, HOPPER, False),
    (odd.OneNumber, 32, torch.float32, HOPPER, False),
    (odd.OneNumber, 200, torch.float32, HOPPER, False),
    (odd.Totals, 37, torch.float32, HOPPER, False),
]


@pytest.mark.parametrize(("cell", "hidden_size", "dtype", "arch", "ragged"), CASES)
def test_kernels_compile_and_fit(
    cell: Any, hidden_size: int, dtype: torch.dtype, arch: int, ragged: bool
) -> None:
    for loop in loops(cell, hidden_size, dtype):
        by_value = cell is flexrnn.cells.GRUCell
        for name, (shared, spilled) in compiled(
            loop, arch, dtype.itemsize, by_value=by_value, ragged=ragged
        ).items():
            print(f"{cell.__name__} {hidden_size} {dtype} {name}: {shared} B, {spilled} B spilled")
            assert shared <= SHARED, name
            # A loop of many stages has more pointers at hand than registers.
            assert spilled <= (64 if "step" in name else 1024), name


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "ieee"), (torch.float32, "tf32")]
)
def test_no_two_warps_multiply_the_same(dtype: torch.dtype, precision: str) -> None:
    """A matrix unit multiplies 16 rows, 8 columns, and 32 bytes of each."""
    H = 256
    _, loop = loops(flexrnn.cells.LSTMCell, H, dtype)
    made, _ = resident(loop, dtype.itemsize, precision=precision)
    inner = 4 * H * dtype.itemsize // 32
    assert made.metadata.num_warps == 4
    assert made.asm["ptx"].count("mma.sync") == 2 * inner // 4


def test_a_state_of_half_type_leaves_registers() -> None:
    """As float32 it is changed in registers: 4 KB of them would be spilled."""
    loop, _ = loops(flexrnn.cells.LSTMCell, 1024, torch.bfloat16)
    _, spilled = resident(loop, 2, batch=64, tall=32)
    assert spilled == 0


def test_without_matrix_units_a_product_is_as_it_was() -> None:
    """There, threads share out a result evenly."""
    _, loop = loops(flexrnn.cells.LSTMCell, 64, torch.float32)
    made, _ = resident(loop, 4)
    assert "mma.sync" not in made.asm["ptx"]
    assert '"ttg.num-warps" = 4' in made.asm["ttgir"]
    assert not re.search(r"tt.dot .*tensor<\d+x\d+x\d+xf32", made.asm["ttgir"])


def test_no_kernel_is_compiled_again_for_other_sizes() -> None:
    """Nothing of a kernel depends on T or B: neither is looked at."""
    seen = 0
    for loop in loops(flexrnn.cells.LSTMCell, 64, torch.float32):
        source = loop.source()
        for text, names in ((source.sequence.text, ("T", "B")),
                            (source.grid.text, ("begin", "end", "T", "B")),
                            (source.steps.text, ("t", "T", "B"))):  # fmt: skip
            space = kernels.module(text)
            for kernel in (k for k in space.values() if isinstance(k, triton.JITFunction)):
                for param in kernel.params:
                    kinds = ("sequence", "grid", "step")
                    if kernel.__name__.startswith(kinds) and param.name in names:
                        assert param.do_not_specialize
                        seen += 1
        assert f"tl.load(table + {FIRST_POINTER})" in source.steps.text
    assert FIRST_POINTER == 4
    assert seen == (2 + 4 + 3) + (2 + 4 + 3 + 3)  # forward has one step; backward has two
