"""What a step sets on its cell: refused where a later step would read it.

A program knows nothing of attributes, and a layer's cell is a copy that lasts for one call. So an
attribute that every step sets before it reads it tells nobody anything, and may be set: so do many
spiking neurons with their potential, and hooks with the weight that they compute.
"""

import sys
from collections.abc import Hashable, Iterable
from typing import Any

from torch import nn

from flexrnn.bind import named_tensors
from flexrnn.cell import Cell
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
            if name not in ("_parameters", "_buffers", "_modules") and path not in found:
                found[path] = (frozen(value), held.get(path))
    return found


def changed(cell: Cell, before: dict[str, Hashable]) -> list[str]:
    """Paths of what a cell holds otherwise, or newly."""
    return [path for path, value in attributes_of(cell).items() if before.get(path) != value]


def watch(cell: Cell, paths: Iterable[str], place: str) -> None:
    """From now on refuse to read these attributes before they are set; the cell is a copy.

    Args:
        cell: bound to its tensors, and run once.
        paths: of what that run has changed.
        place: of the step.

    Raises:
        CannotCompileError: one of them is a buffer or a parameter, which outlives the call.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        prefix, _, name = path.rpartition(".")
        if name not in vars(cell.get_submodule(prefix)):
            raise refused(cell, path, place)
        names.setdefault(prefix, set()).add(name)
    for prefix, unset in names.items():
        module = cell.get_submodule(prefix)
        module.__class__ = _watching(type(module), unset, cell, f"{prefix}." if prefix else "")


def _watching(kind: type[nn.Module], unset: set[str], cell: Cell, prefix: str) -> type[nn.Module]:
    """A class like another one, whose one instance refuses to be asked for what is not set yet."""

    class Watching(kind):
        def __getattribute__(self, name: str) -> Any:
            # torch's own code looks into every dictionary of a module, and asks for other names.
            everything = name == "__dict__" and unset and is_users(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            if everything or name in unset:
                raise CannotCompileError(
                    f"{type(cell).__name__}.step reads the attribute "
                    f"{prefix}{min(unset) if everything else name} before it sets it; what the "
                    f"next step is to know belongs into State, {users_line(frames())}"
                )
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            unset.discard(name)

    Watching.__name__, Watching.__qualname__ = kind.__name__, kind.__qualname__
    Watching.__module__ = kind.__module__
    return Watching


def refused(cell: Cell, path: str, place: str) -> CannotCompileError:
    """That a step changes what outlives it."""
    return CannotCompileError(f"{type(cell).__name__}.step changes the attribute {path}, {place}")
