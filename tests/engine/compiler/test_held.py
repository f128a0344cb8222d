"""What containers, and objects derived from Python's own, hold: a change there is another step."""

import types
from array import array
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn

HALF = 0.5


class Listed(list[Any]):
    """A list with attributes, as are those below."""

    value: float


class Mapped(dict[str, Any]):
    value: float


class Ordered(OrderedDict[str, Any]):
    value: float


class Tupled(tuple[Any, ...]):
    value: float


class Named(NamedTuple):
    held: Any


class NamedMore(Named):
    value: float


class Text(str):
    value: float


class Whole(int):
    value: float


class Real(float):
    value: float


class Complex(complex):
    value: float


class Several(set[Any]):
    value: float


class Frozen(frozenset[Any]):
    value: float


class Lined(deque[Any]):
    value: float


class Array(numpy.ndarray):
    value: float


class Slotted(list[Any]):
    __slots__ = ("__value", "value")

    @property
    def hidden(self) -> float:
        return self.__value

    @hidden.setter
    def hidden(self, value: float) -> None:
        self.__value = value


class Box:
    """An object with a number."""

    def __init__(self, value: float = HALF) -> None:
        self.value = value


@dataclass
class Record:
    """One that cannot be hashed."""

    box: Box


class Late(UserDict[str, Any]):
    value: float


def with_value(held: Any) -> Any:
    held.value = HALF
    return held


OWN: dict[str, Callable[[], Any]] = {
    "list": lambda: Listed([1]),
    "an empty list": Listed,
    "dict": lambda: Mapped(a=1),
    "an empty dict": Mapped,
    "OrderedDict": lambda: Ordered(a=1),
    "OrderedDict itself": OrderedDict,
    "defaultdict": lambda: type("D", (defaultdict,), {})(int, a=1),
    "tuple": lambda: Tupled([1]),
    "namedtuple": lambda: NamedMore(1),
    "str": lambda: Text("a"),
    "int": lambda: Whole(1),
    "float": lambda: Real(1.0),
    "complex": lambda: Complex(1.0),
    "set": lambda: Several([1]),
    "frozenset": lambda: Frozen([1]),
    "deque": lambda: Lined([1]),
    "numpy.ndarray": lambda: numpy.zeros(2).view(Array),
    "slots of a list": Slotted,
    "UserDict": Late,
    "Exception": Exception,
}


def assert_is_seen(
    layer: flexrnn.FlexRNN, change: Callable[[Any], object], same: Callable[..., None]
) -> None:
    """In training by every engine, and in calls that come again, which are prepared."""
    held: Any = layer.cells[0]
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    same(layer, x)
    before = layer(x)[0].detach()
    for _ in range(5):
        with torch.no_grad():
            assert_close(layer(x)[0], before, rtol=1e-11, atol=1e-12)
        layer(x)[0].sum().backward()
    change(held.held)
    with torch.no_grad():
        after = layer(x)[0]
    assert not torch.equal(before, after)
    with flexrnn.backend("reference"):
        assert_close(after, layer(x)[0], rtol=1e-11, atol=1e-12)
    assert_close(layer(x)[0], after, rtol=1e-11, atol=1e-12)
    same(layer, x)


def gain(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return (z + h) * c.held.value


@pytest.mark.parametrize("kind", OWN)
def test_an_attribute_of_its_own(
    kind: str, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    layer = function_layer(gain)
    layer.cells[0].held = with_value(OWN[kind]())
    assert_is_seen(layer, lambda held: setattr(held, "value", 0.9), same_by_program)


def test_a_private_slot(function_layer: Any, same_by_program: Callable[..., None]) -> None:
    layer = function_layer(lambda c, z, h: (z + h) * c.held.hidden)
    layer.cells[0].held = held = Slotted()
    held.hidden = HALF
    assert_is_seen(layer, lambda held: setattr(held, "hidden", 0.9), same_by_program)


INSIDE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: Listed([Box()]), lambda held: held[0]),
    "deque": (lambda: deque([Box()]), lambda held: held[0]),
    "a derived deque": (lambda: Lined([Box()]), lambda held: held[0]),
    "set": (lambda: {Box()}, lambda held: next(iter(held))),
    "frozenset": (lambda: frozenset([Box()]), lambda held: next(iter(held))),
    "a derived set": (lambda: Several([Box()]), lambda held: next(iter(held))),
    "values of a dict": (lambda: {"a": Box()}.values(), lambda held: next(iter(held))),
    "items of a dict": (lambda: {"a": Box()}.items(), lambda held: next(iter(held))[1]),
    "keys of a dict": (lambda: {Box(): 1}.keys(), lambda held: next(iter(held))),
    "OrderedDict": (lambda: OrderedDict(a=Box()), lambda held: held["a"]),
    "defaultdict": (lambda: defaultdict(Box, a=Box()), lambda held: held["a"]),
    "Counter": (lambda: Counter({"a": Box()}), lambda held: held["a"]),
    "mappingproxy": (lambda: types.MappingProxyType({"a": Box()}), lambda held: held["a"]),
    "namedtuple": (lambda: Named(Box()), lambda held: held.held),
    "SimpleNamespace": (lambda: types.SimpleNamespace(a=Box()), lambda held: held.a),
    "dataclass": (lambda: Record(Box()), lambda held: held.box),
    "UserList": (lambda: UserList([Box()]), lambda held: held[0]),
    "UserDict": (lambda: UserDict(a=Box()), lambda held: held["a"]),
    "an array of objects": (lambda: numpy.array([Box()]), lambda held: held[0]),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_an_object_inside(
    kind: str, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    make, inside = INSIDE[kind]
    layer = function_layer(lambda c, z, h: (z + h) * inside(c.held).value)
    layer.cells[0].held = make()
    assert_is_seen(layer, lambda held: setattr(inside(held), "value", 0.9), same_by_program)


LARGE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "an array": (lambda: numpy.ones(5000), lambda held: held),
    "a derived array": (lambda: numpy.ones(5000).view(Array), lambda held: held),
    "an array in a deque": (lambda: deque([numpy.ones(5000)]), lambda held: held[0]),
    "an array in a dict": (lambda: defaultdict(list, a=numpy.ones(5000)), lambda held: held["a"]),
    "an array in a namespace": (
        lambda: types.SimpleNamespace(a=numpy.ones(5000)),
        lambda held: held.a,
    ),
    "an array in a dataclass": (lambda: Record(numpy.ones(5000)), lambda held: held.box),  # pyright: ignore[reportArgumentType]
    "an array of Python's": (lambda: array("d", [1.0] * 5000), lambda held: held),
    "bytes": (lambda: bytearray([1] * 5000), lambda held: held),
    "a deque": (lambda: deque([1.0] * 5000), lambda held: held),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_number_in_the_midst(
    kind: str, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    """Where `repr` shows `...`."""
    make, inside = LARGE[kind]
    layer = function_layer(lambda c, z, h: (z + h) * float(inside(c.held)[2500]) * 0.5)
    layer.cells[0].held = make()
    assert_is_seen(layer, lambda held: inside(held).__setitem__(2500, 2), same_by_program)


def test_the_function_that_makes_what_is_missing(
    function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    layer = function_layer(lambda c, z, h: (z + h) * c.held.default_factory())
    layer.cells[0].held = defaultdict(lambda: HALF)

    def change(held: Any) -> None:
        held.default_factory = float

    assert_is_seen(layer, change, same_by_program)


class Counted(list[Any]):
    factor = HALF

    def scaled(self, z: Tensor) -> Tensor:
        return z * self.factor


def test_a_number_of_its_class(
    function_layer: Any, same_by_program: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = function_layer(lambda c, z, h: c.held.scaled(z + h))
    layer.cells[0].held = Counted()
    assert_is_seen(layer, lambda held: monkeypatch.setattr(Counted, "factor", 0.9), same_by_program)
