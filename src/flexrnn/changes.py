"""What a step sets on its cell: refused where a later step would read it.

A program knows nothing of attributes, and a layer's cell is a copy that lasts for one call. So an
attribute that every step sets before it reads it tells nobody anything, and may be set: so do many
spiking neurons with their potential, and hooks with the weight that they compute.
"""

import inspect
import sys
from collections.abc import Callable, Hashable, Iterable
from functools import cached_property
from typing import Any

from torch import nn

from flexrnn.bind import named_tensors
from flexrnn.cell import Cell, changes
from flexrnn.engine.compiler.refusal import CannotCompileError, frames, is_users, users_line
from flexrnn.engine.step import frozen
from flexrnn.references import inside


def attributes_of(cell: Cell) -> dict[str, Hashable]:
    """Everything that a cell holds, by its path; a tensor counts as the object that it is."""
    found: dict[str, Hashable] = {name: id(tensor) for name, tensor in named_tensors(cell).items()}
    held = inside(cell)  # to a list that holds other tensors `frozen` is blind
    for prefix, module in cell.named_modules():
        for name, value in vars(module).items():
            path = f"{prefix}.{name}" if prefix else name
            if name in _TABLES:  # which names there are; modules count as the objects that they are
                found[path] = tuple(
                    (key, id(entry) if name == "_modules" else None) for key, entry in value.items()
                )
            elif path not in found:
                found[path] = (frozen(value), held.get(path))
    return found


def changed(cell: Cell, before: dict[str, Hashable]) -> list[str]:
    """Paths of what a cell holds otherwise, newly, or no more."""
    after = attributes_of(cell)
    gone = [path for path in before if path not in after]
    return gone + [path for path, value in after.items() if before.get(path) != value]


def are_computed_once(cell: Cell, paths: Iterable[str]) -> bool:
    """Whether all of them are what `functools.cached_property` has kept.

    If a step changes nothing else, then what it has kept is the same whenever it is computed.
    """
    for path in paths:
        prefix, _, name = path.rpartition(".")
        kind = type(cell.get_submodule(prefix))
        if not isinstance(inspect.getattr_static(kind, name, None), cached_property):
            return False
    return True


def watch(cell: Cell, paths: Iterable[str], place: str) -> list[CannotCompileError]:
    """From now on refuse to read these attributes before they are set; the cell is a copy.

    Args:
        cell: bound to its tensors, and run once.
        paths: of what that run has changed.
        place: of the step.

    Returns:
        What is refused from now on, for the step may go on without: the caller is to raise it.

    Raises:
        CannotCompileError: one of them is a buffer, a parameter or a module, which outlives the
            call, or is there no more.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        prefix, _, name = path.rpartition(".")
        if name in _TABLES or name not in vars(cell.get_submodule(prefix)):
            raise changes(cell, path, place)
        names.setdefault(prefix, set()).add(name)
    told: list[CannotCompileError] = []
    for prefix, unset in names.items():
        module = cell.get_submodule(prefix)

        def refuse(
            name: str, prefix: str = f"{prefix}." if prefix else "", unset: set[str] = unset
        ) -> CannotCompileError:
            told.append(
                CannotCompileError(
                    f"{type(cell).__name__}.step reads the attribute {prefix}"
                    f"{name if name in unset else min(unset)} before it sets it; what the next "
                    f"step is to know belongs into State, {users_line(frames())}"
                )
            )
            return told[-1]

        module.__class__ = _watching(type(module), unset, refuse)
    return told


def _watching(
    kind: type[nn.Module], unset: set[str], refuse: Callable[[str], CannotCompileError]
) -> type[nn.Module]:
    """A class like another one, whose one instance refuses to be asked for what is not set yet."""

    class Watching(kind):
        def __getattribute__(self, name: str) -> Any:
            # torch's own code looks into every dictionary of a module, and asks for other names.
            everything = name == "__dict__" and unset and is_users(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            if everything or name in unset:
                raise refuse(name)
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            unset.discard(name)

        def __dir__(self) -> list[str]:
            if unset:
                raise refuse("")
            return super().__dir__()

        def __reduce_ex__(self, protocol: Any) -> Any:  # as `copy` does
            if unset:
                raise refuse("")
            return super().__reduce_ex__(protocol)

        def __getstate__(self) -> Any:
            if unset:
                raise refuse("")
            return super().__getstate__()

    Watching.__name__, Watching.__qualname__ = kind.__name__, kind.__qualname__
    Watching.__module__ = kind.__module__
    return Watching


_TABLES = ("_parameters", "_buffers", "_modules")
