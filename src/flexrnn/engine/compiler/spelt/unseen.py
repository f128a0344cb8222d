# pyright: reportPrivateUsage=false
# torch has no public name for the type of a scripted function, nor for what it was made of.
"""Calls that no mode of torch's intercepts: `Function.apply`, and of what `torch.jit.script` made.

People keep both under names of their own, as `spike = Surrogate.apply`. So what they all come by is
exchanged while a step is traced, for the thread that traces; others find there what was there. A
torch that has none of it keeps it to itself: steps with such calls are then refused. With them go
the questions of `asked`, by torch's names and those that a module has imported.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.autograd import Function, function

from flexrnn.engine.compiler.spelt.asked import answering, imported
from flexrnn.engine.compiler.spelt.function import applied


@contextmanager
def seen() -> Iterator[None]:
    """Within, this thread's calls are taken apart as all others are; for one thread at a time."""
    if _traces():
        yield
        return
    before = [getattr(owner, name) for owner, name, _ in _EXCHANGED]
    named = [(names, name, names[name], ours) for names, name, ours in imported(_ASKED)]
    _here.traces = True
    for owner, name, ours in _EXCHANGED:
        setattr(owner, name, ours)
    for names, name, _, ours in named:
        names[name] = ours
    try:
        yield
    finally:
        for names, name, theirs, ours in named:
            if names.get(name) is ours:
                names[name] = theirs
        for (owner, name, ours), theirs in zip(_EXCHANGED, before, strict=True):
            if isinstance(ours, _SetupContext):
                delattr(owner, name)  # it inherits its own
            else:
                setattr(owner, name, theirs)
        _here.traces = False


def _traces() -> bool:
    """Whether it is this thread that traces."""
    return getattr(_here, "traces", False)


def _transforms() -> bool:
    """Whether this thread traces and is within a transform, as all of a step is."""
    return _traces() and torch._C._are_functorch_transforms_active()


def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """What `cls.apply` returns."""
    return (applied if _traces() else _TORCHS)(cls, *args, **kwargs)


def _exchanged(__class__: Any) -> Any:
    """A function with the variable that torch's has: only then its code fits there.

    It runs with torch's globals.
    """

    def applies(cls: Any, *args: Any, **kwargs: Any) -> Any:
        __class__  # noqa: B018  # pyright: ignore[reportUnusedExpression]
        from flexrnn.engine.compiler.spelt.unseen import apply

        return apply(cls, *args, **kwargs)

    return applies


def _bound(forward: Any, args: Any, kwargs: Any) -> Any:
    """What comes with a call, as it comes: `applied` finds out which is which."""
    return (args, kwargs or {}) if _transforms() else _BIND(forward, args, kwargs)


def _custom(cls: Any, args: Any, kwargs: Any) -> Any:
    """What `cls.apply` returns within a transform."""
    return applied(cls, *args, **(kwargs or {})) if _transforms() else _CUSTOM(cls, args, kwargs)


class _SetupContext:
    """Of a Function that has none; torch, which refuses it within a transform, here finds one."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        return _setup_context if _transforms() else _BASE.setup_context


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    """Nobody calls it."""


def _called(scripted: Any, *args: Any, **kwargs: Any) -> Any:
    """What Python says where TorchScript has a form of its own, as `torch.compile` has it, too."""
    if _traces():
        return scripted._torchdynamo_inline(*args, **kwargs)
    return _CALL(scripted, *args, **kwargs)


_here = threading.local()
_EXCHANGED: list[tuple[Any, str, Any]] = []  # whose, what, and what stands there instead
_APPLY: Any = getattr(Function.apply, "__func__", None)
_BASE: Any = getattr(function, "_SingleLevelFunction", None)
_BIND: Any = getattr(function, "_bind_default_args", None)
_CUSTOM: Any = getattr(function, "_call_custom_function_call", None)
if isinstance(_APPLY, FunctionType):
    _TORCHS = FunctionType(_APPLY.__code__, _APPLY.__globals__, closure=_APPLY.__closure__)
    _EXCHANGED.append((_APPLY, "__code__", _exchanged(None).__code__))
elif None not in (_BASE, _BIND, _CUSTOM):  # torch 2.14 applies in C++, which calls these
    _EXCHANGED += [
        (function, "_bind_default_args", _bound),
        (function, "_call_custom_function_call", _custom),
        (Function, "setup_context", _SetupContext()),
    ]
if _SCRIPTED := getattr(torch._C, "ScriptFunction", None):
    _CALL: Any = _SCRIPTED.__call__
    _EXCHANGED.append((_SCRIPTED, "__call__", _called))
_ASKED = answering(_traces)
_EXCHANGED += _ASKED
