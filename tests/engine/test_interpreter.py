"""The interpreter's own promises: both directions, and what it saves, told in advance."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.passes import compile_step

T, B, I, H = 5, 2, 3, 4


def call(cell_class: Any, *, steps: int = T) -> tuple[Any, ...]:
    """A program with all gradients, and operands."""
    cell = cell_class(I, H, dtype=torch.float64)
    x = torch.randn(steps, B, I, dtype=torch.float64)
    state = tuple(torch.randn_like(s) for s in cell.initial_state((B,), torch.float64))
    step = CellStep(cell)
    tensors = {name: t.detach() for name, t in step.tensors.items()}
    wanted = ("x0", *(f"state.{f}" for f in step.fields), *(f"param.{name}" for name in tensors))
    return compile_step(step, (x,), state, wanted), (x,), state, tensors


CELLS = [cells.LSTMCell, cells.GRUCell, cells.ArticlePeepholeLSTMCell, cells.LayerNormLSTMCell]


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("cell_class", CELLS)
def test_reverse_is_the_flipped_sequence_flipped(cell_class: Any, steps: int) -> None:
    program, (x,), state, tensors = call(cell_class, steps=steps)
    keep = program.fields
    ran = interpreter.forward(program, (x,), state, tensors, keep, reverse=True)
    flipped = interpreter.forward(program, (x.flip(0),), state, tensors, keep)
    for field in keep:
        assert_close(ran.history[field], flipped.history[field].flip(0), rtol=1e-13, atol=1e-15)
    assert_close(ran.final, flipped.final, rtol=1e-13, atol=1e-15)

    history = {field: torch.randn_like(h) for field, h in ran.history.items()}
    final = tuple(map(torch.randn_like, ran.final))
    got = interpreter.backward(
        program, (x,), state, tensors, ran.saved, history, final, reverse=True
    )
    turned = {field: h.flip(0) for field, h in history.items()}
    expected = interpreter.backward(
        program, (x.flip(0),), state, tensors, flipped.saved, turned, final
    )
    expected["x0"] = expected["x0"].flip(0)
    assert_close(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("keep", [(), ("h",), ("h", "c"), ("c", "h")])
def test_what_is_saved_is_told_in_advance(keep: tuple[str, ...]) -> None:
    program, xs, state, tensors = call(cells.PeepholeLSTMCell)
    ran = interpreter.forward(program, xs, state, tensors, keep)
    told = interpreter.saved_like(program, T, state[0], keep)
    assert len(told) == len(ran.saved)
    for entry, saved in zip(told, ran.saved, strict=True):
        if isinstance(entry, str):
            assert ran.history[entry] is saved
        else:
            assert (entry.shape, entry.dtype) == (saved.shape, saved.dtype)
            assert all(saved is not h for h in ran.history.values())
    assert {entry for entry in told if isinstance(entry, str)} == set(keep)


def test_results_are_memory_of_their_own() -> None:
    class PassingCell(flexrnn.Cell):
        """Hands its input and a field of its state on as they are."""

        State = cells.LSTMState

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)

        def step(self, x: Tensor, state: cells.LSTMState) -> cells.LSTMState:
            return cells.LSTMState(h=x, c=state.c)

    cell, x = PassingCell(H, H), torch.randn(T, B, H)
    state = tuple(torch.randn(B, H) for _ in range(2))
    program = compile_step(CellStep(cell), (x,), state)
    ran = interpreter.forward(program, (x,), state, {}, ("h", "c"))
    results = [*ran.history.values(), *ran.final]
    places = [t.untyped_storage().data_ptr() for t in (*results, x, *state)]
    assert len(set(places)) == len(places)
    assert_close(ran.final, (x[-1], state[1]), rtol=0, atol=0)
