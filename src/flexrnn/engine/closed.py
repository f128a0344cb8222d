# pyright: reportPrivateUsage=false
# Where a module keeps its parameters and submodules has no public name.
"""What a function of `scan` uses beside its arguments: tensors and modules that it has closed over.

A method of a module, `functools.partial`, a list of weights in a closure: they lead to tensors that
are the same at every step, as `params` are. In a program these are inputs, and while the step is
traced the function is another one, which leads to others in their place.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from flexrnn.engine.compiler.refusal import CannotCompileError
from flexrnn.engine.step import frozen
from flexrnn.engine.tables import trim
from flexrnn.engine.ways import way_of

Step = Callable[..., Any]


class Held:
    """The tensors to which a function leads, place by place; one may stand at several.

    A module's are its parameters and buffers, and other attributes that autograd has not made: the
    output of the last call, say, is nothing that a step is meant to read.
    """

    def __init__(self, step: Step) -> None:
        self.places: list[Tensor] = []
        self._modules: list[int] = []
        self._seen = set[int]()
        self._visit(step, of_module=False)
        self._step = step

    def settles(self, key: Hashable) -> bool:
        """Whether such functions are alike at most calls; else each would be compiled anew.

        Args:
            key: of the function and what it has closed over.
        """
        step = self._step.func if isinstance(self._step, partial) else self._step
        code = getattr(step, "__code__", type(step))  # a method has its function's
        with _lock:
            keys = _keys.setdefault((code, *self._modules), set())
            trim(_keys, _KEPT)
            if len(keys) < _MOST:
                keys.add(hash(key))
            return hash(key) in keys

    def _visit(self, value: Any, *, of_module: bool) -> None:
        if isinstance(value, Tensor):
            if not (of_module and value.grad_fn is not None) and value.layout is torch.strided:
                self.places.append(value)
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self._modules.append(id(value))
            of_module = True
        for part in _parts(value):
            self._visit(part, of_module=of_module)


def likeness(value: Any, seen: dict[int, int] | None = None) -> Hashable:
    """Equal for functions that do the same with the same tensors, though made anew for every call.

    What is written once and leads to the same is the same, as long as the same things are one;
    anything else is as `frozen` has it.
    """
    seen = {} if seen is None else seen
    kind = type(value)
    if kind not in _OPENED:
        return frozen(value)
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    if kind is FunctionType:
        code = value.__code__
        given = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
        found = (value.__name__, code, code.co_filename, _Same(value.__globals__))
        return (kind, *found, *(likeness(part, seen) for part in given))
    if kind is CellType:
        try:
            return (kind, likeness(value.cell_contents, seen))
        except ValueError:  # a variable that has no value yet
            return kind
    if kind is partial:
        given = (value.func, value.args, value.keywords, value.__dict__)
        return (kind, *(likeness(part, seen) for part in given))
    if kind is dict:
        return (kind, *((frozen(k), likeness(part, seen)) for k, part in value.items()))
    return (kind, *(likeness(part, seen) for part in value))


class _Same:
    """Equal where it is of the same object."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _parts(value: Any) -> list[Any]:
    """What a value leads to directly."""
    if isinstance(value, torch.jit.ScriptModule):  # of which nobody can make a copy
        return []
    if isinstance(value, nn.Module):
        own = (part for name, part in vars(value).items() if name not in _TORCHS)
        return [*value._parameters.values(), *value._buffers.values(), *own,
                *value._modules.values()]  # fmt: skip
    parts: list[Any] = []
    way = way_of(type(value))
    if way is not None:

        def note(part: Any) -> Any:
            parts.append(part)
            return part

        way(value, note)
    return parts


class Others:
    """A function that leads to other tensors, by copies of what leads there.

    Args:
        step: the function.
        instead: what comes in the place of a tensor, by its `id`.
    """

    def __init__(self, step: Step, instead: Mapping[int, Tensor]) -> None:
        self._others: dict[int, Any] = dict(instead)
        self._copies: list[tuple[nn.Module, list[dict[str, Any]]]] = []
        self.step: Step = self._other(step)

    def check(self) -> None:
        """Refuse a step that has set attributes of a module: those of a copy would be lost."""
        for copy, before in self._copies:
            for own, was in zip(_tables(copy), before, strict=True):
                changed = [k for k in own | was if own.get(k, was) is not was.get(k, own)]
                if changed:
                    raise CannotCompileError(
                        f"a step of scan sets {changed[0]} of {type(copy).__name__}, which a "
                        "program would not; what lives on from step to step is state"
                    )

    def _other(self, value: Any) -> Any:
        if id(value) in self._others:
            return self._others[id(value)]
        if isinstance(value, nn.Module):
            return self._copy(value)
        way = None if isinstance(value, Tensor) else way_of(type(value))
        if way is None:
            return value
        self._others[id(value)] = value  # what holds itself comes by here again
        self._others[id(value)] = made = way(value, self._other)
        return made

    def _copy(self, module: nn.Module) -> nn.Module:
        if not Held(module).places:
            return module
        copy = self._others[id(module)] = type(module).__new__(type(module))
        own = copy.__dict__
        own.update(vars(module))
        for name in ("_parameters", "_buffers", "_modules"):
            own[name] = {key: self._other(part) for key, part in own[name].items()}
        for name, part in vars(module).items():
            if name not in _TORCHS:
                own[name] = self._other(part)
        if isinstance(copy, nn.RNNBase):  # it need not compare them
            own["_flat_weight_refs"] = [None] * len(own["_flat_weight_refs"])
        self._copies.append((copy, [dict(table) for table in _tables(copy)]))
        return copy


def _tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    own = vars(module)
    return (own, own["_parameters"], own["_buffers"], own["_modules"])


_TORCHS = set(vars(nn.Module()))  # such as the tables of hooks, which call whom they were given
_OPENED = frozenset({FunctionType, CellType, partial, dict, list, tuple})
_lock = threading.Lock()
_keys: dict[Hashable, set[int]] = {}  # of a step's code and the modules that it leads to
_MOST, _KEPT = 32, 512
