# pyright: reportPrivateUsage=false
# torch has no public name for the type of a scripted function, nor for what it was made of.
"""Calls that no mode of torch's intercepts: `Function.apply`, and of what `torch.jit.script` made.

People keep both under names of their own, as `spike = Surrogate.apply`. So what they all come by is
exchanged while a step is traced, for the thread that traces; others find there what was there.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.autograd import Function

from flexrnn.engine.compiler.spelt.function import applied


@contextmanager
def seen() -> Iterator[None]:
    """Within, this thread's calls are taken apart as all others are; for one thread at a time."""
    before = getattr(_here, "traces", False), _APPLY.__code__, _SCRIPTED.__call__
    _here.traces, _APPLY.__code__, _SCRIPTED.__call__ = True, _OURS, _called
    try:
        yield
    finally:
        _here.traces, _APPLY.__code__, _SCRIPTED.__call__ = before


def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """What `cls.apply` returns."""
    traces = getattr(_here, "traces", False)
    return (applied if traces else _TORCHS)(cls, *args, **kwargs)


def _exchanged(__class__: Any) -> Any:
    """A function with the variable that torch's has: only then its code fits there.

    It runs with torch's globals.
    """

    def applies(cls: Any, *args: Any, **kwargs: Any) -> Any:
        __class__  # noqa: B018  # pyright: ignore[reportUnusedExpression]
        from flexrnn.engine.compiler.spelt.unseen import apply

        return apply(cls, *args, **kwargs)

    return applies


def _called(scripted: Any, *args: Any, **kwargs: Any) -> Any:
    """What Python says where TorchScript has a form of its own, as `torch.compile` has it, too."""
    if getattr(_here, "traces", False):
        return scripted._torchdynamo_inline(*args, **kwargs)
    return _CALL(scripted, *args, **kwargs)


_here = threading.local()
_APPLY: Any = Function.apply.__func__
_TORCHS = FunctionType(_APPLY.__code__, _APPLY.__globals__, closure=_APPLY.__closure__)
_OURS = _exchanged(None).__code__
_SCRIPTED: Any = torch._C.ScriptFunction
_CALL = _SCRIPTED.__call__
