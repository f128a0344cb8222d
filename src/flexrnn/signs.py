"""Whether a cell may draw random numbers: whether its step names anything that does."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from flexrnn.laws import DRAWING

_NAMES = {function.__name__ for function in DRAWING} | {"sample", "rsample"}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
             nn.FeatureAlphaDropout)  # fmt: skip
_ENTRIES = {"step", "forward", "__call__"}  # what is called of a cell, a module and an object
_KNOWN = ("torch", "flexrnn", "numpy")  # packages that are not looked into
_DEEP = 3
_MOST = 1000  # functions


def may_draw(cell: nn.Module) -> bool:
    """Whether a module of dropout, or a name of a function that draws, is found.

    Looked into is what a step and its modules' `forward` name: methods, functions of the person's,
    and functions and objects that are held. What is reached by other ways is not drawn ahead.
    """
    modules = [*cell.modules()]
    if any(m.training and _drops(m) for m in modules):
        return True
    held = [part for module in modules for part in _held(module, _DEEP)]
    classes = {part for part in held if isinstance(part, type)}
    left = [part for part in held if isinstance(part, FunctionType)]
    left += _members(classes, _ENTRIES)
    seen: set[CodeType] = set()
    while left and len(seen) < _MOST:
        function = left.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        names = set(_names(function.__code__))
        if names & _NAMES:
            return True
        left += _members(classes, names)
        left += _called(function, names)
    return False


def _drops(module: nn.Module) -> bool:
    """Whether a module of torch's draws while it trains."""
    return isinstance(module, nn.RReLU) or (isinstance(module, _DROPOUTS) and module.p > 0)


def _held(value: Any, depth: int) -> Iterator[Any]:
    """Functions of the person's that a value is or holds, and classes of what it is or holds.

    Containers are looked into past what their classes say, which is the person's, too.
    """
    parts: Iterable[Any] = ()
    if isinstance(value, MethodType):
        parts = (value.__func__,)
    elif isinstance(value, functools.partial):
        parts = (value.func,)
    elif isinstance(value, FunctionType):
        if not _is_known(value.__module__):
            yield value
    elif not isinstance(value, (ModuleType, type)):
        yield from (cls for cls in type(value).__mro__ if not _is_known(cls.__module__))
        parts = [*getattr(value, "__dict__", {}).values()]
        if isinstance(value, list):
            parts += list.__iter__(value)
        elif isinstance(value, tuple):
            parts += tuple.__iter__(value)
        elif isinstance(value, dict):
            parts += dict.values(value)
    if depth:
        for part in parts:
            yield from _held(part, depth - 1)


def _is_known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


def _members(classes: Iterable[type], names: set[str]) -> list[FunctionType]:
    """Methods and properties of these names."""
    found: list[FunctionType] = []
    for cls in classes:
        for name in names & vars(cls).keys():
            member: Any = vars(cls)[name]
            for inside in ("__func__", "fget"):  # of a class method, of a property
                member = getattr(member, inside, member)
            if isinstance(member, FunctionType):
                found.append(member)
    return found


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _called(function: FunctionType, names: set[str]) -> Iterator[FunctionType]:
    """Functions that a function calls by these names, or closes over."""
    reached = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            reached.append(cell.cell_contents)
    for value in reached:
        if isinstance(value, ModuleType):
            if not _is_known(value.__name__):
                held = (vars(value).get(name) for name in names)
                yield from (part for part in held if isinstance(part, FunctionType))
        else:
            yield from (part for part in _held(value, 1) if isinstance(part, FunctionType))
