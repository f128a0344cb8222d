"""Tests of the test: a fault is planted, and `judge` must notice."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler import passes
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.cpu import chunks, kernel, plan
from flexrnn.engine.cpu.after import After

from ...quickly import compile_quickly
from ..summed import DeltaCell

Judge = Callable[..., None]


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is one in whatever way it is compiled."""
    compile_quickly(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and loops are made anew, and forgotten with their faults."""
    monkeypatch.setattr(passes, "_programs", {})
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())


def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops run a few steps at a time."""
    monkeypatch.setattr(chunks, "ROWS", 3)
    monkeypatch.setattr(chunks, "BYTES", 1)


def judged(judge: Judge, cell: Any, T: int = 5, B: int = 3, H: int = 35) -> None:
    layer = flexrnn.FlexRNN(cell, 7, H, dtype=torch.float64)
    wide = dict(cell(7, H).state_sizes)
    sizes = [wide.get(field, H) for field in cell.State._fields]
    hx = tuple(torch.randn(1, B, size, dtype=torch.float64) for size in sizes)
    judge(layer, torch.randn(T, B, 7, dtype=torch.float64), hx)


def at_two_sizes(judge: Judge, cell: Any) -> None:
    # One row, so that threads share units; steps enough that no luck keeps them together. In 200
    # of a layer norm's, roundings grow beyond what is allowed in one of ten draws, by any engine.
    judged(judge, cell, T=100 if cell is cells.LayerNormLSTMCell else 200, B=1)
    judged(judge, cell)


def wrong_derivative(name: str) -> Any:
    """The row of an operation, with one cotangent a thousandth too large."""
    row = OPS[name]
    assert row.vjp is not None
    vjp = row.vjp

    def wrong(*operands: Any, **attributes: float) -> tuple[Any, ...]:
        *others, last = vjp(*operands, **attributes)
        return (*others, last * 1.001)

    return row._replace(vjp=wrong)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("tanh", cells.RNNCell),
        ("sigmoid", cells.GRUCell),
        ("mul", cells.LSTMCell),
        ("rsqrt", cells.LayerNormLSTMCell),
    ],
)
def test_a_wrong_derivative(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, name: str, cell: Any
) -> None:
    monkeypatch.setitem(OPS, name, wrong_derivative(name))
    with pytest.raises(AssertionError, match="gradient of"):
        judged(judge, cell)


def test_a_wrong_form_of_an_operation_in_cpp(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, "sub", OPS["sub"]._replace(cpp="{a} - {b} * REAL(1.001)"))
    with pytest.raises(AssertionError, match="result 0"):
        judged(judge, cells.GRUCell)


NOBODY = "Team{team.shares, team.id, 1, 0}.each([&](long who) {\n        if"
FAULTS = {
    "no share is waited for": ("takes(long who) {", "takes(long who) { return who == id;"),
    "one meeting a step too few": ("    team.each([&](long who) {\n        if", f"    {NOBODY}"),
    # Nobody takes shares over there: threads of unlike rounds may wait for one another for ever.
    "a meeting that lets the first pass": (
        "- round) < 0; spins++) {\n            if (helps",
        "- round) < -1; spins++) {\n            if (false",
    ),
    "the last of an odd number of rows is left out": ("share(B, id,", "share(B - B % 2, id,"),
    "units behind the last whole vector are left out": ("int(left));", "0);"),
    "a thread too few in a sum over all": ("id < threads; id++) all += ", "id < 0; id++) all += "),
    "a sum over time forgets what it had": ("now = old + more;", "now = more;"),
    "units behind the last vector give nothing": ("if (unit < units.last)", "if (false)"),
    "a reduction goes on where the last row's ended": (" vec gathered0", " static vec gathered0"),
    "threads' means are taken for the row's": ("+= n * from * from;", "+= 0 * from;"),
    "a thread takes the row's mean for its own": ("/ (units.last - units.first)", "/ f.W0"),
    "squares are found of half a thread's units": (
        "id, f.of);\n    return", "2 * id, 2 * f.of);\n    return",
    ),
    "a sum along an axis forgets what it had": ("place ? load<TAIL>(p, n) + v : v", "v"),
    "a sum along an axis goes on": ("place ? load", "true ? load"),
    "what each computes for itself is saved by none": ("if (f.id == 0) *(", "if (0) *("),
    "a thread computes nothing for itself": ("- rows.first, 0, 1)", "* !f.id, 0, 1)"),
    "a chunk begins with the last state's derivative": ("done = T - last", "done = 0"),
    "a chunk forgets the weights": ("if (last == T)", "if (first == 0)"),
    "a weight's last row is left out": ("(long k = 0; k < K;", "(long k = 1; k < K;"),
}  # fmt: skip
CELL_OF = {
    "a sum along an axis forgets what it had": DeltaCell,
    "a sum along an axis goes on": DeltaCell,
    "threads' means are taken for the row's": cells.LayerNormLSTMCell,
    "a thread takes the row's mean for its own": cells.LayerNormLSTMCell,
    "squares are found of half a thread's units": cells.LayerNormLSTMCell,
    "units behind the last vector give nothing": cells.LayerNormLSTMCell,
    "a reduction goes on where the last row's ended": cells.LayerNormLSTMCell,
    "a thread too few in a sum over all": cells.LayerNormLSTMCell,
    "what each computes for itself is saved by none": cells.LayerNormLSTMCell,
    "a thread computes nothing for itself": cells.LayerNormLSTMCell,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_line_of_cpp(
    judge: Judge, changed: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    library, planted = changed(*FAULTS[fault])
    monkeypatch.setattr(kernel, "library", library)
    if "chunk" in fault:
        in_chunks(monkeypatch)
    with pytest.raises(AssertionError, match=": error"):
        at_two_sizes(judge, CELL_OF.get(fault, cells.RNNCell))
    assert any(planted), "the line that was to be spoilt is not there"


@pytest.mark.usefixtures("products")
def test_weights_learn_from_the_last_chunk_alone(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer: Any = After._outer  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(After, "_outer", lambda *args: outer(*args)._replace(adds=False))
    in_chunks(monkeypatch)
    with pytest.raises(AssertionError, match="gradient of weight"):
        judged(judge, cells.RNNCell)


def test_without_a_fault_nothing_is_noticed(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in (cells.RNNCell, cells.LayerNormLSTMCell):
        at_two_sizes(judge, cell)
    in_chunks(monkeypatch)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    judged(judge, cells.RNNCell)


def test_memory_that_nobody_wrote_is_nan() -> None:
    """Otherwise a number that is left out might be right by chance."""
    assert torch.empty(1000).isnan().all()
