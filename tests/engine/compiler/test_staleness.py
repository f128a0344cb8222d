"""What changes between two calls: the next one sees it, as the reference does."""

import itertools
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler import passes


class OptionsCell(flexrnn.Cell):
    """A cell whose result depends on everything that can change."""

    State = cells.HiddenState
    shift: Tensor

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, device=device, dtype=dtype)
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, device=device, dtype=dtype))
        self.register_buffer("shift", torch.ones(hidden_size, device=device, dtype=dtype))
        self.plain = torch.ones(hidden_size, device=device, dtype=dtype)
        self.leak = 0.5
        self.nested = {"scale": [2.0]}
        self.squash: Any = torch.tanh

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        z = self.norm(self.inner(x)) * self.weight_hh + self.shift * state.h + self.plain
        new = self.squash(z) * self.nested["scale"][0]
        if self.training:
            new = new * 0.5
        return cells.HiddenState(self.leak * state.h + (1 - self.leak) * new)


class Slotted:
    """An object that has no `__dict__`."""

    __slots__ = ("__weakref__", "gain")
    unit = 1.0

    def __init__(self, gain: float) -> None:
        self.gain = gain


class HeldCell(flexrnn.Cell):
    """A cell that finds its numbers in all the places where Python may keep them."""

    State = cells.HiddenState
    scale: Any = 1.5
    table: ClassVar[list[float]] = [0.5]

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.squash = Squash()
        self.slotted = Slotted(1.25)
        self.weak = weakref.ref(self.slotted)

    def helped(self, z: Tensor) -> Tensor:
        return z * self.table[0]

    @property
    def shift(self) -> float:
        return 0.25

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        z = self.squash(self.helped(self.inner(x)) + self.scale * state.h)
        held: Any = self.weak()
        return cells.HiddenState(z * self.slotted.gain * held.unit + self.shift)


class Squash(nn.Module):
    gain = 0.75

    def forward(self, z: Tensor) -> Tensor:
        return self.gain * z.tanh()


CLASSES: dict[str, tuple[Any, str, Any]] = {
    "a number of the class": (HeldCell, "scale", 0.1),
    "a list of the class": (HeldCell, "table", [2.0]),
    "a method of the class": (HeldCell, "helped", lambda self, z: z.sin()),
    "a property": (HeldCell, "shift", property(lambda self: -1.0)),
    "the step itself": (HeldCell, "step", lambda self, x, s: cells.HiddenState(s.h * 0.5)),
    "a number of a class inside": (Squash, "gain", 3.0),
    "a method of a class inside": (Squash, "forward", lambda self, z: z * 0.5),
    "a number of an object's class": (Slotted, "unit", 2.0),
}  # fmt: skip


@pytest.mark.parametrize("what", CLASSES)
def test_a_change_of_a_class_is_seen(
    what: str, monkeypatch: pytest.MonkeyPatch, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(HeldCell, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)
    before = layer(x)[0].detach()
    monkeypatch.setattr(*CLASSES[what])
    assert not torch.equal(layer(x)[0].detach(), before)
    same_by_program(layer, x)
    monkeypatch.undo()
    same_by_program(layer, x)


def test_a_change_inside_what_has_no_dict_is_seen(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(HeldCell, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)
    cell_of(layer).slotted.gain = 4.0
    same_by_program(layer, x)


def test_a_list_of_a_class_that_is_written_is_seen(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(HeldCell, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    same_by_program(layer, x)
    HeldCell.table[0], before = 3.0, HeldCell.table[0]
    try:
        same_by_program(layer, x)
    finally:
        HeldCell.table[0] = before


def test_the_mode_of_gradients_is_seen(function_layer: Any) -> None:
    layer = function_layer(lambda c, z, h: h + z * (2 if torch.is_grad_enabled() else 3))
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    layer.requires_grad_(False)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            right = layer(x)[0]
            with flexrnn.backend("interpreter"):
                assert_close(layer(x)[0], right, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Unhashable:
    """It says that it can be hashed, and cannot."""

    numbers: list[float]


def test_an_object_that_only_seems_hashable_is_no_obstacle(
    function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    layer = function_layer(lambda c, z, h: h + z * c.held.numbers[0])
    cell_of(layer).held = Unhashable([2.0])
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    same_by_program(layer, x)
    cell_of(layer).held.numbers[0] = 5.0
    same_by_program(layer, x)


MOVED: dict[str, tuple[Any, Callable[[Any], float]]] = {
    "a count": (itertools.count(1), next),
    "a generator": ((float(k) for k in range(99)), next),
    "Python's random": (random.Random(0), lambda held: held.random()),
    "NumPy's random": (numpy.random.default_rng(0), lambda held: held.random()),
}


@pytest.mark.parametrize("what", MOVED)
def test_what_a_step_moves_on_is_refused(what: str, function_layer: Any) -> None:
    held, asked = MOVED[what]
    layer = function_layer(lambda c, z, h: h + z * asked(c.held))
    cell_of(layer).held = held
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match="the attribute held"):
        layer(x)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def cell_of(layer: flexrnn.FlexRNN) -> Any:
    return layer.cells[0]


CHANGES: dict[str, Callable[[flexrnn.FlexRNN], object]] = {
    "an attribute": lambda layer: setattr(cell_of(layer), "leak", 0.1),
    "inside an attribute": lambda layer: cell_of(layer).nested["scale"].__setitem__(0, 3.0),
    "a function": lambda layer: setattr(cell_of(layer), "squash", torch.sigmoid),
    "an option of a module inside": lambda layer: setattr(cell_of(layer).norm, "eps", 0.3),
    "a buffer in place": lambda layer: cell_of(layer).shift.mul_(0.3),
    "another buffer": lambda layer: setattr(
        cell_of(layer), "shift", torch.full((5,), 0.7, dtype=torch.float64)
    ),
    "a plain tensor": lambda layer: cell_of(layer).plain.mul_(3),
    "eval": lambda layer: layer.eval(),
    "a weight in place": lambda layer: layer.get_parameter("weight_hh_l0").data.mul_(2),
    "a parametrization": lambda layer: parametrize.register_parametrization(
        layer, "weight_hh_l0", Doubled()
    ),
    "a frozen weight": lambda layer: layer.get_parameter("weight_hh_l0").requires_grad_(False),
    "a method of the class": lambda layer: setattr(
        cell_of(layer), "step", lambda x, state: cells.HiddenState(state.h + x.sum(-1, True))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_calls_is_seen(
    change: str, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(OptionsCell, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)
    before = layer(x)[0].detach()
    CHANGES[change](layer)
    if change != "a frozen weight":
        assert not torch.equal(layer(x)[0].detach(), before)
    same_by_program(layer, x)


def test_another_dtype_is_another_program() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        layer, x = layer.to(dtype), x.to(dtype)
        right = layer(x)[0]
        with flexrnn.backend("interpreter"):
            ours = layer(x)[0]
        assert ours.dtype == dtype
        assert float((ours - right).detach().norm() / right.detach().norm()) <= bound


def test_autocast_between_two_calls_is_seen() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    with flexrnn.backend("interpreter"):
        plain = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="bfloat16"):
            layer(x)  # a program has one dtype
        assert torch.equal(layer(x)[0], plain)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the compiler has known is forgotten; a line for every trace."""
    found: list[str] = []

    def noted(*args: Any) -> Any:
        found.append("traced")
        return trace(*args)

    trace = passes.trace
    monkeypatch.setattr(passes, "trace", noted)
    monkeypatch.setattr(passes, "_programs", {})
    monkeypatch.setattr(passes, "_traces", {})
    return found


def test_programs_for_unlike_gradients_are_of_one_trace(traced: list[str]) -> None:
    layer, x = flexrnn.LSTM(3, 5, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    hx = (torch.randn(1, 2, 5, dtype=torch.float64), torch.randn(1, 2, 5, dtype=torch.float64))
    for learns in [(), (0,), (1,), (0, 2)]:
        given = [t.clone().requires_grad_(k in learns) for k, t in enumerate((x, *hx))]
        leaves = [*(given[k] for k in learns), *layer.parameters()]
        found = []
        for engine in ("cpu", "reference"):
            with flexrnn.backend(engine):
                output, _ = layer(given[0], (given[1], given[2]))
            found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        assert_close(*found, rtol=1e-11, atol=1e-12)
        assert len(traced) == 1
    layer.weight_ih_l0.requires_grad_(False)
    layer(x)
    assert len(traced) == 2  # a trace may depend on it


def test_a_step_that_cannot_be_compiled_is_traced_once(
    traced: list[str], function_layer: Callable[..., flexrnn.FlexRNN]
) -> None:
    layer = function_layer(lambda cell, z, h: h + torch.erfinv(z.tanh()))
    for learns in (False, True):
        x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=learns)
        with pytest.raises(RuntimeError, match="erfinv"), flexrnn.backend("cpu"):
            layer(x)
    assert len(traced) == 1
