"""The loop as one kernel whose programs share rows and units, keep their weights, and meet.

Every program reads the weights of its units once, before the loop, and keeps them on the chip. What
others need goes through memory; where a stage reads what other programs wrote, all programs of
these rows meet: each arrives behind its last such number, and waits before it reads. Inputs and a
program's own numbers are read before the wait; they, and results that no stage reads, are written
behind the arrival.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flexrnn.engine.cuda.emit.held import ResidentWriter
from flexrnn.engine.cuda.emit.meetings import Trace, meetings, own
from flexrnn.engine.cuda.emit.names import COMPILED, OWN_STEPS, Names
from flexrnn.engine.cuda.emit.tiles import Tile


class Resident(NamedTuple):
    """The kernel `grid`."""

    text: str
    used: tuple[str, ...]  # the memory that it is given
    copied: frozenset[str]  # of which every program has its own
    programs: int  # that share a row
    meetings: int  # in a step, unless one program has all units
    held: int  # numbers that a program keeps


def twins(names: Names) -> frozenset[str]:
    """States that products read, and others unrounded: programs exchange rounded ones beside."""
    stages, buffers = names.loop.stages, names.buffers
    lefts = {names.low.place(p.left).buffer for stage in stages for p in stage.products}
    wide = {name for name in lefts if buffers[name].element != names.operand}
    return frozenset(name for name in wide if buffers[name].kind == "old")


def resident(names: Names, tiles: Sequence[Tile], needed: frozenset[str]) -> Resident:
    """Write the kernel `grid` and its functions.

    Args:
        names: of the loop's memory.
        tiles: of every stage.
        needed: memory that some stage reads.
    """
    loop = names.loop
    rounded = twins(names)
    writers = [ResidentWriter(names, k, tile, rounded) for k, tile in enumerate(tiles)]
    for writer in writers:
        writer.write()
    written = {s.place.buffer for stage in loop.stages if stage.alone for s in stage.stores}
    copied = frozenset(written & loop.copied)
    kinds = {name: buffer.kind for name, buffer in names.buffers.items()}
    traces = [
        Trace(*([a for a in accesses if a.memory not in copied]
                for accesses in (w.reads, w.writes)))
        for w in writers
    ]  # fmt: skip
    counts = [writer.programs for writer in writers]
    programs = max(counts)
    found = meetings(traces, kinds)
    before = found if programs > 1 else (False,) * len(found)  # who is alone meets nobody
    after = (*before[1:], before[0])
    alone = own(traces, kinds) | copied
    stays = needed | {name for name, kind in kinds.items() if kind != "timed"}
    stages = [
        w.functions(waits=before[k], arrives=after[k], own=alone, needed=stays)
        for k, w in enumerate(writers)
    ]
    used = tuple(dict.fromkeys(name for w in writers for name in (*w.used, *w.weights)))
    pointers = ", ".join(names.buffers[name].name for name in used)
    lines = list[str]()
    for writer, count in zip(writers, counts, strict=True):
        if writer.held:
            which = "tile" if count == programs else f"tl.minimum(tile, {count - 1})"
            given = ", ".join((which, *map(names.buffer, writer.weights), "PRECISION", "WARPS"))
            lines.append(f"{', '.join(writer.held)} = held{writer.number}({given})")
    body = names.travel(used)
    for writer, count, waits, arrives in zip(writers, counts, before, after, strict=True):
        call = _call(names, writer, copied)
        if count == programs or writer.stage.alone:
            stage = [call]
        else:  # programs without units are there where all meet
            absent = [*(["wait(meeting, met)"] if waits else []),
                      *(["arrive(meeting)"] if arrives else [])]  # fmt: skip
            stage = [f"if tile < {count}:", f"    {call}"]
            stage += ["else:", *(f"    {line}" for line in absent)] if absent else []
        stage += ["tl.debug_barrier()"]  # a program's own numbers, of which each thread has some
        stage += ["met += tl.num_programs(1)"] if arrives else []
        body += [f"if STAGE < 0 or STAGE == {writer.number}:", *(f"    {line}" for line in stage)]
    text = "\n".join([
        *(f"{stage}\n" for stage in stages),
        '@jit(do_not_specialize=("begin", "end", "T", "B"))',
        f"def grid(begin, end, T, B, layout, meeting, {pointers}, {COMPILED}, "
        "WARPS: tl.constexpr, STAGE: tl.constexpr):",
        "    # Programs share rows and units, keep their weights, and meet where they have to.",
        "    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)",
        "    tile = tl.program_id(1)",
        "    meeting = meeting + tl.program_id(0) * 16  # each in a line of the cache",
        "    met = tl.full((), 0, tl.int64)",
        *(f"    {line}" for line in (*lines, *OWN_STEPS)),
        "    for t in range(begin, tl.minimum(end, T)):",
        *(f"        {line}" for line in body),
        "",
    ])  # fmt: skip
    held = sum(w.numbers for w in writers)
    return Resident(text, used, copied, programs, sum(found), held)


def _call(names: Names, writer: ResidentWriter, copied: frozenset[str]) -> str:
    """The call of a stage's function; what is alone, every program does for itself."""
    tile = "0" if writer.stage.alone else "tile"
    pointers = []
    for name in writer.used:
        buffer = names.buffers[name]
        if name in copied:
            pointers.append(f"{buffer.name} + tile * B.to(tl.int64) * {buffer.row}")
        else:
            pointers.append(buffer.name if buffer.kind == "fixed" else f"{buffer.name}_t")
    given = ", ".join((*pointers, *writer.held))
    return (
        f"stage{writer.number}(B, count, rows, {tile}, meeting, met, {given}, M, PRECISION, WARPS)"
    )
