"""Cells written in a line, and both engines side by side."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program

from .written import Cell

ALL_CELLS = [
    cells.LSTMCell,
    cells.GRUCell,
    cells.RNNCell,
    cells.PeepholeLSTMCell,
    cells.ArticlePeepholeLSTMCell,
    cells.NaiveLSTMCell,
    cells.LayerNormLSTMCell,
]


class FunctionCell(flexrnn.Cell):
    """`h ← function(cell, W x + b, h)`."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState(self.function(self, self.inner(x), state.h))


@pytest.fixture(params=ALL_CELLS, ids=lambda cell: cell.__name__)
def cell_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def function_layer() -> Callable[..., flexrnn.FlexRNN]:
    """A layer of `FunctionCell` in float64, I = 3, H = 5."""

    def make(function: Callable[..., Tensor], **options: Any) -> flexrnn.FlexRNN:
        options = {"dtype": torch.float64, "function": function, **options}
        return flexrnn.FlexRNN(FunctionCell, 3, 5, **options)

    return make


@pytest.fixture
def refuses(function_layer: Callable[..., flexrnn.FlexRNN]) -> Callable[..., None]:
    """Assert that the cpu engine refuses a step, for a reason that matches."""

    def check(function: Callable[..., Tensor], reason: str) -> None:
        with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason):
            function_layer(function)(torch.randn(2, 3, 3, dtype=torch.float64))

    return check


@pytest.fixture
def program_of() -> Callable[..., Program]:
    """The program of a cell in float64, with every gradient or those that are named."""

    def make(cell: flexrnn.Cell, wanted: tuple[str, ...] | None = None) -> Program:
        cell = cell.double()
        names = ("x0", *(f"param.{name}" for name, _ in cell.named_parameters()))
        state = tuple(cell.initial_state((2,), torch.float64))
        x = torch.randn(4, 2, cell.input_size, dtype=torch.float64)
        return compile_step(CellStep(cell), (x,), state, names if wanted is None else wanted)

    return make


@pytest.fixture
def same_by_program() -> Callable[..., None]:
    """Assert that a layer gives the same by every engine, all gradients too."""

    def check(layer: nn.Module, *args: Any, rtol: float = 1e-11) -> None:
        found: list[list[Any]] = []
        for engine in ("reference", "interpreter", "cpu"):
            leaves = [p for p in layer.parameters() if p.requires_grad]
            leaves += [a for a in _tensors(args) if a.requires_grad]
            with flexrnn.backend(engine):
                outs = [t for t in _tensors(layer(*args)) if t.is_floating_point()]
            loss = torch.zeros((), dtype=torch.float64)
            for out in outs:
                weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
                loss = loss + (out * weights).sum()
            grads: Any = [None] * len(leaves)
            if leaves and loss.requires_grad:
                grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            # A tensor that has no influence has no gradient, or zero: both say the same.
            found.append([*outs, *(torch.zeros(()) if g is None else g for g in grads)])
        expected, *others = found
        for engine in others:
            for right, ours in zip(expected, engine, strict=True):
                if right.shape != ours.shape:
                    assert not right.any()
                    assert not ours.any()
                else:
                    scale = max(1.0, float(right.detach().abs().max())) if right.numel() else 1.0
                    assert_close(ours, right, rtol=rtol, atol=rtol * scale)

    return check


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


@pytest.fixture
def judge(same_by_program: Callable[..., None]) -> Callable[..., None]:
    """Assert that the engines agree on a step, at several T and B, with T = B = 1 among them."""

    def check(function: Callable[..., Tensor], scale: float = 1.0) -> None:
        layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=function)
        for steps, batch in ((3, 2), (1, 1), (2, 3)):
            x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
            h = (scale * torch.randn(1, batch, 4, dtype=torch.float64)).requires_grad_()
            same_by_program(layer, x, h)

    return check
