# pyright: reportPrivateUsage=false
"""Products of bfloat16: how numbers are rounded and lie in pairs, and what layers make of them."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler import passes
from flexrnn.engine.compiler.program import Program, dumps, loads
from flexrnn.engine.cpu import engine, kernel, outer, plan
from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import has_bfloat16, machine
from flexrnn.engine.cpu.build.toolchain import Toolchain
from flexrnn.engine.cpu.cpp import definitions, prologue
from flexrnn.engine.cpu.emit import Shape

from .sanitized import MEMORY, SANITIZERS
from .written import GXX, become

Judge = Callable[..., None]
HALF = torch.bfloat16
T, B, I, H = 9, 5, 7, 35
LENGTHS, RESET = torch.tensor([9, 2, 4, 1, 7]), torch.arange(T * B).view(T, B) % 4 == 1

pytestmark = pytest.mark.skipif(
    not has_bfloat16(), reason="this machine does not multiply bfloat16"
)

PACKED = """
typedef unsigned short half_of __attribute__((may_alias));

static unsigned short rounded_one(REAL x) { return rounded(broadcast(x))[0] >> 16; }

// One tile of a weight of two blocks, each in two pieces: as it is laid out, and as it lies.
static bool is_right(long K, long cut, long units, long unit, int width, long row, long column) {
    Memory memory;
    const int blocks = 2;
    const long panel = blocks * width, deep = ceil_div(K, 2);
    void* p[2 * blocks];
    Piece pieces[2 * blocks];
    REAL* out = memory.piece(deep * panel);
    for (long i = 0; i < deep * panel; i++) out[i] = -7;
    for (int b = 0; b < blocks; b++) {
        for (int half = 0; half < 2; half++) {
            const long first = half ? cut : 0, last = half ? K : cut;
            const long r = row ? row : units * column + 1, c = column ? column : K * row + 2;
            const int at = 2 * b + (b ? 1 - half : half);  // in one order, and in the other
            p[at] = memory.piece((most(last - first, 1) - 1) * r + (units - 1) * c + 1);
            pieces[at] = {at, b, first, last, 0, r, c};
        }
    }
    pack_pairs(out, p, pieces, 2 * blocks, 0, blocks, unit, units, width);
    for (long k = 0; k < 2 * deep; k++)
        for (long n = 0; n < panel; n++) {
            const long b = n / width, at = unit + n % width;
            unsigned short right = 0;
            for (int i = 2 * b; i < 2 * b + 2; i++) {
                const Piece& piece = pieces[i];
                if (k < piece.first || k >= piece.last || at >= units) continue;
                const REAL* w = (const REAL*)p[i] + (k - piece.first) * piece.row;
                right = rounded_one(w[at * piece.column]);
            }
            if (((half_of*)(out + k / 2 * panel + n))[k % 2] != right) return false;
        }
    return true;
}

int main() {
    const long apart[][2] = {{0, 1}, {1, 0}, {0, 3}, {2, 0}};
    for (long vectors = 1; vectors < 3; vectors++)
        for (long K = 1; K < 4 * VL + 3; K += K < 6 ? 1 : 5)
            for (long cut = 0; cut <= K; cut += cut < 3 ? 1 : 7)
                for (long units = 1; units < 2 * vectors * VL + 2; units += units % 3 + 4)
                    for (long unit = 0; unit < units; unit += vectors * VL)
                        for (auto& by : apart)
                            if (!is_right(K, cut, units, unit, int(vectors * VL), by[0], by[1])) {
                                printf("K %ld, cut %ld, units %ld from %ld, apart %ld, %ld\\n", K,
                                       cut, units, unit, by[0], by[1]);
                                return 1;
                            }
    puts("well");
}
"""
NARROWED = """
// Rows of every length, in pieces of just that; a number of each kind, by both ways of rounding.
int main() {
    for (long K = 1; K < 5 * VL; K++) {
        Memory memory;
        REAL *from = memory.piece(K), *into = memory.piece(ceil_div(K, 2));
        narrow(into, from, K);
        for (long k = 0; k < K + K % 2; k++) {
            const unsigned short right = k < K ? rounded(broadcast(from[k]))[0] >> 16 : 0;
            if (((unsigned short*)into)[k] != right) return printf("%ld of %ld\\n", k, K);
        }
    }
    unsigned state = 1;
    for (long i = 0; i < 1000000; i++) {
        state = state * 1664525u + 1013904223u;
        unsigned word = i % 3 ? state : i % 2 ? state | 0x8000 : (state & 0xffff8000) | 0x8000;
        if (i % 7 == 0) word |= 0x7f800000;  // infinite, or no number
        if (!(word & 0x7f800000)) word &= 0x80000000;  // too small for what multiplies
        REAL x;
        __builtin_memcpy(&x, &word, 4);
        const vec v = broadcast(x);
        const vec by_pairs = pairs(v, v), by_hand = paired(v, v);
        if (__builtin_memcmp(&by_pairs, &by_hand, sizeof(vec))) return printf("%x\\n", word);
    }
    puts("well");
}
"""


@pytest.mark.parametrize("flags", [(), SANITIZERS["both"]], ids=["bare", "sanitized"])
@pytest.mark.parametrize("driver", [PACKED, NARROWED], ids=["packed", "rows"])
def test_pairs_are_laid_out(driver: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    text = prologue("float", machine(), narrow=True) + definitions(narrow=True) + MEMORY + driver
    made = compiler.compile_program(compiler.find(), machine(), text, tmp_path, *flags)
    ran = subprocess.run([made], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("well\n", "", 0)


class Stacked(flexrnn.Cell):
    """Weights in several pieces, of odd numbers of rows; that are turned over; of heads."""

    State = cells.HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        k = 1 / hidden_size**0.5
        self.A = nn.Parameter(k * torch.randn(3, hidden_size, **options))
        self.C = nn.Parameter(k * torch.randn(hidden_size, hidden_size - 3, **options))
        self.V = nn.Parameter(torch.randn(input_size, hidden_size, **options))
        self.D = nn.Parameter(k * torch.randn(5, hidden_size // 5, hidden_size // 5, **options))

    def step(self, x: Any, state: Any) -> Any:
        rows = torch.cat([self.A, self.C.T])
        heads = state.h.unflatten(-1, (5, -1))
        turned = torch.einsum("bgk,gkn->bgn", heads, self.D).flatten(-2)
        mean = (torch.sigmoid(turned) @ rows).mean(-1, keepdim=True)
        return cells.HiddenState(torch.tanh(x @ self.V + state.h @ rows + turned - mean))


MADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (cells.LSTMCell, {}),
    "projection": (cells.LSTMCell, {"proj_size": 9}),
    "GRU": (cells.GRUCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
    "article": (cells.ArticlePeepholeLSTMCell, {}),
    "stacked": (Stacked, {}),
}
CALLS: dict[str, dict[str, Any]] = {
    "bare": {},
    "lengths": {"lengths": LENGTHS},
    "reset": {"reset": RESET},
    "reverse": {"bidirectional": True, "lengths": LENGTHS},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", MADE)
def test_it_keeps_to_the_tolerance_rule(judge: Judge, name: str, call: str) -> None:
    cell, options = MADE[name]
    marks = dict(CALLS[call])
    both = {k: marks.pop(k) for k in ("bidirectional",) if k in marks}
    layer = flexrnn.FlexRNN(cell, I, H, dtype=HALF, **options, **both)
    judge(layer, torch.randn(T, B, I).to(HALF), None, HALF, **marks)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "stacked"])
def test_one_row_whose_input_is_multiplied_before(
    monkeypatch: pytest.MonkeyPatch, judge: Judge, name: str
) -> None:
    monkeypatch.setattr(plan, "_SMALL", 0)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    asked = made_kernels(monkeypatch)
    layer = flexrnn.FlexRNN(MADE[name][0], I, H, dtype=HALF)
    judge(layer, torch.randn(20, 1, I).to(HALF), None, HALF)
    assert asked == {(Shape.ROW, True)}


@pytest.mark.parametrize("name", ["LSTM", "GRU", "layer norm"])
def test_several_rows_whose_input_is_multiplied_before(
    monkeypatch: pytest.MonkeyPatch, judge: Judge, name: str
) -> None:
    monkeypatch.setattr(plan, "is_far", lambda weights: True)
    asked = made_kernels(monkeypatch)
    layer = flexrnn.FlexRNN(MADE[name][0], I, H, dtype=HALF)
    judge(layer, torch.randn(T, B, I).to(HALF), None, HALF)
    assert asked == {(Shape.ROWS, True)}
    keys: list[Any] = [key for known in plan._known.values() for key in known.plans]
    assert keys
    assert all(kind.hoist for _, kind in keys)


def made_kernels(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Shape, bool]]:
    """Of the loops that are compiled from now on, their shapes and whether they are narrow."""
    asked: set[tuple[Shape, bool]] = set()

    class Noted(plan.Kernel):
        def __init__(self, *args: Any, **options: Any):
            asked.add((options["shape"], options["narrow"]))
            super().__init__(*args, **options)

    monkeypatch.setattr(plan, "Kernel", Noted)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    return asked


@pytest.mark.parametrize(
    ("dtype", "casts", "kinds"),
    [
        (HALF, None, {(Shape.ROWS, True)}),
        (torch.float32, HALF, {(Shape.ROWS, True)}),
        (torch.float16, None, {(Shape.ROWS, False)}),
        (torch.float32, None, {(Shape.ROWS, False)}),
        (torch.float64, HALF, {(Shape.ROWS, False)}),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_who_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, casts: Any, kinds: Any, compiled: bool
) -> None:
    asked = made_kernels(monkeypatch)
    layer: Any = flexrnn.GRU(I, H, dtype=dtype)
    run = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    with torch.autocast("cpu", HALF, enabled=casts is not None):
        run(torch.randn(T, B, I, dtype=dtype))[0].float().sum().backward()
    assert asked == kinds
    torch.compiler.reset()


def test_calls_that_read_weights_as_they_lie_are_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = made_kernels(monkeypatch)
    flexrnn.GRU(I, H, dtype=HALF)(torch.randn(2, 1, I).to(HALF))
    assert asked == {(Shape.FEW, False)}


@pytest.mark.usefixtures("folder")
def test_a_compiler_that_does_not_know_these_instructions(
    monkeypatch: pytest.MonkeyPatch, compiler_script: Path
) -> None:
    words = "vdpbf16ps\\|vcvtne2ps2bf16"
    older = f'if grep -qs "{words}" *.cpp; then echo no such instruction; exit 1; fi'
    become(compiler_script, f"{older}\n{GXX}")
    made = Toolchain().library
    for module in (plan, kernel, outer, engine):
        monkeypatch.setattr(module, "library", made)
    monkeypatch.setattr(outer, "_run", outer._run.__wrapped__)
    asked = made_kernels(monkeypatch)
    layer, x = flexrnn.GRU(I, H, dtype=HALF, backend="cpu"), torch.randn(T, B, I).to(HALF)
    layer(x)[0].sum().backward()
    assert asked == {(Shape.ROWS, False)}
    assert "dot(" not in flexrnn.explain(layer, x).steps[0].source


def test_explain_shows_what_is_run() -> None:
    for dtype in (HALF, torch.float32):
        layer, x = flexrnn.GRU(I, H, dtype=dtype), torch.randn(T, B, I, dtype=dtype)
        source = flexrnn.explain(layer, x).steps[0].source
        assert ("dot(" in source, "narrow0(" in source) == (dtype == HALF, dtype == HALF)


def program(dtype: torch.dtype) -> Program:
    layer = flexrnn.GRU(I, H, dtype=dtype)
    report = flexrnn.explain(layer, torch.randn(T, B, I, dtype=dtype)).steps[0]
    assert report.program is not None
    return report.program


def test_the_text_of_a_program_says_so() -> None:
    narrow, wide = program(HALF), program(torch.float32)
    assert (narrow.graph.narrow, wide.graph.narrow) == (True, False)
    texts = dumps(narrow), dumps(wide)
    assert texts[0].splitlines()[1] == "products of bfloat16"
    assert texts[0].replace("products of bfloat16\n", "") == texts[1]
    assert [loads(text).graph.narrow for text in texts] == [True, False]
    assert [dumps(loads(text)) for text in texts] == [*texts]


FAULTS = {
    "the last of an odd number is lost": ("int(ceil_div(K, 2))", "int(K / 2)"),
    "pairs of other rows": ("f.pairs_0_0 + (f.id * f.B + r)", "f.pairs_0_0 + (f.id * f.B)"),
    "weights are packed by another rule": ("* stride + j))[k % 2]", "* stride + j))[0]"),
    "half of what is multiplied": ("dot(acc[0][i][0], x,", "dot(acc[0][i][0], vec{},"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, changed: Any, fault: str
) -> None:
    library, planted = changed(*FAULTS[fault])
    monkeypatch.setattr(kernel, "library", library)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    monkeypatch.setattr(passes, "_programs", {})
    layer = flexrnn.FlexRNN(Stacked, I, H, dtype=HALF)
    with pytest.raises(AssertionError, match="error"):
        judge(layer, torch.randn(T, B, I).to(HALF), None, HALF)
    assert any(planted)


def test_it_is_nearer_to_exact_than_a_loop_in_bfloat16() -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=HALF), torch.randn(50, B, I).to(HALF)
    exact = flexrnn.LSTM(I, H, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    right = exact(x.double())[0]
    errors: list[Tensor] = []
    for name in ("cpu", "reference"):
        with flexrnn.backend(name):
            errors.append((layer(x)[0] - right).norm() / right.norm())
    assert errors[0] < 0.5 * errors[1]


def test_the_same_bits_by_however_many_threads(threads: Callable[[int], Any]) -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=HALF), torch.randn(T, B, I).to(HALF)
    found: list[Sequence[Tensor]] = []
    for count in (1, 2, 3):
        with threads(count):
            output = layer(x)[0]
            found.append((output, *torch.autograd.grad(output.sum(), [*layer.parameters()])))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.fixture
def switch() -> Iterator[Callable[[str], None]]:
    """Torch's switch for what recurrent layers of float32 multiply."""
    mkldnn: Any = torch.backends.mkldnn

    def turn(to: str) -> None:
        mkldnn.rnn.fp32_precision = to

    yield turn
    turn("none")


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("compiled", [False, True])
def test_torchs_switch_lets_float32_multiply_bfloat16(
    switch: Callable[[str], None], compiled: bool, rows: int
) -> None:
    """Whenever it is turned: of calls that are remembered, too. The numbers are autocast's."""
    layer, x = flexrnn.LSTM(I, H, backend="cpu"), torch.randn(4 * T, rows, I)
    run: Any = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer

    def found() -> list[Tensor]:
        output, (h, c) = run(x)
        gradients = torch.autograd.grad(output.square().sum(), [*layer.parameters()])
        with torch.no_grad():
            return [output, h, c, *gradients, run(x)[0]]

    with torch.autocast("cpu", HALF):
        rounded, _ = layer(x)
    exact = found()
    for _ in range(6):
        assert all(torch.equal(a, b) for a, b in zip(exact, found(), strict=True))
    switch("bf16")
    narrow = found()
    for _ in range(6):
        assert all(torch.equal(a, b) for a, b in zip(narrow, found(), strict=True))
    assert torch.equal(narrow[0].to(HALF), rounded)
    assert torch.equal(narrow[0], narrow[-1])
    for a, b in zip(narrow, exact, strict=True):
        assert 1e-5 * b.norm() < (a - b).norm() < 1e-2 * b.norm()
    switch("ieee")
    assert all(torch.equal(a, b) for a, b in zip(exact, found(), strict=True))
    torch.compiler.reset()


def test_float64_does_not_heed_the_switch(switch: Callable[[str], None]) -> None:
    layer, x = flexrnn.GRU(I, H, dtype=torch.float64, backend="cpu"), torch.randn(T, B, I).double()
    exact = layer(x)[0]
    switch("bf16")
    assert torch.equal(layer(x)[0], exact)


def test_the_way_back_may_be_another(switch: Callable[[str], None]) -> None:
    """A switch that is turned in between changes what is multiplied, and nothing else."""
    layer, x = flexrnn.LayerNormLSTM(I, H, backend="cpu"), torch.randn(T, B, I)
    exact = torch.autograd.grad(layer(x)[0].sum(), [*layer.parameters()])
    switch("bf16")
    output = layer(x)[0]
    switch("none")
    other = torch.autograd.grad(output.sum(), [*layer.parameters()])
    for a, b in zip(exact, other, strict=True):
        assert (a - b).norm() < 0.1 * a.norm()
