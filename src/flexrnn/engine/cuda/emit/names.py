"""The memory of a loop by its names in Triton, and where in it a node's numbers lie."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flexrnn.engine.compiler.graph import BATCH
from flexrnn.engine.cuda.emit.tiles import Tile
from flexrnn.engine.lowering.places import Place, identifier, sizes_of
from flexrnn.engine.lowering.stages import Loop

_FIXED = ("const", "param", "once", "temporary", "partial")  # the same at every step
_TRAVELS = {"before": "old", "carry": "old", "after": "new", "passed": "new"}
_OLD = {"after": "before", "passed": "carry"}  # what a state is called at the next step
ROUNDED = ".rounded"  # behind a travelling state's name: the same as products round it


class Buffer(NamedTuple):
    """A piece of memory that a kernel is given, and how a step finds its rows in it.

    `fixed`: they are the same at every step. `timed`: at every step its own. `old` and `new`: of a
    state that travels, in a ring of two steps.
    """

    name: str  # of the pointer
    kind: str
    row: int  # numbers in a row, of what has rows
    element: str  # the type of its numbers


# What kernels are compiled for, at the end of their arguments.
COMPILED = "REVERSE: tl.constexpr, RAGGED: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr"

# A program that owns rows walks through the steps of the longest of them, which is the first.
OWN_STEPS = ("if RAGGED:", "    T = tl.load(layout + tl.program_id(0) * M)")


class Names:
    """Collects the memory that a loop uses.

    Args:
        loop: the stages.
        tiles: of every stage.
        real: the type of numbers in registers, and of what the loop hands on in memory, unless
            products alone read it.
        operand: the type of everything else.
        least: columns of a left operand that a product multiplies at least.
        backward: it runs from the last step to the first, where `before` and `after` are histories.
    """

    def __init__(
        self,
        loop: Loop,
        tiles: Sequence[Tile],
        *,
        real: str,
        operand: str,
        least: int,
        backward: bool,
    ):
        self.loop, self.graph, self.low = loop, loop.graph, loop.lowering
        self.tiles = tiles
        self.backward, self.real, self.operand, self.least = backward, real, operand, least
        self.buffers: dict[str, Buffer] = {}

    def buffer(self, name: str) -> str:
        """The pointer to a piece of memory, at this step."""
        if name not in self.buffers:
            self.buffers[name] = Buffer(
                identifier(name, self.buffers),
                self._kind(name),
                self._row(name),
                self._element(name),
            )
        return self.buffers[name].name

    def is_input(self, name: str) -> bool:
        """Whether no stage writes there."""
        return name in self.graph.inputs and self._kind(name) not in ("old", "new")

    def _kind(self, name: str) -> str:
        word = name.partition(".")[0]
        if word in _FIXED:
            return "fixed"
        if self.backward and word in ("before", "after"):
            return "timed"
        return _TRAVELS.get(word, "timed")

    def _row(self, name: str) -> int:
        if name in self.loop.temporaries:
            return self.loop.temporaries[name]
        if name.startswith("partial."):
            return self.loop.partial[self.loop.reduction_of(name)].heads
        name = name.removesuffix(ROUNDED)
        kind, _, field = name.partition(".")
        new = next((f"{n}.{field}" for n, old in _OLD.items() if old == kind), name)
        # A state that nobody reads is no input of the loop, but has a ring.
        index = self.graph.inputs.get(name, self.graph.outputs.get(new, 0))
        shape = self.graph.nodes[index].shape
        if name in self.graph.inputs and BATCH not in shape:
            return 0  # a parameter, and what is made of them: the same for every row
        return math.prod(sizes_of(shape))

    def advance(self, used: Iterable[str]) -> list[str]:
        """Lines that set pointers to where the rows of a step begin: `NAME_t` of what has steps.

        `time` is the step, in the order of time; `count` says how many rows it has.
        """
        forth, back = ("T - 1 - t", "t") if self.backward else ("t", "T - 1 - t")
        timed = (b for b in map(self.buffers.__getitem__, used) if b.kind == "timed")
        return [
            f"time = {back} if REVERSE else {forth}",
            "at, count = time * B.to(tl.int64), B",
            "if RAGGED:",
            "    at = tl.load(layout + B + time)",
            "    count = tl.load(layout + B + time + 1) - at",
            *(f"{b.name}_t = {b.name} + {_times('at', b.row)}" for b in timed),
        ]

    def travel(self, used: Iterable[str]) -> list[str]:
        """As `advance`, and of a state that travels the slots of this step and of the next."""
        lines = self.advance(used)
        buffers = [self.buffers[name] for name in used]
        if any(b.kind in ("old", "new") for b in buffers):
            lines.append(f"old = ({self.old}) * B.to(tl.int64)")
        for b in buffers:
            if where := {"old": "old", "new": "(B - old)"}.get(b.kind):
                lines.append(f"{b.name}_t = {b.name} + {_times(where, b.row)}")
        return lines

    @property
    def old(self) -> str:
        """The slot of a ring in which the state is that a step begins with: see `Loop.ring`."""
        forth, back = ("time + 1", "time") if self.backward else ("time", "time + 1")
        return f"({back} if REVERSE else {forth}) % 2"

    def _element(self, name: str) -> str:
        index = self.graph.inputs.get(name, self.graph.outputs.get(name))
        if index is not None and self.graph.nodes[index].boolean:
            return "tl.uint8"
        travels = self._kind(name) in ("old", "new")
        if name.endswith(ROUNDED) or (travels and is_only_multiplied(self.loop, name)):
            return self.operand
        return self.real if travels or name.startswith(("temporary.", "partial.")) else self.operand

    def address(
        self, place: Place, sizes: tuple[int, ...], stage: int, pointer: str, unit: str, rowed: bool
    ) -> str:
        """Where a place's units lie, of these rows and this head.

        Args:
            place: where a node lies.
            sizes: of the node's axes.
            stage: which reads or writes it.
            pointer: to the buffer, at this step.
            unit: the variable with the units.
            rowed: the node has a row for each of the batch.
        """
        terms = [pointer]
        if rowed and (numbers := self._row(place.buffer)):
            terms.append(_times("row", numbers))
        if place.offset:
            terms.append(str(place.offset))
        terms += [_times(self._head(axis, stage), place.strides[axis])
                  for axis in range(-len(sizes), -1)
                  if sizes[axis] > 1 and place.strides[axis]]  # fmt: skip
        if sizes[-1] > 1 and place.strides[-1]:
            terms.append(_times(unit, place.strides[-1]))
        return " + ".join(terms)

    def _head(self, axis: int, stage: int) -> str:
        """The number along an axis of heads, which counts from the end."""
        outer = self.loop.stages[stage].domain.outer
        if len(outer) == 1:
            return "head"
        inner = math.prod(outer[len(outer) + axis + 2 :]) if axis < -2 else 1
        return f"(head // {inner} % {outer[axis + 1]})"


def at_next_step(name: str) -> str:
    """What a travelling state's memory is called at the step that begins with it."""
    kind, _, field = name.partition(".")
    return f"{_OLD.get(kind, kind)}.{field}"


def is_only_multiplied(loop: Loop, name: str) -> bool:
    """Whether products alone read a state that travels, and at least one does.

    They round it to their operands' type, and so does who returns it: nobody sees more of it.
    """
    graph = loop.graph
    state = graph.inputs.get(at_next_step(name))
    users = [] if state is None else [graph.nodes[user] for user in graph.users()[state]]
    return bool(users) and all(user.op == "product" for user in users)


def _times(index: str, stride: int) -> str:
    return index if stride == 1 else f"{index} * {stride}"
