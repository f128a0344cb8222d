"""Programs as data: text there and back, in another process, and damaged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import VERSION, dumps, loads
from flexrnn.engine.cpu import engine as cpu


def lstm() -> Any:
    cell = cells.LSTMCell(3, 4, dtype=torch.float64)
    state = tuple(cell.initial_state((2,), torch.float64))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    wanted = ("x0", *(f"param.{name}" for name, _ in cell.named_parameters()))
    return cell, x, state, compile_step(CellStep(cell), (x,), state, wanted)


TEXT = dumps(lstm()[3])


def test_text_there_and_back_is_the_same_program(cell_class: Any, program_of: Any) -> None:
    program = program_of(cell_class(3, 4))
    again = loads(dumps(program))
    assert again.graph.nodes == program.graph.nodes
    assert again.graph.outputs == program.graph.outputs
    assert again.schedule == program.schedule
    assert dumps(again) == dumps(program)


def test_a_program_runs_in_a_fresh_process(tmp_path: Path) -> None:
    cell, x, state, program = lstm()
    tensors = {name: parameter.detach() for name, parameter in cell.named_parameters()}
    ran = interpreter.forward(program, (x,), state, tensors, ("h",))
    ones = torch.ones_like(ran.history["h"])
    zeros = [torch.zeros_like(s) for s in state]
    backward = interpreter.backward(program, (x,), state, tensors, ran.saved, {"h": ones}, zeros)
    (tmp_path / "program.txt").write_text(dumps(program), encoding="utf-8")
    torch.save((x, state, tensors), tmp_path / "operands.pt")
    code = """
import sys, torch
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import loads
folder = sys.argv[1]
program = loads(open(folder + "/program.txt", encoding="utf-8").read())
x, state, tensors = torch.load(folder + "/operands.pt")
ran = interpreter.forward(program, (x,), state, tensors, ("h",))
ones = torch.ones_like(ran.history["h"])
zeros = [torch.zeros_like(s) for s in state]
grads = interpreter.backward(program, (x,), state, tensors, ran.saved, {"h": ones}, zeros)
torch.save((ran.history["h"], grads), folder + "/results.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    history, gradients = torch.load(tmp_path / "results.pt")
    assert_close(history, ran.history["h"], rtol=0, atol=0)
    assert_close(gradients, backward, rtol=0, atol=0)


def test_the_text_is_stable() -> None:
    assert TEXT.startswith(
        "flexrnn program 4\n"
        "%0 = input name=x0 : (B, 3)\n"
        "%1 = input name=state.h : (B, 4)\n"
        "%2 = input name=state.c : (B, 4)\n"
        "%3 = input name=param.weight_ih : (16, 3)\n"
    )


def test_another_policy_of_saving_is_another_version() -> None:
    """Compiled code that torch keeps on disk knows how many tensors a program of a text saves."""
    program = loads(TEXT)
    saved = [str(program.graph.nodes[i].op) for i in program.schedule.saved]
    assert (VERSION, saved) == (4, ["sigmoid", "sigmoid", "tanh", "sigmoid", "add", "mul"])
    like = torch.empty(2, 4, dtype=torch.float64)
    h, block = cpu.saved_like(program, 5, like, ("h",))
    assert h == "h"
    assert isinstance(block, torch.Tensor)
    assert block.shape == (5 * 5 * 2 * 4,)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("flexrnn program 4", "flexrnn program 3", "expected 'flexrnn program 4' in line 1"),
        ("= sigmoid", "= sigmund", "expected a known operation"),
        ("= tanh %", "= tanh %9999 %", "expected node"),
        (": (B, 16)", ": (B, 17)", "expected shape"),
        ("name=state.h", "name=x0", "expected an input with a new name"),
        ("output state.c", "output state.h", "a new name"),
        ("stop=4 ", "stop=99 ", "expected a part of"),
        ("= product %0", "= product %5", "product"),
    ],
)
def test_a_damaged_program_is_refused_by_line(old: str, new: str, reason: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=r"^program: ") as caught:
        loads(TEXT.replace(old, new, 1))
    assert reason in str(caught.value)


HEAD = "flexrnn program 4\n%0 = input name=x0 : (B, 4)\n%1 = input name=state.h : (B, 4)\n"
LOSS = "%2 = input name=cotangent.h : (B, 4)\n"
WHOLE: dict[str, tuple[str, str]] = {
    "no input": (
        HEAD.replace("x0", "x1") + "output state.h = %1\n",
        "expected the inputs x0, x1, ... and a state"),
    "no state": (HEAD.replace("state.h", "x1") + "output x0 = %1\n", "and a state"),
    "the batch behind": (
        HEAD.replace("x0 : (B, 4)", "x0 : (4, B)") + "output state.h = %1\n",
        "expected the batch first and only there, got 'x0'"),
    "no new state": (HEAD + "output grad.x0 = %0\n", "expected a new state for each old one"),
    "a state of nothing": (
        HEAD + "output state.h = %1\noutput state.c = %1\n", "a new state for each old one"),
    "a state of another shape": (
        HEAD + "%2 = slice %1 axis=-1 start=0 stop=2 : (B, 2)\noutput state.h = %2\n",
        "expected 'state.h' of the shape of 'state.h'"),
    "a gradient of nothing": (
        HEAD + LOSS + "output state.h = %1\noutput grad.x1 = %0\n",
        "expected 'grad.x1' to belong to an input"),
    "a gradient without a loss": (
        HEAD + "output state.h = %1\noutput grad.x0 = %0\n",
        "expected a cotangent of each state, and no other"),
    "a state from the backward pass": (
        HEAD + LOSS + "output state.h = %2\n", "to come before the backward pass"),
    "a sum over the batch in the loop": (
        HEAD + "%2 = outer %1 %1 : (4, 4)\n%3 = product %1 %2 : (B, 4)\noutput state.h = %3\n",
        "expected sums over the batch after the loops"),
    "another spelling": (
        HEAD + "%2 = constant value=1.0 : ()\noutput state.h = %1\n",
        "expected the text as it was written"),
}  # fmt: skip


@pytest.mark.parametrize("what", WHOLE)
def test_a_whole_text_that_is_no_program_is_refused(what: str) -> None:
    text, reason = WHOLE[what]
    with pytest.raises(ValueError, match=r"^program: ") as caught:
        loads(text)
    assert reason in str(caught.value)
    assert loads(HEAD + "output state.h = %1\n").fields == ("h",)


def test_a_program_that_ends_too_early_is_refused() -> None:
    head = TEXT[: TEXT.index("output ")]
    with pytest.raises(ValueError, match="ends too early"):
        loads(head)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(TEXT) - 1),
    st.integers(0, 12),
    st.text(alphabet="%0123456789 =()B,xabstopinu.\n:", max_size=8),
)
def test_a_mutated_program_is_refused_or_is_another_whole_one(
    at: int, length: int, replacement: str
) -> None:
    mutated = TEXT[:at] + replacement + TEXT[at + length :]
    try:
        program = loads(mutated)
    except ValueError:
        with pytest.raises(ValueError, match=r"^program: "):
            loads(mutated)
    else:
        assert loads(dumps(program)).graph.nodes == program.graph.nodes
