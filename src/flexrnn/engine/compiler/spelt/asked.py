"""Questions about what is in force for all of torch, which a program does not depend on.

Whether gradients are on, or what the default dtype is, makes another program. These do not: a step
that asks, to go on by the answer, is refused. What torch itself asks is its own affair.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from flexrnn.engine import autocast
from flexrnn.engine.compiler.refusal import is_users, refused


def _of_autocast() -> str:
    """It is off while such a step is traced, whether it was on or is not there for its dtype."""
    if not autocast.is_being_cast():
        return ""
    return "under autocast, and in half types, a program is the same whatever it says"


def _of_torch() -> str:
    return "a program is the same whatever it says"


_WHY: dict[str, Callable[[], str]] = {
    **dict.fromkeys((
        "is_autocast_enabled", "is_autocast_cpu_enabled", "get_autocast_dtype",
        "get_autocast_cpu_dtype", "get_autocast_gpu_dtype",
    ), _of_autocast),
    **dict.fromkeys((
        "is_autocast_cache_enabled", "get_num_threads", "get_num_interop_threads",
        "are_deterministic_algorithms_enabled", "is_deterministic_algorithms_warn_only_enabled",
        "get_deterministic_debug_mode", "get_float32_matmul_precision", "is_anomaly_enabled",
        "is_anomaly_check_nan_enabled", "initial_seed",
    ), _of_torch),
}  # fmt: skip


def answering(traces: Callable[[], bool]) -> list[tuple[Any, str, Any]]:
    """Whose function, its name, and what stands there while a step is traced.

    Args:
        traces: whether it is the thread that asks whose step that is.
    """
    return [
        (torch, name, _answering(name, getattr(torch, name), why, traces))
        for name, why in _WHY.items()
        if hasattr(torch, name)
    ]


def imported(answers: list[tuple[Any, str, Any]]) -> list[tuple[dict[str, Any], str, Any]]:
    """Whose names, the name, and what stands there meanwhile: `from torch import get_num_threads`.

    Looked for in all modules but torch's, a few thousandths of a second a trace; what is kept in an
    attribute or closed over is not found.
    """
    ours = {id(getattr(owner, name)): answer for owner, name, answer in answers}
    # Copies: a list of pairs is made pair by pair, when memory may be collected, and what is gone
    # may warn of that and have something imported.
    known = sys.modules.copy()
    modules = ((name.partition(".")[0], _names(module)) for name, module in known.items()
               if issubclass(type(module), ModuleType))  # fmt: skip
    return [
        (names, name, ours[id(value)])
        for package, names in modules
        if package not in _NOT_ASKING and not ours.keys().isdisjoint(map(id, [*names.values()]))
        for name, value in names.copy().items()
        if id(value) in ours
    ]


# Past what a class says: one that is loaded when it is first asked stays unloaded.
_names: Callable[[Any], dict[str, Any]] = vars(ModuleType)["__dict__"].__get__
_NOT_ASKING = {"torch", "flexrnn", *sys.stdlib_module_names} - {"__main__"}


def _answering(
    name: str, torchs: Any, why: Callable[[], str], traces: Callable[[], bool]
) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        frame = inspect.currentframe()
        asks = frame and frame.f_back
        if traces() and asks and is_users(asks) and (reason := why()):
            raise refused(name, reason)
        return torchs(*args, **kwargs)

    return answer
