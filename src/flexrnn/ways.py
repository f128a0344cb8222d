"""How to make anew what leads to other things: a container, a method, a function that closes over.

A way takes a value and a function that says of each of its parts what comes instead. It returns the
value itself where every part stays; the value is never changed.
"""

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from types import CellType, FunctionType, MethodType
from typing import Any

import torch

from flexrnn.engine.step import slots

Again = Callable[[Any], Any]


def _method(value: MethodType, again: Again) -> Any:
    owner = again(value.__self__)
    if owner is value.__self__:
        return value
    # Dynamo makes no methods.
    make = functools.partial if torch.compiler.is_dynamo_compiling() else MethodType
    return make(value.__func__, owner)


def _partial(value: "functools.partial[Any]", again: Again) -> Any:
    before = (value.func, value.args, value.keywords)
    func, args, keywords = now = [again(part) for part in before]
    return value if _same(before, now) else functools.partial(func, *args, **keywords)


def _row(value: Any, again: Again) -> Any:
    now = [again(part) for part in value]
    return value if _same(value, now) else type(value)(now)


def _table(value: dict[Any, Any], again: Again) -> Any:
    now = [again(part) for part in value.values()]
    return value if _same(value.values(), now) else dict(zip(value, now, strict=True))


def _plain(value: Any, again: Again) -> Any:
    """What of Python's is not as plain, under Dynamo, which knows how each is called, no more."""
    is_table = isinstance(value, dict)
    now = [again(part) for part in (value.values() if is_table else value)]
    if _same(value.values() if is_table else value, now):
        return value
    kind: Any = type(value)
    if kind is OrderedDict:
        return OrderedDict(zip(value, now, strict=True))
    if kind is defaultdict:
        return defaultdict(value.default_factory, zip(value, now, strict=True))
    return deque(now, value.maxlen) if kind is deque else kind(*now)  # a NamedTuple


def _derived(value: Any, again: Again, base: Any) -> Any:
    """What is of a class derived from a container, or holds more than the plain ones.

    Nothing of the class is called: neither does it know that it is copied, nor is it asked.
    """
    kind, own = type(value), getattr(value, "__dict__", {})
    keys = [*base.keys(value)] if issubclass(base, dict) else []
    parts = [*(base.values(value) if keys else base.__iter__(value))]
    places = [slot for slot in slots(kind) if _has(slot, value)]
    factory = value.default_factory if base is defaultdict else None
    before = [*parts, *own.values(), *(slot.__get__(value) for slot in places), factory]
    now = [again(part) for part in before]
    if _same(before, now):
        return value
    inside, rest = now[: len(parts)], iter(now[len(parts) :])
    made = _filled(kind, base, keys, inside, getattr(value, "maxlen", None))
    if own:
        made.__dict__.update(zip(own, rest))  # noqa: B905  # slots come after
    for slot in places:
        slot.__set__(made, next(rest))
    if base is defaultdict:
        made.default_factory = now[-1]
    return made


def _filled(kind: Any, base: Any, keys: list[Any], parts: list[Any], most: int | None) -> Any:
    """A container of a class, with these parts, past the methods of the class."""
    if base is tuple:
        try:
            return tuple.__new__(kind, parts)
        except TypeError:  # one of those that C makes, as torch returns them
            return kind(parts)
    made = base.__new__(kind)
    if base is list:
        list.extend(made, parts)
    elif base is deque:
        deque.__init__(made, parts, most)
    else:
        for key, part in zip(keys, parts, strict=True):
            base.__setitem__(made, key, part)
    return made


def _has(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _function(value: FunctionType, again: Again) -> Any:
    if torch.compiler.is_dynamo_compiling():  # it makes no closures
        return value
    cells, defaults = value.__closure__ or (), again(value.__defaults__)
    now = [cell if _is_empty(cell) else again(cell.cell_contents) for cell in cells]
    kept = [_is_empty(c) or new is c.cell_contents for c, new in zip(cells, now, strict=True)]
    if all(kept) and defaults is value.__defaults__:
        return value
    closure = tuple(
        cell if keep else CellType(new) for cell, new, keep in zip(cells, now, kept, strict=True)
    )
    made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure)
    made.__kwdefaults__ = again(value.__kwdefaults__)
    made.__dict__.update(value.__dict__)
    return made


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a variable that has no value yet
        return True


def _same(before: Iterable[Any], now: Iterable[Any]) -> bool:
    return all(_is(a, b) for a, b in zip(before, now, strict=True))


def _is(a: Any, b: Any) -> bool:
    """Whether a part has stayed.

    Dynamo of torch 2.11 cannot say so of two containers, that of others never says it of a tuple.
    """
    if not torch.compiler.is_dynamo_compiling() or type(a) is not type(b):
        return a is b
    if isinstance(a, functools.partial):
        return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if _base(type(a)) is None or way_of(type(a)) is None:
        return a is b
    return _same(a.values(), b.values()) if isinstance(a, dict) else _same(a, b)


Way = Callable[[Any, Again], Any]

_WAYS: dict[type, Way] = {
    MethodType: _method,
    functools.partial: _partial,
    list: _row,
    tuple: _row,
    dict: _table,
    FunctionType: _function,
}
_BASES = (OrderedDict, defaultdict, dict, list, tuple, deque)
_DERIVED: dict[Any, Way] = {base: functools.partial(_derived, base=base) for base in _BASES}


def way_of(kind: type) -> Way | None:
    """How to make something of a class anew; None where it cannot be looked into."""
    if kind in _WAYS:
        return _WAYS[kind]
    base = _base(kind)
    if base is None or not torch.compiler.is_dynamo_compiling():
        return _DERIVED.get(base)
    return _plain if kind is base or hasattr(kind, "_fields") else None


def _base(kind: type) -> Any:
    for base in _BASES:
        if issubclass(kind, base):
            return base
    return None


def places(value: Any, count: int) -> list[str]:
    """What the parts of a value are called, of which its way asks so many: field, key or number"""
    found: list[str] = []
    if isinstance(value, tuple):
        found += getattr(value, "_fields", ())
    elif isinstance(value, dict):
        found += map(str, _base(type(value)).keys(value))
    return [
        found[k] if k < len(found) and found[k].isidentifier() else str(k) for k in range(count)
    ]
