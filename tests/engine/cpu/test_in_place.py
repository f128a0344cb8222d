"""Weights that are read as they lie, for calls of few steps and rows: which, and the battery."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import plan
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.emit import Shape
from flexrnn.engine.cpu.plan import Sizes

Judge = Callable[..., None]
DOUBLE, SINGLE = torch.float64, torch.float32

CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "columns in one piece": (cells.LSTMCell, {}),
    "rows in one piece": (cells.NaiveLSTMCell, {}),
    "both, and a projection": (cells.LSTMCell, {"proj_size": 2, "num_layers": 2}),
    "several products": (cells.GRUCell, {"bidirectional": True}),
    "reductions": (cells.LayerNormLSTMCell, {}),
}


def kind_of(layer: flexrnn.FlexRNN, steps: int, rows: int) -> Shape:
    x = torch.randn(steps, rows, layer.input_size, dtype=DOUBLE)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    return plan.kind_of(program, Sizes(steps, rows, False, 2), DOUBLE).shape


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(judge: Judge, name: str, rows: int) -> None:
    cell, options = CELLS[name]
    layer = flexrnn.FlexRNN(cell, 5, 19, dtype=DOUBLE, backend="cpu", **options)
    assert kind_of(layer, 2, rows) is Shape.FEW
    judge(layer, torch.randn(2, rows, 5, dtype=DOUBLE))


@pytest.mark.parametrize("name", CELLS)
def test_many_rows_of_a_single_step(judge: Judge, name: str) -> None:
    cell, options = CELLS[name]
    layer = flexrnn.FlexRNN(cell, 5, 19, dtype=DOUBLE, backend="cpu", **options)
    judge(layer, torch.randn(1, 26, 5, dtype=DOUBLE))


@pytest.mark.parametrize("rows", [3, 7])
def test_every_set_of_instructions(judge: Judge, isa: Isa, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_ISA", isa.name)
        patch.setattr(plan, "_known", WeakKeyDictionary())
        for cell in (cells.LSTMCell, cells.NaiveLSTMCell):
            layer = flexrnn.FlexRNN(cell, 40, 37, dtype=SINGLE, backend="cpu")
            judge(layer, torch.randn(2, rows, 40))


def test_calls_that_read_weights_only_a_few_times() -> None:
    layer = flexrnn.LSTM(3, 5, dtype=DOUBLE, backend="cpu")
    few = {(1, 64), (2, 8), (4, 4), (8, 1)}  # steps, rows
    more = {(1, 65), (2, 9), (5, 4), (9, 1)}
    assert {size for size in few | more if kind_of(layer, *size) is Shape.FEW} == few
