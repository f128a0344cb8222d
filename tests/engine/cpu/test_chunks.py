"""Loops that run in chunks of a few steps give what they give in one: the battery at the borders.

`judge` says how exact, with 1, 2 and 3 threads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import cells
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program, build
from flexrnn.engine.cpu import chunks, engine, plan
from flexrnn.engine.cpu.backward import Backward
from flexrnn.engine.cpu.chunks import Chunk
from flexrnn.engine.cpu.forward import Forward
from flexrnn.engine.cpu.plan import Sizes
from flexrnn.fields import field_sizes

from ...quickly import compile_quickly

Judge = Callable[..., None]
DOUBLE, SINGLE = torch.float64, torch.float32
T, I, H = 10, 3, 11


class Counted(NamedTuple):
    """How many chunks calls have had."""

    forward: list[int]
    backward: list[int]


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk ends does not depend on how fast its loop is."""
    compile_quickly(monkeypatch)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Chunks of three steps, or two for a batch of more than one row; counted."""
    found = Counted([], [])
    monkeypatch.setattr(chunks, "ROWS", 3)
    monkeypatch.setattr(chunks, "BYTES", 1)
    monkeypatch.setattr(plan, "_SMALL", 0)  # for one row, torch does the input's product
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    for kind, counts in ((Forward, found.forward), (Backward, found.backward)):
        init = kind.__init__

        def counting(self: Any, *args: Any, init: Any = init, counts: Any = counts) -> None:
            init(self, *args)
            counts.append(len(self.chunks))

        monkeypatch.setattr(kind, "__init__", counting)
    return found


def operands(layer: flexrnn.FlexRNN, B: int) -> tuple[Tensor, Any]:
    """An input `(T, B, I)`, and a state before the first step."""
    widths = field_sizes(layer.cells[0])
    dtype = layer.all_weights[0][0].dtype
    hx = tuple(torch.randn(len(layer.cells), B, width, dtype=dtype) for width in widths)
    return torch.randn(T, B, layer.input_size, dtype=dtype), hx


CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (cells.LSTMCell, {}),
    "projection": (cells.LSTMCell, {"proj_size": 2}),
    "peephole": (cells.PeepholeLSTMCell, {}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
}


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(judge: Judge, counted: Counted, name: str, B: int) -> None:
    cell, options = CELLS[name]
    layer = flexrnn.FlexRNN(cell, I, H, dtype=DOUBLE, bidirectional=True, **options)
    judge(layer, *operands(layer, B))
    assert min(counted.backward) == {1: 3, 3: 10}[B]
    assert max(counted.forward) == {1: 3, 3: 1}[B]  # torch does one row's input product


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.usefixtures("products")
def test_a_cell_in_float32(judge: Judge, counted: Counted, B: int) -> None:
    layer = flexrnn.LSTM(I, 70)  # wide enough for products by narrow right operands
    judge(layer, *operands(layer, B))
    assert min(counted.backward) > 1


RESET = torch.rand(T, 3, generator=torch.Generator().manual_seed(0)) < 0.3
FEATURES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "resets and a learned initial state": (
        cells.GRUCell,
        {"learn_initial_state": True, "bidirectional": True},
        {"reset": RESET, "return_states": True},
    ),
    "zoneout, recurrent dropout, two layers": (
        cells.LSTMCell,
        {"num_layers": 2, "zoneout": 0.2, "recurrent_dropout": 0.3},
        {"return_states": True},
    ),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.usefixtures("products")
def test_a_feature(judge: Judge, counted: Counted, name: str) -> None:
    cell, options, marks = FEATURES[name]
    layer = flexrnn.FlexRNN(cell, I, H, dtype=DOUBLE, **options)
    x, hx = operands(layer, 3)
    judge(layer, x, None if options.get("learn_initial_state") else hx, **marks)
    assert min(counted.backward) > 1


def test_sequences_of_unlike_lengths_are_one_chunk(judge: Judge, counted: Counted) -> None:
    layer = flexrnn.GRU(I, H, dtype=DOUBLE, bidirectional=True)
    judge(layer, *operands(layer, 3), lengths=torch.tensor([10, 2, 5]))
    assert set(counted.backward) == {1}


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class FunctionCell(flexrnn.Cell):
    """`a, b ← function(cell, x, a, b)`; I = H."""

    State = Pair

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        shape = hidden_size, hidden_size
        self.W = nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)
        self.U = nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)
        self.heads = nn.Parameter(torch.randn(2, 2, 2, device=device, dtype=dtype) / 2)
        self.v = nn.Parameter(torch.randn(hidden_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: Pair) -> Pair:
        return Pair(*self.function(self, x, *state))


def _by_heads(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    product = torch.einsum("bgk,gkn->bgn", a.unflatten(-1, (2, 2)), c.heads).flatten(1)
    return torch.tanh(product + x @ c.W), b * 0.5 + a


ODD: dict[str, Callable[..., Any]] = {
    "products by heads": _by_heads,
    "a state that never changes": lambda c, x, a, b: (torch.tanh(x @ c.W + (a * b) @ c.U), b),
    "states change places": lambda c, x, a, b: (b, torch.tanh(a @ c.U + x * c.v)),
    "the input is the state": lambda c, x, a, b: (x, torch.tanh(a @ c.W + b)),
    "a parameter made of others": lambda c, x, a, b: (
        torch.tanh(x @ (c.W * torch.tanh(c.v)) + a @ (c.U @ c.W)), b * x + a * c.v),
    "no state is read": lambda c, x, a, b: (x @ c.W, torch.tanh(x) * c.v),
    "a product of the input's product": lambda c, x, a, b: (torch.tanh(x @ c.W @ c.U + a), b * x),
    "all of the input's product is saved": lambda c, x, a, b: (torch.tanh(x @ c.W * a), b * x),
}  # fmt: skip


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_cell(counted: Counted, results: Any, norms: Any, name: str, B: int) -> None:
    layer = flexrnn.FlexRNN(FunctionCell, 4, 4, dtype=DOUBLE, function=ODD[name])
    x, hx = operands(layer, B)
    x.requires_grad_()
    hx = tuple(h.requires_grad_() for h in hx)
    ours, theirs = (results(layer, engine, x, hx) for engine in ("cpu", "reference"))
    for key, expected in theirs.items():
        error, _, norm = norms(key, ours[key], expected, expected)
        assert error <= 1e-12 * norm, key
    assert min(counted.backward) > 1


def made_of_a_sum() -> Program:
    """`h ← h + x w`, and as if by x the derivative were `g (Σ gᵀ x)`: all steps' for each step."""
    graph = Graph()
    x, h = (graph.input(name, ("B", 4)) for name in ("x0", "state.h"))
    w, g = graph.input("param.w", (4, 4)), graph.input("cotangent.h", ("B", 4))
    graph.outputs["state.h"] = graph.add("add", h, graph.add("product", x, w))
    total = graph.add("outer", g, x)
    graph.outputs["grad.state.h"] = graph.add("mul", g, graph.constant(0.5))
    graph.outputs["grad.x0"] = graph.add("product", g, total)
    graph.outputs["grad.param.w"] = graph.add("outer", graph.outputs["grad.x0"], x)
    return build(graph)


def test_what_cannot_be_divided_is_one_chunk(counted: Counted) -> None:
    program = made_of_a_sum()
    xs, state = (torch.randn(T, 3, 4, dtype=DOUBLE),), (torch.randn(3, 4, dtype=DOUBLE),)
    tensors, found = {"w": torch.randn(4, 4, dtype=DOUBLE)}, []
    history, final = {"h": torch.randn(T, 3, 4, dtype=DOUBLE)}, (torch.randn(3, 4, dtype=DOUBLE),)
    for by in (engine, interpreter):
        ran = by.forward(program, xs, state, tensors, ("h",))
        found.append(by.backward(program, xs, state, tensors, ran.saved, history, final))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert counted.backward == [1]


def sizes(steps: int, batch: int, reverse: bool = False) -> Sizes:
    return Sizes(steps, batch, reverse, threads=1)


@pytest.mark.parametrize("steps", [1, 2, 511, 767, 768, 1000, 3001])
@pytest.mark.parametrize(
    ("batch", "numbers", "weights", "rows"),
    [
        (1, 1024, 384 << 10, 128),
        (1, 2048, 576 << 11, 192),  # a third of the weights
        (1, 4096, 2048 << 12, 512),  # however many weights
        (1, 64, 64 * 96, 2048),  # half a MiB
        (7, 1024, 384 << 10, 128),
        (32, 1024, 384 << 10, 256),  # eight steps
        (600, 1024, 384 << 10, 512),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_are_all_steps_and_as_large_as_products_want(
    steps: int, batch: int, numbers: int, weights: int, rows: int, reverse: bool
) -> None:
    of = sizes(steps, batch, reverse)
    found = chunks.chunks(of, numbers, 4, weights)
    assert [t for c in found for t in range(*c)] == list(range(steps))
    assert sorted(t for c in found for t in range(steps)[c.span(of)]) == list(range(steps))
    least, most = 2 * rows // 3 - batch, 3 * rows // 2 + batch
    assert all((c.last - c.first) * batch <= max(most, batch) for c in found)
    assert len(found) == 1 or min(c.last - c.first for c in found) * batch >= least


def test_nothing_to_hand_over_is_one_chunk() -> None:
    assert chunks.chunks(sizes(10_000, 600), 0, 4, 4096) == (Chunk(0, 10_000),)
    assert chunks.chunks(sizes(10_000, 0), 64, 4, 4096) == (Chunk(0, 10_000),)


def test_more_steps_want_no_more_memory_between_loop_and_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid_out: list[int] = []
    init = Backward.__init__

    def noting(self: Any, *args: Any) -> None:
        init(self, *args)
        laid_out.append(self.layout.area.size)

    monkeypatch.setattr(Backward, "__init__", noting)
    layer = flexrnn.LSTM(2, 64, backend="cpu")
    for steps in (64, 640):
        layer(torch.randn(steps, 32, 2))[0].sum().backward()
    few, many = laid_out
    assert many < 1.5 * few


def test_the_same_input_gives_the_same_bits(
    counted: Counted, results: Any, threads: Callable[[int], Any]
) -> None:
    layer = flexrnn.LSTM(I, 70)
    x, hx = operands(layer, 3)
    x.requires_grad_()
    hx = tuple(h.requires_grad_() for h in hx)
    for count in (1, 2):
        with threads(count):
            first, second = (results(layer, "cpu", x, hx) for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert counted.backward
