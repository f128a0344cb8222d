"""Attributes that the first step makes and others find: `if self.mask is None: self.mask = ...`.

A layer's cell is a copy that lasts for one call, in which the first step makes them. A program
knows no first step. It is of one that finds them, if what they are is the same whatever is given,
and a step does the same with and without them.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from flexrnn.cell import Cell
from flexrnn.changes import attributes_of, changed
from flexrnn.engine.compiler.kept import is_kept

Run = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Iterable[Tensor]]


def made_once(
    fresh: Callable[[], tuple[Run, Cell]], inputs: tuple[Tensor, ...], state: tuple[Tensor, ...]
) -> dict[str, Any]:
    """What the first step makes, by its path; nothing where that may depend on anything.

    Args:
        fresh: gives a step that has not been run, and the cell whose attributes it sets.
        inputs, state: on which a step is run; then one on others, of another number of rows.
    """
    made = _first(*fresh(), inputs, state)[0]
    if made:
        with suppress(Exception):  # that others are another number may be wrong
            others = tuple(map(_others, inputs)), tuple(map(_others, state))
            step, cell = fresh()
            again, results = _first(step, cell, *others)
            held = attributes_of(cell)
            repeated = [*step(*others)]
            cell.__dict__.pop(_DROP, None)
            stays = not changed(cell, held) and all(map(torch.equal, results, repeated))
            alike = made.keys() == again.keys()
            if stays and alike and all(_same(made[path], again[path]) for path in made):
                return made
    return {}


def give(cell: Cell, made: Mapping[str, Any]) -> bool:
    """Let a cell have what its first step would make, if that is made of numbers alone."""
    if not all(is_kept(value) for value in made.values() if isinstance(value, Tensor)):
        return False
    for path, value in made.items():
        prefix, _, name = path.rpartition(".")
        vars(cell.get_submodule(prefix))[name] = value
    return True


def _first(
    step: Run, cell: Cell, inputs: tuple[Tensor, ...], state: tuple[Tensor, ...]
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a step that is run for the first time makes, if that is numbers; and its result."""
    before = attributes_of(cell)
    results = [*step(inputs, state)]
    cell.__dict__.pop(_DROP, None)  # the layer's, who sets it at every step
    made = dict[str, Any]()
    for path in changed(cell, before):
        prefix, _, name = path.rpartition(".")
        value = vars(cell.get_submodule(prefix)).get(name)
        if not isinstance(value, (Tensor, *_PLAIN)):
            return {}, results
        made[path] = value
    return made, results


def _others(tensor: Tensor) -> Tensor:
    shape = (3, *tensor.shape[1:])
    numbers = torch.arange(torch.Size(shape).numel(), device=tensor.device).sin()
    return numbers.view(shape).to(tensor.dtype)


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    return (a.dtype == b.dtype and torch.equal(a, b)) if isinstance(a, Tensor) else a == b


_DROP = "drop_recurrent"
_PLAIN = (int, float, bool, str)
