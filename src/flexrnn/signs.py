"""Whether a cell may draw random numbers: whether anything in its code is called as what does."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from flexrnn.laws import DRAWING

_NAMES = {function.__name__ for function in DRAWING} | {"sample", "rsample"}
_KNOWN = ("torch", "flexrnn", "numpy")  # packages that are not looked into
_MOST = 1000  # functions


def may_draw(cell: nn.Module) -> bool:
    """Whether a module of dropout, or a name of a function that draws, is found in a cell's code.

    Looked into are methods of its modules' classes, functions and objects that they hold, and
    functions that these name. What is found by other ways is not drawn ahead, no more.
    """
    modules = [*cell.modules()]
    if any(isinstance(module, _DropoutNd) for module in modules):
        return True
    left = [function for module in modules for function in _functions(module)]
    seen: set[int] = set()
    while left and len(seen) < _MOST:
        function = left.pop()
        if id(function.__code__) in seen:
            continue
        seen.add(id(function.__code__))
        names = set(_names(function.__code__))
        if names & _NAMES:
            return True
        left += _named(function, names)
    return False


def _functions(value: Any, depth: int = 3) -> Iterator[FunctionType]:
    """Functions of the person's that a value is or holds."""
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, functools.partial):
        yield from _functions(value.func, depth)
    elif isinstance(value, FunctionType):
        if not _is_known(value.__module__):
            yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _functions(part, depth - 1)
    elif depth and not isinstance(value, ModuleType):
        kind: Any = value if isinstance(value, type) else type(value)
        for cls in kind.__mro__:
            if not _is_known(cls.__module__):
                for member in vars(cls).values():
                    for name in ("__func__", "fget"):  # of a class method, of a property
                        member = getattr(member, name, member)
                    yield from _functions(member, 0)
        if not isinstance(value, type):
            for part in getattr(value, "__dict__", {}).values():
                yield from _functions(part, depth - 1)


def _is_known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


def _names(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _named(function: FunctionType, names: set[str]) -> Iterator[FunctionType]:
    """What a function calls by these names, or closes over."""
    reached = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            reached.append(cell.cell_contents)
    for value in reached:
        if isinstance(value, ModuleType) and not _is_known(value.__name__):
            held = (vars(value).get(name) for name in names)
            yield from (part for part in held if isinstance(part, FunctionType))
        elif not isinstance(value, ModuleType):
            yield from _functions(value, 1)
