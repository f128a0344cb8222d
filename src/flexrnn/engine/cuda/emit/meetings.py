"""Where programs that share rows have to wait for one another.

A stage reads some memory at the very units that its program wrote, and some as whole rows. Between
two accesses of the same numbers by different programs, one of which writes, all programs of these
rows meet.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

_STEPS = 3  # after which everything has come back: a state's ring has two slots


class Access(NamedTuple):
    """What a stage reads or writes."""

    memory: str
    units: Hashable  # equal where the same program has the same numbers; None: whole rows


class Trace(NamedTuple):
    """The accesses of a stage."""

    reads: Sequence[Access]
    writes: Sequence[Access]


def meetings(traces: Sequence[Trace], kinds: Mapping[str, str]) -> tuple[bool, ...]:
    """Of every stage, whether all programs have to meet before it.

    Args:
        traces: of the stages, in their order.
        kinds: of memory, as `names.Buffer` has them.
    """
    before = [False] * len(traces)
    while (found := _first(traces, kinds, before)) is not None:
        before[found] = True
    return tuple(before)


def _first(traces: Sequence[Trace], kinds: Mapping[str, str], before: Sequence[bool]) -> int | None:
    """The first stage with a conflict that no meeting so far settles."""
    read: set[tuple[Hashable, Hashable]] = set()
    written: set[tuple[Hashable, Hashable]] = set()
    for step in range(_STEPS):
        for number, trace in enumerate(traces):
            if before[number]:
                read.clear()
                written.clear()
            reads = [(_slot(a.memory, kinds, step), a.units) for a in trace.reads]
            writes = [(_slot(a.memory, kinds, step), a.units) for a in trace.writes]
            if _conflict(reads, written) or _conflict(writes, read | written):
                return number
            read.update(reads)
            written.update(writes)
    return None


def own(traces: Iterable[Trace], kinds: Mapping[str, str]) -> frozenset[str]:
    """Memory of which every program has numbers of its own, at which no other ever looks.

    Args:
        traces: of all stages.
        kinds: as in `meetings`.
    """
    accesses = [a for trace in traces for a in (*trace.reads, *trace.writes)]
    units: dict[Hashable, set[Hashable]] = {}
    for a in accesses:
        units.setdefault(_piece(a.memory, kinds), set()).add(a.units)
    alone = {piece for piece, found in units.items() if len(found) == 1 and None not in found}
    return frozenset(a.memory for a in accesses if _piece(a.memory, kinds) in alone)


def _piece(memory: str, kinds: Mapping[str, str]) -> str:
    """What the names of a ring's slots have in common."""
    return memory.partition(".")[2] if kinds[memory] in ("old", "new") else memory


def _conflict(
    new: Iterable[tuple[Hashable, Hashable]], old: set[tuple[Hashable, Hashable]]
) -> bool:
    return any(
        slot == other and (units is None or units != theirs)
        for slot, units in new
        for other, theirs in old
    )


def _slot(memory: str, kinds: Mapping[str, str], step: int) -> Hashable:
    """The piece of memory that a name stands for at a step."""
    kind = kinds[memory]
    if kind == "timed":
        return memory, step
    if kind in ("old", "new"):
        return _piece(memory, kinds), (step + (kind == "new")) % 2
    return memory
