# pyright: reportPrivateUsage=false
# What torch's recurrent layers keep beside their parameters has no public name.
"""What the modules of a cell hold of one another, and of its tensors, beside their registries.

A bound method, a list of layers, a dict of parameters, a function that closes over a module: in a
copy of a cell they have to lead to what the copy has, for what they were made with has given its
parameters up. So of each there is a template, in which places stand for modules and tensors.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
_TEMPLATES = "_flexrnn_templates"  # of a module of such a cell: attribute -> template, and value
_REGISTRIES = {"_parameters", "_buffers", "_modules"}
_LEAVES = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Module, type, ModuleType)


class Place(NamedTuple):
    """A module of a cell, or a tensor, by its path."""

    path: str
    is_module: bool

    def __call__(self) -> None:
        """So that a partial function of it can be made."""


class _Method(NamedTuple):
    """A bound method of what will be at a place: Python finds no method of that when it loads."""

    function: Any
    owner: Any


def note(cell: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make templates of all attributes of a cell's modules that lead to one of these or of them.

    Args:
        cell: whole, with all its parameters.
        tensors: of the cell, by their paths.
    """
    known: dict[int, Any] = {id(tensor): Place(path, False) for path, tensor in tensors.items()}
    known |= {id(module): Place(path, True) for path, module in cell.named_modules()}
    found = {module: _templates(module, known) for module in cell.modules()}
    if any(found.values()):
        for module, templates in found.items():
            module.__dict__[_TEMPLATES] = templates


def _templates(module: nn.Module, known: dict[int, Any]) -> dict[str, tuple[Any, Any]]:
    found = {}
    for name, value in vars(module).items():
        if name not in _REGISTRIES and not isinstance(value, Tensor):
            template = _rebound(value, known)
            if template is not value:
                found[name] = template, value
    return found


def fill(cell: M, tensors: Callable[[M], Mapping[str, Tensor]]) -> None:
    """Let what the modules of a copy of a cell hold lead to its own modules and tensors.

    Attributes that have been set since the templates were made stay what they are.
    """
    if _TEMPLATES not in cell.__dict__:
        return
    modules, its = dict(cell.named_modules(remove_duplicate=False)), tensors(cell)

    def at(place: Place) -> Any:
        return modules[place.path] if place.is_module else its[place.path]

    known: dict[int, Any] = {}
    for module in modules.values():
        filled = {}
        for name, (template, value) in module.__dict__.get(_TEMPLATES, {}).items():
            # Dynamo compares no tuples; nobody sets attributes in what it compiles.
            if torch.compiler.is_dynamo_compiling() or module.__dict__.get(name) is value:
                value = module.__dict__[name] = _rebound(template, known, at)
            filled[name] = template, value
        module.__dict__[_TEMPLATES] = filled
        if isinstance(module, nn.RNNBase):  # it makes them anew when it is moved
            names = module._flat_weights_names
            module.__dict__["_flat_weights"] = [module._parameters.get(name) for name in names]


def _rebound(value: Any, known: dict[int, Any], at: Callable[[Place], Any] | None = None) -> Any:
    """A value in which everything has its place taken that `known` has something else for.

    It is the value itself where there is nothing to take the place of. `at` is what is at a place.
    """
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _LEAVES):
        return value
    if isinstance(value, Place):
        return value if at is None else at(value)
    known[id(value)] = value  # what holds itself comes by here again
    made = known[id(value)] = _remade(value, lambda part: _rebound(part, known, at))
    return made


def _remade(value: Any, again: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if kind is MethodType:
        owner = again(value.__self__)
        return value if owner is value.__self__ else _Method(value.__func__, owner)
    if kind is _Method:  # Dynamo makes no methods
        bound = functools.partial if torch.compiler.is_dynamo_compiling() else MethodType
        return bound(value.function, again(value.owner))
    if kind is FunctionType:
        return _closed_over(value, again)
    if kind is functools.partial:
        held = (value.func, value.args, value.keywords)
        func, args, keywords = now = [again(part) for part in held]
        return value if _same(held, now) else functools.partial(func, *args, **keywords)
    if isinstance(value, dict):
        now = [again(part) for part in value.values()]
        if _same(value.values(), now):
            return value
        other = {} if kind is dict else copy.copy(value)
        other.update(zip(value, now, strict=True))
        return other
    if isinstance(value, (list, tuple)):
        now = [again(part) for part in value]
        if _same(value, now):
            return value
        return kind._make(now) if hasattr(kind, "_make") else kind(now)
    if isinstance(held := getattr(value, "__dict__", None), dict):
        now = again(held)
        if now is not held:
            value = copy.copy(value)
            value.__dict__.update(now)
    return value


def _closed_over(function: FunctionType, again: Callable[[Any], Any]) -> FunctionType:
    cells = function.__closure__ or ()
    now = [cell if _is_empty(cell) else again(cell.cell_contents) for cell in cells]
    if all(_is_empty(c) or other is c.cell_contents for c, other in zip(cells, now, strict=True)):
        return function
    closure = tuple(
        cell if other is cell else CellType(other) for cell, other in zip(cells, now, strict=True)
    )
    code, name = function.__code__, function.__name__
    made = FunctionType(code, function.__globals__, name, function.__defaults__, closure)
    functools.update_wrapper(made, function)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a variable that has no value yet
        return True


def _same(before: Iterable[Any], now: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(before, now, strict=True))
