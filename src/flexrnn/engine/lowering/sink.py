"""Sink: values are computed in the stage that reads them, where nothing is lost by it.

A node is put into the earliest stage that can compute it. If only a later stage reads it, it would
be written to memory and read back. Where its operands lie in memory anyway, or are read by nobody
else before, it is as well computed there.
"""

from typing import TYPE_CHECKING

from flexrnn.engine.compiler.ops import OPS

if TYPE_CHECKING:
    from flexrnn.engine.lowering.stages import Lowering


_FAR = 16  # operands of operands, as far as it is looked


def sink(low: "Lowering") -> None:
    """Move elementwise nodes to later stages; the last first, so that their operands follow.

    Stages in which nothing is left go.
    """
    for index in sorted(low.stage, reverse=True):
        if low.nodes[index].op not in OPS or _is_stored(low, index):
            continue
        target = _first_read(low, index)
        if target is None or target <= low.stage[index]:
            continue
        if all(_follows(low, arg, index, target) for arg in low.nodes[index].args):
            low.stages[low.stage[index]].values.remove(index)
            low.stages[target].values.append(index)
            low.stages[target].values.sort()
            low.stage[index] = target
    kept = [k for k, s in enumerate(low.stages) if s.products or s.values or s.reduced]
    number = {k: n for n, k in enumerate(kept)}
    low.stages = [low.stages[k] for k in kept]
    low.stage = {index: number[k] for index, k in low.stage.items()}
    low.gathered = {index: number[k] for index, k in low.gathered.items()}


def _is_stored(low: "Lowering", index: int) -> bool:
    """Whether a value goes to memory in any case: as an output, or read by where it lies."""
    if index in low.graph.outputs.values():
        return True
    readers = (user for user in low.users[index] if user in low.alive)
    return any(low.nodes[user].op not in OPS and user not in low.gathered for user in readers)


def _first_read(low: "Lowering", index: int) -> int | None:
    """The first stage that reads a value at its own units; None where one reads it elsewhere."""
    found = []
    for user in low.users[index]:
        if user not in low.alive:
            continue
        gathered = low.gathered.get(user)
        if gathered is None and low.domain(user) != low.domain(index):
            return None
        found.append(low.stage[user] if gathered is None else gathered)
    return min(found, default=None)


def _follows(low: "Lowering", arg: int, index: int, target: int, far: int = 0) -> bool:
    """Whether an operand can be had in a later stage without being stored for it."""
    if arg not in low.stage or low.domain(arg) != low.domain(index):
        return True  # it lies in memory
    if arg in low.blocks:
        return False  # in a tile, which is gone by then
    if low.nodes[arg].op not in OPS or _is_stored(low, arg):
        return True
    first = _first_read(low, arg)
    others = [u for u in low.users[arg] if u in low.alive and u != index]
    if not others:
        args = low.nodes[arg].args
        return far < _FAR and all(_follows(low, a, arg, target, far + 1) for a in args)
    return first is not None and first >= target
