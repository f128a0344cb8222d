"""Modules of a cell in containers of more kinds than list, tuple and dict."""

import copy
import pickle
import types
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState
from tests.test_references import (
    Base,
    Helper,
    assert_is_the_loop,
    assert_stays_the_loop,
    by_loop,
    pair,
)


class Pair(NamedTuple):
    """A module, and what it is multiplied with."""

    module: nn.Module
    times: float

    def run(self, z: Tensor) -> Tensor:
        return self.module(z) * self.times


class Line(list[Any]):
    """A list that does not like to be made, with an attribute that leads to a module."""

    def __init__(self, module: nn.Module, times: float) -> None:
        super().__init__([times])
        self.module = module

    def __iter__(self) -> Any:
        raise AssertionError("nobody looks")

    def append(self, item: Any) -> None:
        raise AssertionError("nobody writes")


class Slotted(list[Any]):
    """One with a private slot, and one that is empty."""

    __slots__ = ("__module", "unset")

    def lead(self, module: nn.Module) -> Any:
        self.__module = module
        return self

    def module(self) -> nn.Module:
        return self.__module


class Table(dict[str, Any]):
    """A dict that has what it has not."""

    def __missing__(self, key: str) -> Any:
        return self["module"]

    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("nobody writes")


class Few(tuple[Any, ...]):
    """A tuple with an attribute."""

    times: float


def few(module: nn.Module) -> Few:
    made = Few([module])
    made.times = 0.5
    return made


Makes = Callable[[Any], Any]
Runs = Callable[[Any, Tensor], Tensor]

WAYS: dict[str, tuple[Makes, Runs]] = {
    "namedtuple": (lambda c: Pair(c.inner, 0.5), lambda h, z: h.run(z)),
    "deque": (lambda c: deque([1, c.inner], maxlen=2), lambda h, z: h[-1](z) * h.maxlen),
    "an open deque": (lambda c: deque([1, c.inner]), lambda h, z: h[-1](z) * h[0]),
    "OrderedDict": (
        lambda c: OrderedDict(a=c.inner, b=2.0),
        lambda h, z: h["a"](z) * next(reversed(h.values())),
    ),
    "defaultdict": (
        lambda c: defaultdict(lambda: 0.5, a=c.inner),
        lambda h, z: h["a"](z) * h.default_factory(),
    ),
    "a factory": (lambda c: defaultdict(lambda: c.inner), lambda h, z: h.default_factory()(z)),
    "Counter": (lambda c: Counter(a=c.inner), lambda h, z: h["a"](z) + h["b"]),
    "a derived list": (lambda c: Line(c.inner, 0.5), lambda h, z: h.module(z) * h[0]),
    "a slot": (lambda c: Slotted([0.5]).lead(c.inner), lambda h, z: h.module()(z) * h[0]),
    "a derived dict": (lambda c: Table(module=c.inner), lambda h, z: h["else"](z)),
    "a derived tuple": (lambda c: few(c.inner), lambda h, z: h[0](z) * h.times),
    "one in another": (
        lambda c: OrderedDict(a=[deque([Pair(c.inner, 0.5)])]),
        lambda h, z: h["a"][0][0].run(z),
    ),
}


def kind_of(make: Makes, run: Runs) -> type[Base]:
    class Holding(Base):
        def set_up(self, options: dict[str, Any]) -> None:
            self.held = make(self)

        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            z = run(self.held, torch.cat([x, state.h], -1))
            return HiddenState(torch.tanh(z) * self.scale)

    return Holding


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["cpu", "auto", "reference"])
def test_they_lead_to_what_borrows_the_parameters(way: str, backend: str) -> None:
    layer, cell, x = pair(kind_of(*WAYS[way]))
    own: Any = layer.cells[0]
    held, inner = own.held, own.inner
    with flexrnn.backend(backend):
        assert_stays_the_loop(layer, cell, x)
    assert own.held is held
    assert own.inner is inner
    assert not list(inner.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_so_they_do_where_nothing_is_differentiated(way: str) -> None:
    layer, cell, x = pair(kind_of(*WAYS[way]))
    with torch.no_grad():
        for _ in range(3):  # a call that comes again is prepared
            assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)
            for tensor in (*layer.parameters(), *cell.parameters()):
                tensor.mul_(0.9)


def test_so_they_do_in_layers_that_are_copied_and_loaded() -> None:
    class Holding(Base):
        def set_up(self, options: dict[str, Any]) -> None:
            self.held: Any = OrderedDict(a=Pair(self.inner, 0.5), b=deque([self.inner]))

        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            z = torch.cat([x, state.h], -1)
            return HiddenState(self.held["a"].run(z) + self.held["b"][0](z).sin())

    globals()["Holding"] = Holding
    Holding.__qualname__ = "Holding"
    layer, cell, x = pair(Holding)
    assert_is_the_loop(copy.deepcopy(layer), cell, x)
    assert_is_the_loop(pickle.loads(pickle.dumps(layer)), cell, x)


COMPILED: dict[str, tuple[Makes, Runs]] = {
    **{way: WAYS[way] for way in ("namedtuple", "an open deque", "OrderedDict", "defaultdict")},
    "one in another": WAYS["one in another"],
    "of every kind": (
        lambda c: [{"a": ([c.inner], [0.5])}, deque([partial(turned, c.inner)])],
        lambda h, z: h[0]["a"][0][0](z) * h[0]["a"][1][0] + h[1][0](z),
    ),
}


@pytest.mark.parametrize("way", COMPILED)
def test_so_they_do_under_torch_compile(way: str) -> None:
    layer, cell, x = pair(kind_of(*COMPILED[way]))
    layer.forward = torch.compile(layer.forward, fullgraph=True, backend="eager")
    assert_is_the_loop(layer, cell, x)
    torch.compiler.reset()


def turned(module: nn.Module, z: Tensor) -> Tensor:
    return module(z).sin()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_set_later_counts(backend: str) -> None:
    layer, cell, x = pair(kind_of(*WAYS["deque"]))
    with flexrnn.backend(backend):
        assert_is_the_loop(layer, cell, x)
        own: Any = layer.cells[0]
        for one in (own, cell):
            one.held.append(partial(turned, one.inner))
        assert_is_the_loop(layer, cell, x)


@dataclass
class Record:
    """An object that cannot be hashed."""

    module: nn.Module


CLOSED: dict[str, tuple[Makes, Runs]] = {
    "SimpleNamespace": (lambda c: types.SimpleNamespace(a=c.inner), lambda h, z: h.a(z)),
    "dataclass": (lambda c: Record(c.inner), lambda h, z: h.module(z)),
    "an object": (Helper, lambda h, z: h.cell.inner(z)),
    "UserDict": (lambda c: UserDict(a=c.inner), lambda h, z: h["a"](z)),
    "set": (lambda c: {c.inner}, lambda h, z: next(iter(h))(z)),
    "mappingproxy": (lambda c: types.MappingProxyType({"a": c.inner}), lambda h, z: h["a"](z)),
    "a view": (lambda c: {"a": c.inner}.values(), lambda h, z: next(iter(h))(z)),
}
closed = pytest.mark.parametrize("way", CLOSED)


class Idle(Base):
    """What is held and never read."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.body(torch.cat([x, state.h], -1)))


@closed
def test_what_cannot_be_followed_and_is_not_read_is_no_obstacle(way: str) -> None:
    layer, cell, x = pair(Idle)
    own: Any = layer.cells[0]
    own.held = CLOSED[way][0](own)
    for backend in ("cpu", "auto", "reference"):
        with flexrnn.backend(backend):
            assert_is_the_loop(layer, cell, x)


@closed
@pytest.mark.parametrize("backend", ["cpu", "auto", "reference"])
def test_what_cannot_be_followed_and_is_read_is_told(way: str, backend: str) -> None:
    layer, _, x = pair(kind_of(*CLOSED[way]))
    message = "reaches a Linear whose weight is the layer's, through something that is no module"
    told = (AttributeError, RuntimeError)  # the engine tells what the loop would
    with flexrnn.backend(backend), pytest.raises(told, match=message):
        layer(x)
