"""A cheap way to see that nothing which `frozen` reads of an object has changed since.

`frozen` takes everything apart and is slow. A witness remembers every place where something could
be put, and what was there; to look again costs a comparison of identities each, in C.
"""

import operator
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Collection, Iterator, Mapping
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import Tensor, nn

from flexrnn.engine.step import EXACT, OF_NO_EFFECT, OF_TRACES, is_settled, slots


class CannotWatchError(Exception):
    """There is something whose content can change without any place showing it."""


class Witness:
    """What an object and all that it reaches held when the witness was made.

    It keeps alive what it looks at, but not the object itself, unless something there leads back.

    Raises:
        CannotWatchError: it reaches what keeps its content where nobody can look: an array, an
            iterator, a generator of random numbers, a set of objects, slots.
    """

    def __init__(self, module: nn.Module):
        self._tables: list[tuple[Mapping[Any, Any], list[Any], tuple[Any, ...]]] = []
        self._rows: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._empty: list[Any] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._functions: list[tuple[Any, Any, Any]] = []
        self._made: list[tuple[Any, Any]] = []
        self._hooks: set[int] = set()  # tables of modules, which have no attributes of their own
        # Also keeps alive what the identities are of: the object's own, who asks knows to be alive.
        self._seen: dict[int, Any] = {id(module): None}
        self._object(module)

    def still_holds(self) -> bool:
        """Whether every place holds what it held."""
        same = operator.is_
        if any(self._empty):
            return False
        for table, keys, values in self._tables:
            # An equal string is as good as the same one, and a list compares them at once.
            if [*table] != keys or not all(map(same, table.values(), values)):
                return False
        for function, defaults, named in self._functions:
            if function.__defaults__ is not defaults or function.__kwdefaults__ is not named:
                return False
        for table, make in self._made:
            if table.default_factory is not make:
                return False
        for held, parts in self._rows:
            if len(held) != len(parts) or not all(map(same, held, parts)):
                return False
        for names, those in self._sets:
            if names != those:
                return False
        return all(_content(cell) is content for cell, content in self._cells)

    def _visit(self, value: Any) -> None:
        kind: type[Any] = type(value)
        if kind in _LEAVES or id(value) in self._seen or isinstance(value, (Tensor, type)):
            return
        self._seen[id(value)] = value
        base: Any = next((b for b in _KEEPERS if issubclass(kind, b)), None)
        if base is not None:
            if base not in _SCALARS:
                self._container(value, base)
            if kind not in EXACT:
                self._own(value)
        elif kind is FunctionType:
            self._functions.append((value, value.__defaults__, value.__kwdefaults__))
            self._all((value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__))
        elif kind is CellType:
            self._cells.append((value, _content(value)))
            self._visit(_content(value))
        elif kind in _WRAPPERS:
            self._all(getattr(value, name) for name in _WRAPPERS[kind])
        else:
            self._object(value)

    def _container(self, value: Any, base: type) -> None:
        """What an object holds as one of Python's containers."""
        if not all(getattr(type(value), n, None) is getattr(base, n, None) for n in _LOOKS):
            raise CannotWatchError  # to look at it would run somebody's code
        if isinstance(value, dict):
            if value:
                self._watch(value)
            else:
                self._empty.append(value)
        elif isinstance(value, (list, deque)):
            self._rows.append((value, tuple(value)))
            self._all(value)
        elif isinstance(value, (tuple, frozenset)):
            self._all(value)
        else:
            if not all(type(item) is str for item in value):
                raise CannotWatchError
            self._sets.append((value, set(value)))

    def _own(self, value: Any) -> None:
        """The attributes that such an object has besides, and those of its class."""
        if slots(type(value)):
            raise CannotWatchError
        if isinstance(value, defaultdict):
            self._made.append((value, value.default_factory))
            self._visit(value.default_factory)
        own = getattr(value, "__dict__", None)
        if own:
            self._watch(own)
        elif own is not None and id(value) not in self._hooks:
            self._empty.append(own)
        self._class(type(value))

    def _all(self, values: Any) -> None:
        for value in values:
            self._visit(value)

    def _object(self, value: Any) -> None:
        cls = type(value)
        # As large as an object that has nothing but a `__dict__`: no slots, nothing made in C.
        plain = hasattr(value, "__dict__") and cls.__basicsize__ == _Plain.__basicsize__
        if not plain or isinstance(value, (Iterator, Mapping)):
            raise CannotWatchError
        if isinstance(value, nn.Module):
            self._hooks.update(id(vars(value).get(name)) for name in _HOOKS)
        self._watch(vars(value), _OF_TENSORS)
        self._class(cls)

    def _class(self, cls: type) -> None:
        for c in cls.__mro__:
            if not is_settled(c) and id(c) not in self._seen:
                self._seen[id(c)] = c
                self._watch(vars(c), OF_NO_EFFECT)

    def _watch(self, table: Mapping[Any, Any], skipped: Collection[str] = ()) -> None:
        if all(type(key) is str for key in table):
            self._tables.append((table, [*table], tuple(table.values())))
        else:
            self._rows += ((table, tuple(table)), (table.values(), tuple(table.values())))
        for name, value in table.items():
            if name not in skipped:
                self._visit(name)
                self._visit(value)


class _Plain:
    pass


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return CellType


# Whose content is known; of a class that is derived from several, the first.
_SCALARS = (int, float, str, complex, bytes)
_KEEPERS: tuple[type[Any], ...] = (OrderedDict, dict, list, deque, tuple, set, frozenset, *_SCALARS)
_LOOKS = ("__iter__", "__len__", "__bool__", "keys", "values", "items")
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_OF_TENSORS = ("_parameters", "_buffers")
_LEAVES = {type(None), bool, int, float, complex, str, bytes, type(...), ModuleType,
           BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType,
           WrapperDescriptorType, type(vars(namedtuple("_", "a"))["a"]), torch.dtype, torch.device,
           torch.layout, *OF_TRACES}  # fmt: skip
_WRAPPERS: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
}
