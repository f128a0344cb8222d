"""The witness notices what `frozen` would, and says when it cannot watch."""

import functools
import itertools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy
import pytest
import torch
from torch import nn

import flexrnn
from flexrnn.bind import fingerprint, identity
from flexrnn.engine.witness import CannotWatchError, Witness


class Held:
    """An object of a plain class."""

    size = 1

    def __init__(self) -> None:
        self.inside = {"numbers": [1.0, {"deep": (2.0, [3.0])}]}

    def method(self, factor: float = 2.0, *, named: float = 1.0) -> float:
        return factor * named

    @property
    def half(self) -> float:
        return 0.5


def closure(number: list[float]) -> Callable[[], float]:
    return lambda: number[0]


class Holder(nn.Module):
    table: ClassVar[dict[str, Any]] = {"a": 1}

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.held, self.empty, self.number, self.cell = Held(), [], 0.0, closure([1.0])
        self.bound = self.held.method


def cell_of(module: Any) -> Any:
    return module.cell.__closure__[0].cell_contents


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute": lambda m: setattr(m, "number", -0.0),
    "another attribute": lambda m: setattr(m, "new", 1),
    "one less": lambda m: delattr(m, "number"),
    "eval": lambda m: m.eval(),
    "an option inside": lambda m: setattr(m.inner[0], "eps", 0.1),
    "another module": lambda m: m.inner.append(nn.ReLU()),
    "a hook": lambda m: m.inner[1].register_forward_hook(lambda *_: None),
    "an empty list that is filled": lambda m: m.empty.append(1),
    "a set of names": lambda m: m._non_persistent_buffers_set.clear(),
    "deep inside": lambda m: m.held.inside["numbers"][1]["deep"][1].append(1.0),
    "in a closure": lambda m: cell_of(m).__setitem__(0, 2.0),
    "a variable of a closure": lambda m: setattr(m.cell.__closure__[0], "cell_contents", [9.0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_an_object(change: str) -> None:
    module = Holder()
    witness, before = Witness(module), fingerprint(module)
    assert witness.still_holds()
    CHANGES[change](module)
    assert fingerprint(module) != before
    assert not witness.still_holds()
    assert Witness(module).still_holds()


CLASSES: dict[str, tuple[Any, str, Any]] = {
    "a number": (Held, "size", 2),
    "a method": (Held, "method", lambda self: 1.0),
    "a property": (Held, "half", property(lambda self: 1.0)),
    "defaults": (Held.method, "__defaults__", (3.0,)),
    "named defaults": (Held.method, "__kwdefaults__", {"named": 3.0}),
    "the module's own class": (Holder, "table", {"a": 2}),
    "a new name": (Holder, "step", 1),
}


@pytest.mark.parametrize("change", CLASSES)
def test_a_change_of_a_class(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Holder()
    witness, before = Witness(module), fingerprint(module)
    monkeypatch.setattr(*CLASSES[change], raising=False)
    assert fingerprint(module) != before
    assert not witness.still_holds()


class Pair(NamedTuple):
    a: Any
    b: Any

    def total(self) -> Any:
        return self.a + self.b


class Listed(list[Any]):
    """A list with attributes."""


class Text(str):
    """A string with attributes."""


WATCHED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "a namedtuple": (lambda: Pair([1], 2), lambda held: held.a.append(2)),
    "a deque": (lambda: deque([1]), lambda held: held.append(2)),
    "an object in a deque": (lambda: deque([Held()]), lambda held: setattr(held[0], "size", 2)),
    "a defaultdict": (lambda: defaultdict(list, a=1), lambda held: held.update(a=2)),
    "its factory": (lambda: defaultdict(list), lambda held: setattr(held, "default_factory", set)),
    "an OrderedDict": (lambda: OrderedDict(a=1), lambda held: held.update(b=2)),
    "the order": (lambda: OrderedDict(a=1, b=1), lambda held: held.move_to_end("a")),
    "an attribute of one": (OrderedDict, lambda held: setattr(held, "value", 2)),
    "a derived list": (lambda: Listed([1]), lambda held: held.append(2)),
    "its attribute": (lambda: Listed([1]), lambda held: setattr(held, "value", 2)),
    "an attribute of a string": (lambda: Text("a"), lambda held: setattr(held, "value", 2)),
}


@pytest.mark.parametrize("kind", WATCHED)
def test_containers_and_what_is_derived_from_them_are_watched(kind: str) -> None:
    module, (make, change) = Holder(), WATCHED[kind]
    module.thing = make()
    witness, before = Witness(module), fingerprint(module)
    assert witness.still_holds()
    assert fingerprint(module) == before
    change(module.thing)
    assert not witness.still_holds()
    assert fingerprint(module) != before


def test_a_method_of_a_namedtuple_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = Holder()
    module.thing = Pair(1, 2)
    witness, before = Witness(module), fingerprint(module)
    monkeypatch.setattr(Pair, "total", lambda self: 0)
    assert not witness.still_holds()
    assert fingerprint(module) != before


class Turned(list[Any]):
    """A list that is another when it is looked at."""

    def __iter__(self) -> Any:
        return reversed(self)


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


@pytest.mark.parametrize(
    "thing",
    [
        numpy.zeros(3),
        numpy.random.default_rng(0),
        itertools.count(),
        (k for k in range(3)),
        Slotted(),
        {1, 2},
        {"a": 1}.values(),
        Turned([1]),
        bytearray(b"a"),
        functools.partial(max, 1),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_cannot_be_watched(thing: Any) -> None:
    module = Holder()
    module.thing = thing
    with pytest.raises(CannotWatchError):
        Witness(module)
    assert isinstance(identity(module), tuple)  # the whole fingerprint, every time


def test_the_librarys_cells_are_watched_and_equal_ones_are_one() -> None:
    for layer in (flexrnn.LSTM(3, 4), flexrnn.GRU(3, 4), flexrnn.LayerNormLSTM(3, 4)):
        cell, twin = layer.cells[0], type(layer)(3, 4).cells[0]
        assert identity(cell) == identity(cell) == identity(twin)
        before = identity(cell)
        cell.eval()
        assert identity(cell) != before
        cell.train()
        assert identity(cell) == before
