"""Modules of a cell that lead to one another by what no registry of torch's holds."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState

I, H = 3, 4


class Base(flexrnn.Cell):
    """A product, and what `set_up` makes of it."""

    State = HiddenState
    f: Any
    shift: Tensor

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        options: Any = {"device": device, "dtype": dtype}
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, **options)
        self.scale = nn.Parameter(torch.rand(hidden_size, **options))
        self.register_buffer("shift", torch.rand(hidden_size, **options))
        self.set_up(options)

    def set_up(self, options: dict[str, Any]) -> None:
        """What the kind of cell is about."""

    def body(self, z: Tensor) -> Tensor:
        return torch.tanh(self.inner(z)) * self.scale + self.shift

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.f(torch.cat([x, state.h], -1)))


class Method(Base):
    """A method of the cell itself, as an attribute."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f = self.body


class Methods(Base):
    """Methods by name."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.by_name = {"body": [self.body]}

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.by_name["body"][0](torch.cat([x, state.h], -1)))


class Inner(nn.Module):
    """A module that keeps a method of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(I + H, H, **options)
        self.chosen = self.body

    def body(self, z: Tensor) -> Tensor:
        return torch.tanh(self.linear(z))

    def forward(self, z: Tensor) -> Tensor:
        return self.chosen(z)


class OfAModule(Base):
    """A method of a module inside the cell."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f = Inner(options)


class Listed(Base):
    """Modules that are registered by name, and found in a list, a tuple and a dict."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.listed: list[nn.Module] = []
        for k in range(2):
            module = nn.Linear(H, H, **options)
            self.add_module(f"layer{k}", module)
            self.listed.append(module)
        self.again = (self.listed, {"inner": self.inner})

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        h = self.again[1]["inner"](torch.cat([x, state.h], -1))
        for module in self.again[0]:
            h = torch.tanh(module(h))
        return HiddenState(h)


class Closed(Base):
    """A function that closes over the cell, and one over that."""

    def set_up(self, options: dict[str, Any]) -> None:
        def inside(z: Tensor, times: float = 1.5) -> Tensor:
            return self.inner(z) * times

        self.f = lambda z: torch.tanh(inside(z))


class Partly(Base):
    """A function with a module as one of its arguments."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f = functools.partial(applied, self.inner)


def applied(module: nn.Module, z: Tensor) -> Tensor:
    return module(z).sigmoid()


class Child(nn.Module):
    """A module that knows the cell that it is in."""

    def __init__(self, parent: Base) -> None:
        super().__init__()
        self.parent = [parent]

    def forward(self, z: Tensor) -> Tensor:
        return self.parent[0].body(z)


class Back(Base):
    """A module that leads back to the cell."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f = Child(self)


class Defaulted(Base):
    """A function that has a module as a default, as in loops; a method, partly called."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.functions = [lambda z, inner=self.inner: torch.tanh(inner(z))]
        self.scaled = functools.partial(self.times, self.inner)

    def times(self, inner: nn.Module, z: Tensor, *, by: float = 2.0) -> Tensor:
        return inner(z) * self.scale * by

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = torch.cat([x, state.h], -1)
        return HiddenState(self.functions[0](z) + self.scaled(z, by=0.5).sin())


KINDS = [Method, Methods, OfAModule, Listed, Closed, Partly, Back, Defaulted]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def by_loop(cell: Any, x: Tensor) -> Tensor:
    outputs, state = [], cell.initial_state((x.shape[1],), x.dtype)
    for x_t in x:
        state = cell.step(x_t, state)
        outputs.append(state.h)
    return torch.stack(outputs)


def learned(module: nn.Module, output: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients: Any = torch.autograd.grad(output.square().sum(), parameters, allow_unused=True)
    found = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
    return {name.replace(".", "_").replace("_l0", ""): g for name, g in found.items()}


def assert_is_the_loop(layer: nn.Module, cell: Any, x: Tensor) -> None:
    output, expected = layer(x)[0], by_loop(cell, x)
    assert_close(output, expected, rtol=1e-12, atol=1e-13)
    assert_close(learned(layer, output), learned(cell, expected), rtol=1e-11, atol=1e-12)


def pair(kind: Any) -> tuple[flexrnn.FlexRNN, Any, Tensor]:
    """A layer, a cell with the same numbers that nobody has taken anything from, an input."""
    torch.manual_seed(1)
    layer = flexrnn.FlexRNN(kind, I, H, dtype=torch.float64)
    torch.manual_seed(1)
    return layer, kind(I, H, dtype=torch.float64), torch.randn(5, 2, I, dtype=torch.float64)


def assert_stays_the_loop(layer: nn.Module, cell: Any, x: Tensor) -> None:
    """Also where parameters have changed, as an optimizer changes them."""
    assert_is_the_loop(layer, cell, x)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *cell.parameters()):
            parameter.mul_(0.5)
    assert_is_the_loop(layer, cell, x)


@kinds
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_they_lead_to_what_borrows_the_parameters(kind: Any, backend: str) -> None:
    with flexrnn.backend(backend):
        assert_stays_the_loop(*pair(kind))


@kinds
def test_so_they_do_in_layers_that_are_moved_copied_and_loaded(kind: Any) -> None:
    layer, cell, x = pair(kind)
    layer, cell = layer.float().double(), cell.float().double()
    assert_is_the_loop(layer, cell, x)
    if kind in (Closed, Defaulted):  # Python copies no function, and pickles none
        return
    assert_is_the_loop(copy.deepcopy(layer), cell, x)
    assert_is_the_loop(pickle.loads(pickle.dumps(layer)), cell, x)


@pytest.mark.parametrize("kind", [Method, OfAModule, Listed])
def test_so_they_do_under_torch_compile(kind: Any) -> None:
    layer, cell, x = pair(kind)
    layer.forward = torch.compile(layer.forward, fullgraph=True, backend="eager")
    assert_is_the_loop(layer, cell, x)
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_set_later_counts(backend: str) -> None:
    layer, cell, x = pair(Listed)
    with flexrnn.backend(backend):
        assert_is_the_loop(layer, cell, x)
        own: Any = layer.cells[0]
        for one in (own, cell):
            one.listed.append(one.listed[0])  # the list that the tuple holds, too
        assert_is_the_loop(layer, cell, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_method_may_be_replaced_later(compiled: bool) -> None:
    layer, cell, x = pair(Method)
    for one in (layer.cells[0], cell):
        one.f = one.inner
    if compiled:
        layer.forward = torch.compile(layer.forward, fullgraph=True, backend="eager")
    with flexrnn.backend("reference"):
        assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)
    torch.compiler.reset()


class Plain(Base):
    """Things that lead to no parameter, and things that are nobody's business."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.act = nn.Tanh()
        self.settings = {"act": self.act, "gain": 1.0, "steps": 0}
        self.helper = Helper(self)
        self.act.register_forward_hook(self.helper)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.settings["steps"] += 1
        z = self.settings["act"](self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(z * self.settings["gain"])


class Helper:
    """An object that knows the cell."""

    def __init__(self, cell: Base) -> None:
        self.cell, self.calls = cell, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1

    def __copy__(self) -> Any:
        raise AssertionError("nobody copies it")


def test_what_leads_to_no_parameter_is_the_cells_own() -> None:
    layer, cell, x = pair(Plain)
    with flexrnn.backend("reference"):
        assert_is_the_loop(layer, cell, x)
        own: Any = layer.cells[0]
        assert own.settings["steps"] == own.helper.calls == len(x)
        assert own.helper.cell is own
        own.settings["gain"] = cell.settings["gain"] = 3.0
        assert_is_the_loop(layer, cell, x)


class Dropping(Base):
    """A method that leads to what draws masks."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f = self.dropped

    def dropped(self, z: Tensor) -> Tensor:
        return self.drop_recurrent(self.body(z))


def test_a_method_may_drop_recurrent_connections() -> None:
    layer, _, x = pair(Dropping)
    masked = flexrnn.FlexRNN(Dropping, I, H, recurrent_dropout=0.5, dtype=torch.float64)
    masked.load_state_dict(layer.state_dict())
    found = []
    for backend in ("cpu", "reference"):
        torch.manual_seed(3)
        with flexrnn.backend(backend):
            found.append(masked(x)[0])
    assert_close(*found, rtol=1e-12, atol=1e-13)


class ByAnObject(Base):
    """A module that is kept by what is nobody's business."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.helper = Helper(self)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.helper.cell.body(torch.cat([x, state.h], -1)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_module_by_another_object_is_told(backend: str) -> None:
    layer, _, x = pair(ByAnObject)
    message = "ByAnObject.step reaches a Linear whose weight is the layer's, through something"
    with flexrnn.backend(backend), pytest.raises(AttributeError, match=message) as told:
        layer(x)
    assert isinstance(told.value.__cause__, AttributeError)


LOST: Any = nn.Linear(H, H)  # which no layer has


class Astray(Base):
    """An attribute that a module of nobody's does not have."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(LOST.nothing(x))


class Mistaken(Base):
    """An attribute that nobody has set."""

    nothing: Any

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.nothing(x))


def test_an_attribute_that_is_missing_is_missed_as_in_any_module() -> None:
    for kind, name in ((Mistaken, "Mistaken"), (Astray, "Linear")):
        layer, _, x = pair(kind)
        with pytest.raises(AttributeError, match=f"'{name}' object has no attribute 'nothing'"):
            layer(x)


class Scripted(Base):
    """A module that torch.jit has compiled; one without parameters has nothing to give up."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.act = torch.jit.script(nn.Tanh())
        self.f = torch.jit.script(nn.Linear(I + H, H, **options))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_module_of_torch_jit_is_refused_by_name() -> None:
    message = "Scripted: f is a torch.jit.ScriptModule, which cannot borrow parameters"
    with pytest.raises(TypeError, match=message):
        flexrnn.FlexRNN(Scripted, I, H)


class Empty(Base):
    """A module that is false, for it has nothing in it."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.f, self.none = Inner(options), nn.ModuleList()


def test_a_module_without_anything_in_it_is_a_module() -> None:
    layer, cell, x = pair(Empty)
    assert_is_the_loop(layer, cell, x)
