# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# Writing to several tensors at once, and whether a step is traced, have no public names.
"""What a step keeps outside of itself: caches of masks and tables, by whatever means."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.engine.fallback import FallbackWarning

KEPT: dict[Any, Tensor] = {}
DOUBLE = torch.float64


@lru_cache
def triangle(size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(size, size, dtype=dtype).tril()


class Table(nn.Module):
    """Cosines, kept in a dict of the module."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.kept = size, dict[Any, Tensor]()

    def forward(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self.kept:
            self.kept[dtype] = torch.cos(torch.arange(self.size).to(dtype))
        return self.kept[dtype]


class Keeping(flexrnn.Cell):
    State = HiddenState
    of_class: ClassVar[dict[Any, Tensor]] = {}

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how=""):
        super().__init__(input_size, hidden_size)
        self.how = how
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.drop = nn.Dropout(0.3)
        self.table = Table(hidden_size)
        self.register_buffer("calls", torch.zeros(()))

    def kept(self, dtype: torch.dtype) -> Tensor:
        if self.how == "module":
            return self.table(dtype)
        kept = KEPT if self.how == "global" else self.of_class
        if dtype not in kept:
            kept[dtype] = torch.linspace(0, 1, self.hidden_size, dtype=dtype)
        return kept[dtype]

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        (h,) = state
        if self.how.startswith("function"):
            h = h @ triangle(self.hidden_size, h.dtype)
        else:
            h = h * self.kept(h.dtype)
        z = self.inner(x)
        if self.how.endswith("drawn"):
            z = self.drop(z)
        if self.how.endswith("counted"):
            self.calls += 1
        return HiddenState(torch.tanh(z + h))


@pytest.fixture(autouse=True)
def nothing_is_kept_yet() -> None:
    KEPT.clear()
    Keeping.of_class.clear()
    triangle.cache_clear()


@pytest.mark.parametrize("how", ["function", "global", "class", "module"])
def test_what_a_step_keeps_has_numbers_and_is_a_constant(
    how: str, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, 5, dtype=DOUBLE, how=how)
    x = torch.randn(4, 3, 3, dtype=DOUBLE, requires_grad=True)
    with flexrnn.backend("interpreter"):  # before any engine that has numbers
        layer(x)
    same_by_program(layer, x)
    same_by_program(layer.eval(), x)  # another trace, which finds it there
    cell: Any = layer.cells[0]
    kept = [*KEPT.values(), *Keeping.of_class.values(), *cell.table.kept.values()]
    for tensor in kept or [triangle(5, DOUBLE)]:
        assert type(tensor) is Tensor
        assert tensor.isfinite().all()


def test_so_it_is_where_a_trial_of_what_is_drawn_was_the_first() -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, 5, dtype=DOUBLE, how="function, drawn")
    x, outputs = torch.randn(4, 3, 3, dtype=DOUBLE), []
    for engine in ("interpreter", "reference"):
        torch.manual_seed(1)
        with flexrnn.backend(engine):
            outputs.append(layer(x)[0])
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_what_has_been_written_to_since_is_no_constant() -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, 7, dtype=DOUBLE, how="global")  # of no other test's size
    x = torch.randn(4, 3, 3, dtype=DOUBLE)
    with flexrnn.backend("interpreter"):
        layer(x)
        KEPT[DOUBLE].mul_(0.5)
        with pytest.raises(RuntimeError, match="neither input, state nor an attribute"):
            layer.eval()(x)


def test_a_program_whose_constant_is_written_to_is_made_anew() -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, 10, dtype=DOUBLE, how="global")  # of no other test's size
    x = torch.randn(4, 3, 3, dtype=DOUBLE)
    with torch.no_grad(), flexrnn.backend("cpu"):
        for _ in range(4):  # is prepared
            layer(x)
    KEPT[DOUBLE].mul_(0.5)
    with flexrnn.backend("reference"):
        expected = layer(x)[0]
    with pytest.warns(flexrnn.FallbackWarning, match="neither input, state nor an attribute"):
        torch.testing.assert_close(layer(x)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], expected)


class Writing(Keeping):
    """Writes to what it keeps, or puts something else there."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        kept = KEPT.setdefault("own", torch.ones(self.hidden_size, dtype=DOUBLE))
        if self.how == "exchanged":
            KEPT["own"] = kept * 0.5
        elif self.how == "a view":
            kept[1:].mul_(0.5)
        elif self.how == "several":
            torch._foreach_mul_([kept], 0.5)
        else:
            kept += 1
        return HiddenState(torch.tanh(self.inner(x) + state.h * KEPT["own"]))


@pytest.mark.parametrize("how", ["exchanged", "a view", "several", "itself"])
@torch.no_grad()
def test_what_a_step_writes_to_whenever_it_runs_is_no_constant(how: str) -> None:
    layer = flexrnn.FlexRNN(Writing, 3, 5, dtype=DOUBLE, how=how)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="neither input, state nor an"):
        layer(torch.randn(4, 3, 3, dtype=DOUBLE))


class WritingOnce(Keeping):
    """Writes where its tensors have no numbers, as none has while it is traced."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        kept = KEPT.setdefault("own", torch.ones(self.hidden_size, dtype=DOUBLE))
        if type(x) is not Tensor or torch._is_functional_tensor(x):
            kept.view(5, 1)[2:].mul_(2)
        return HiddenState(torch.tanh(self.inner(x) + state.h * kept))


def test_a_write_to_a_constant_is_refused() -> None:
    layer = flexrnn.FlexRNN(WritingOnce, 3, 5, dtype=DOUBLE)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="into what the step has kept"):
        layer(torch.randn(4, 3, 3, dtype=DOUBLE))


def test_a_step_is_not_counted_before_it_is_run() -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, 5, dtype=DOUBLE, how="global, counted")
    x = torch.randn(4, 3, 3, dtype=DOUBLE)
    cell: Any = layer.cells[0]
    with pytest.warns(flexrnn.FallbackWarning, match="it writes into"):
        layer(x)
    assert cell.calls == 4


class OfTensors(Keeping):
    """What it keeps is of its own buffer, of its own random numbers, or of the first input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own: dict[Any, Tensor] = {}
        self.register_buffer("angles", torch.rand(self.hidden_size, dtype=DOUBLE))

    def kept(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self.own:
            if self.how == "buffer":
                self.own[dtype] = self.get_buffer("angles").cos()
            elif self.how == "written":
                self.own[dtype] = torch.zeros(self.hidden_size, dtype=dtype)
                self.own[dtype][1:] = self.get_buffer("angles")[1:]
            else:
                self.own[dtype] = torch.rand(self.hidden_size, dtype=dtype)
        return self.own[dtype]


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize("how", ["buffer", "written", "random"])
def test_cells_alike_that_keep_other_numbers_have_their_own(how: str) -> None:
    layers = [flexrnn.FlexRNN(OfTensors, 3, 5, dtype=DOUBLE, how=how) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for k, layer in enumerate(layers):
        cell: Any = layer.cells[0]
        cell.angles.fill_(k)
    x = torch.randn(4, 3, 3, dtype=DOUBLE)
    for layer in layers:
        output = layer(x)[0]  # by whatever engine can
        with flexrnn.backend("reference"):
            torch.testing.assert_close(output, layer(x)[0], rtol=1e-12, atol=1e-12)
    assert how == "random" or not torch.equal(layers[0](x)[0], layers[1](x)[0])


class OfTheInput(Keeping):
    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        if "first" not in KEPT:
            KEPT["first"] = x[0].detach() + 1
        return HiddenState(torch.tanh(self.inner(x - KEPT["first"]) + state.h))


def test_what_is_kept_of_an_input_is_no_constant() -> None:
    layer = flexrnn.FlexRNN(OfTheInput, 3, 5, dtype=DOUBLE)
    told = "neither input, state nor an attribute"
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(4, 3, 3, dtype=DOUBLE))


@pytest.mark.parametrize("size", [8, 9])  # of no other test's
def test_a_checkpoint_does_not_count_what_is_saved_before(size: int) -> None:
    layer = flexrnn.FlexRNN(Keeping, 3, size, dtype=DOUBLE, how="class", checkpoint_every=2)
    x = torch.randn(5, 2, 3, dtype=DOUBLE)
    with flexrnn.backend("interpreter"):
        layer(x)[0].sum().backward()


def test_what_a_mask_picks_is_not_asked_whether_it_is_kept(
    same_by_program: Callable[..., None],
) -> None:
    with flexrnn.backend("interpreter"):  # of no other test's size
        flexrnn.FlexRNN(Keeping, 3, 6, dtype=DOUBLE, how="class")(torch.randn(2, 2, 3).double())
    layer = flexrnn.FlexRNN(Masked, 3, 5, dtype=DOUBLE)
    same_by_program(layer, torch.randn(4, 3, 3, dtype=DOUBLE, requires_grad=True))


class Masked(flexrnn.cells.RNNCell):
    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        (h,) = super().step(x, state)
        h = h.clone()
        mask = h > 0
        h[mask] = 2 * h[mask]
        return HiddenState(h / 2)


class Drawing(Keeping):
    """One that keeps nothing, and asks for memory of a shape."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = torch.tanh(self.inner(x) + state.h)
        return HiddenState(torch.distributions.Laplace(z, torch.ones_like(z)).rsample())


@pytest.mark.filterwarnings("error")
def test_shapes_stay_what_they_are_while_something_is_kept() -> None:
    x = torch.randn(4, 3, 2)
    flexrnn.FlexRNN(Keeping, 2, 5, backend="cpu", how="global")(x)
    assert KEPT
    assert flexrnn.FlexRNN(Drawing, 2, 5, backend="cpu")(x)[0].shape == (4, 3, 5)


class Exponentiated(flexrnn.Cell):
    """Computes something of a parameter once, and keeps it."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.w = nn.Parameter(torch.randn(input_size, hidden_size, dtype=dtype))
        self.kept: dict[str, Tensor] = {}

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        if "w" not in self.kept:
            self.kept["w"] = self.w.exp()
        return HiddenState((x @ self.kept["w"] + state.h).tanh())


def test_what_is_kept_of_a_parameter_has_its_gradient() -> None:
    """Though it was first made by a run before the step was traced."""
    layer = flexrnn.FlexRNN(Exponentiated, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with pytest.warns(FallbackWarning):
        (found,) = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    cell: Any = layer.cells[0]
    cell.kept.clear()
    with flexrnn.backend("reference"):
        (right,) = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, right)
