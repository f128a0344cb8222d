"""Sink: values are computed in the stage that reads them, where nothing is lost by it.

A node is put into the earliest stage that can compute it. If only a later stage reads it, it would
be written to memory and read back. Where its operands lie in memory anyway, or are read by nobody
else before, it is as well computed there.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flexrnn.engine.compiler.ops import OPS

if TYPE_CHECKING:
    from flexrnn.engine.lowering.stages import Lowering


_FAR = 64  # operands, and theirs, as many as are looked at


def sink(low: "Lowering") -> None:
    """Move elementwise nodes to later stages, and their operands with them.

    Stages in which nothing is left go.
    """
    late: dict[int, int] = {}  # the latest stage in which a node may be computed
    order = sorted(low.stage, reverse=True)
    for index in order:
        late[index] = _latest(low, late, index)
    waits = True
    while waits:  # what one has to stay for, others have to stay for, too
        waits = False
        for index in order:
            moves = late[index] > low.stage[index]
            if moves and not _follow(low, late, _args(low, index), late[index]):
                _stay(low, late, index)
                waits = True
    for index in order:
        if late[index] > low.stage[index]:
            low.stages[low.stage[index]].values.remove(index)
            low.stages[late[index]].values.append(index)
            low.stage[index] = late[index]
    for stage in low.stages:
        stage.values.sort()
    kept = [k for k, s in enumerate(low.stages) if s.products or s.values or s.reduced or s.totals]
    number = {k: n for n, k in enumerate(kept)}
    low.stages = [low.stages[k] for k in kept]
    low.stage = {index: number[k] for index, k in low.stage.items()}
    low.gathered = {index: number[k] for index, k in low.gathered.items()}
    for stage in low.stages:
        stage.again = None if stage.again is None else number[stage.again]


def _is_stored(low: "Lowering", index: int) -> bool:
    """Whether a value goes to memory in any case: as an output, or read by where it lies."""
    if index in low.graph.outputs.values():
        return True
    readers = (user for user in low.users[index] if user in low.alive)
    return any(low.nodes[user].op not in OPS and user not in low.gathered for user in readers)


def _latest(low: "Lowering", late: Mapping[int, int], index: int) -> int:
    """The first stage that reads a value at its own units; where it is if another is to find it."""
    stage, found = low.stage[index], list[int]()
    if low.nodes[index].op not in OPS or _is_stored(low, index):
        return stage
    if any(arg in low.blocks for arg in _args(low, index)):
        return stage  # the tile is gone later
    for user in low.users[index]:
        if user not in low.alive:
            continue
        gathered = low.gathered.get(user)
        if gathered is None and low.domain(user) != low.domain(index):
            return stage
        found.append(late[user] if gathered is None else gathered)
    return max(stage, min(found, default=stage))


def _stay(low: "Lowering", late: dict[int, int], index: int) -> None:
    """Leave a node where it is; what it reads comes no later."""
    pending = [(index, low.stage[index])]
    while pending:
        index, bound = pending.pop()
        if bound < late[index]:
            late[index] = bound
            args = (arg for arg in low.nodes[index].args if arg in late)
            pending += [(arg, max(bound, low.stage[arg])) for arg in args]


def _args(low: "Lowering", index: int) -> list[int]:
    """The operands that a stage computes unit by unit as it does the node; others lie in memory."""
    same = low.domain(index)
    return [a for a in low.nodes[index].args if a in low.stage and low.domain(a) == same]


def _follow(low: "Lowering", late: Mapping[int, int], args: list[int], target: int) -> bool:
    """Whether operands can be had in a later stage without being stored for it."""
    seen, pending = set[int](), list(args)
    while pending:
        arg = pending.pop()
        if arg in seen:
            continue
        seen.add(arg)
        if len(seen) > _FAR or arg in low.blocks:
            return False
        if low.nodes[arg].op in OPS and not _is_stored(low, arg):
            if late[arg] < target:
                return False
            pending += _args(low, arg)
    return True
