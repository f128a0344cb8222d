"""The Triton source of a loop: a function for every stage, and the kernels that call them.

Three sets of kernels go over the same stages, for the tiers of `tiers.py`. `sequence` walks through
all steps, each program with rows of its own; a narrow loop has it written as a whole. `grid` does
so with programs that share rows and meet: see `resident.py`. `stepK` is stage K at one step, whose
tiles of units are programs of their own. `replayed_stepK` is the same for a recorded graph: it
finds its arguments in a table of 64-bit numbers,

    T, B, the first step of this replay, the layout, then the pointers, in the order of
    `Kernels.memory`.

Where sequences end at different steps, the longest first, what is `(T, B, ...)` is `(N, ...)`, and
`layout` says where a step's rows begin; see `calls.layout_of`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from flexrnn.engine.cuda.emit.names import COMPILED, OWN_STEPS, Buffer, Names
from flexrnn.engine.cuda.emit.resident import Resident, resident
from flexrnn.engine.cuda.emit.stage import StageWriter
from flexrnn.engine.cuda.emit.tiles import Tile, power_above, tile_of
from flexrnn.engine.cuda.emit.whole import NotNarrowError, WholeWriter
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.stages import Loop

FIRST_POINTER = 4  # in the table
_ROWS = "rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)"


class Kernel(NamedTuple):
    """What is launched."""

    name: str
    used: tuple[str, ...]  # the memory that it is given
    tiles: int  # programs that share a row


class Kernels(NamedTuple):
    """A source, and the kernels in it that make one step, or all."""

    text: str
    kernels: tuple[Kernel, ...]

    @property
    def memory(self) -> tuple[str, ...]:
        """What any of them is given."""
        return tuple(dict.fromkeys(name for kernel in self.kernels for name in kernel.used))


class Source(NamedTuple):
    """A loop, written for all tiers."""

    sequence: Kernels
    grid: Resident
    steps: Kernels
    buffers: dict[str, Buffer]
    tiles: tuple[Tile, ...]  # of every stage
    parts: tuple[int, ...]  # of every stage, into how many tiles a head's units are cut
    weights: tuple[int, ...]  # of every stage, numbers in the right operands of its products
    narrow: bool  # `sequence` is written as a whole


def tiles_of(loop: Loop, widest: int, *, even: bool, half: bool) -> tuple[Tile, ...]:
    """The tiles of every stage.

    Args:
        loop: the stages.
        widest: no tile has more units.
        even: of the narrowest stage alone; wider ones are cut into as many tiles.
        half: operands of products are of 16 bits.
    """
    tiles: list[Tile] = []
    narrowest = min((u for s in loop.stages if (u := s.domain.units) > 1), default=1)
    for number, stage in enumerate(loop.stages):
        sums = [len(sums) for _, sums in Accumulators(loop, number).groups]
        most, values, units = max(sums, default=0), len(stage.values), stage.domain.units
        width = power_above(-(-widest * units // narrowest)) if even and units > 1 else widest
        tiles.append(tile_of(units, most, values, half=half, widest=width))
    return tuple(tiles)


def source(
    loop: Loop,
    *,
    backward: bool,
    real: str,
    operand: str,
    tiles: Sequence[Tile],
    least: int,
    whole: bool = True,
) -> Source:
    """Write the source of a loop.

    Args:
        loop: its stages.
        backward: it runs from the last step to the first.
        real: the type of numbers in registers, `tl.float32` or `tl.float64`.
        operand: the type of products' operands.
        tiles: of every stage; see `tiles_of`.
        least: columns of a left operand that a product multiplies at least.
        whole: a narrow loop's `sequence` may keep its state in registers.
    """
    parts = tuple(t.count(s.domain.units) for t, s in zip(tiles, loop.stages, strict=True))
    names = Names(loop, tiles, real=real, operand=operand, least=least, backward=backward)
    writers = [StageWriter(names, k, tile) for k, tile in enumerate(tiles)]
    stages = [writer.text() for writer in writers]
    used = [tuple(writer.used) for writer in writers]
    counts = [p * s.domain.heads for p, s in zip(parts, loop.stages, strict=True)]
    memory = tuple(dict.fromkeys(name for names in used for name in names))
    each = range(len(stages))
    steps = Kernels(
        "\n\n".join([
            *stages,
            *(_step(names, k, used[k]) for k in each),
            *(_replayed(names, k, used[k], memory) for k in each),
        ]),
        tuple(Kernel(f"step{k}", used[k], counts[k]) for k in each),
    )  # fmt: skip
    weights = tuple(
        sum(math.prod(map(int, loop.graph.nodes[p.weight].shape)) for p in stage.products)
        for stage in loop.stages
    )
    lefts = {names.low.place(p.left).buffer for s in loop.stages for p in s.products}
    needed = frozenset(lefts | {name for w in writers for name in w.read_back})
    grid = resident(names, tiles, needed)
    try:
        if not whole:
            raise NotNarrowError
        writer = WholeWriter(names)
        text, kernel = writer.text(), Kernel("sequence", tuple(writer.used), 1)
        sequence, narrow = Kernels(text, (kernel,)), True
    except NotNarrowError:
        text = "\n\n".join([*stages, _sequence(names, used, memory, counts)])
        sequence, narrow = Kernels(text, (Kernel("sequence", memory, 1),)), False
    return Source(sequence, grid, steps, names.buffers, tuple(tiles), parts, weights, narrow)


def _call(names: Names, number: int, used: tuple[str, ...], tile: str) -> str:
    """The call of a stage's function."""
    buffers = (names.buffers[name] for name in used)
    pointers = (b.name if b.kind == "fixed" else f"{b.name}_t" for b in buffers)
    return f"stage{number}(B, count, rows, {tile}, {', '.join(pointers)}, M, PRECISION)"


def _kernel(head: str, comment: str, lines: list[str], numbers: str) -> str:
    """A kernel over tiles of rows, of which `numbers` of its arguments are never looked at."""
    return "\n".join([
        f"@jit(do_not_specialize=({numbers}))",
        f"def {head}, {COMPILED}):",
        f"    # {comment}",
        f"    {_ROWS}",
        *(f"    {line}" for line in lines),
        "",
    ])  # fmt: skip


def _sequence(
    names: Names, used: list[tuple[str, ...]], memory: tuple[str, ...], counts: list[int]
) -> str:
    lines = names.travel(memory)
    for number, count in enumerate(counts):
        if count > 1:
            call = _call(names, number, used[number], "tile")
            lines += [f"for tile in range({count}):", f"    {call}"]
        else:
            lines.append(_call(names, number, used[number], "0"))
        lines.append("tl.debug_barrier()")
    return _kernel(
        f"sequence(T, B, layout, {_pointers(names, memory)}",
        "Every program has rows of its own, and walks through all their steps.",
        [*OWN_STEPS, "for t in range(T):", *(f"    {line}" for line in lines)],
        '"T", "B"',
    )


def _step(names: Names, number: int, used: tuple[str, ...]) -> str:
    return _kernel(
        f"step{number}(t, T, B, layout, {_pointers(names, used)}",
        "Programs share rows and units; the next stage is another launch.",
        _one_step(names, number, used),
        '"t", "T", "B"',
    )


def _one_step(names: Names, number: int, used: tuple[str, ...]) -> list[str]:
    """Lines that run a stage, unless no sequence of the tile has this step."""
    return [
        *names.travel(used),
        "if tl.program_id(0) * M < count:",
        f"    {_call(names, number, used, 'tl.program_id(1)')}",
    ]


def _pointers(names: Names, used: tuple[str, ...]) -> str:
    return ", ".join(names.buffers[name].name for name in used)


def _replayed(
    names: Names,
    number: int,
    used: tuple[str, ...],
    memory: tuple[str, ...],
) -> str:
    lines = []
    for name in used:
        at = FIRST_POINTER + memory.index(name)
        kind = f"tl.pointer_type({names.buffers[name].element})"
        # All memory begins at multiples of 16 bytes: the engine sees to it.
        pointer = f"tl.multiple_of(tl.load(table + {at}).to({kind}), 16)"
        lines.append(f"{names.buffers[name].name} = {pointer}")
    return "\n".join([
        '@jit(do_not_specialize=("ahead",))',
        f"def replayed_step{number}(table, ahead, {COMPILED}):",
        "    T, B = tl.load(table), tl.load(table + 1)",
        "    t = tl.load(table + 2) + ahead",
        "    if t < T:",
        f"        layout = tl.load(table + {FIRST_POINTER - 1}).to(tl.pointer_type(tl.int64))",
        *(f"        {line}" for line in lines),
        f"        {_ROWS}",
        *(f"        {line}" for line in _one_step(names, number, used)),
        "",
    ])  # fmt: skip
