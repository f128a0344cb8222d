"""What the parts of the emitter share: names, sizes and addresses in the source of one loop."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flexrnn.engine.lowering.places import Place, identifier, sizes_of
from flexrnn.engine.lowering.stages import Loop

_PLAIN = (0.0, 1.0, 2.0, 0.5, -1.0, -0.5, -2.0)  # constants that stand in the text


@dataclass(frozen=True)
class Buffer:
    """A piece of memory that the loop is given; `kind` says how a step finds its rows.

    `fixed`: they are the same at every step. `timed`: at every step its own. `before` and `after`:
    of the state, of the last step or the first state, and of this one. `sum`: every thread has one.
    """

    name: str
    kind: str


class Packed(NamedTuple):
    """A weight that is laid out anew before the loop, so that tiles read it in order."""

    pointer: str  # of the frame
    weight: str  # the input of the loop's graph
    stage: int
    blocks: tuple[int, ...]  # of columns, each as many as the stage has units
    inner: str  # K, or how many pairs that makes, which is told at run time
    per_head: bool  # whether every head has a weight of its own
    width: int  # vectors of every block in a tile
    shape: tuple[int, int, int]  # heads, as many as `inner`, columns of a block


class Context:
    """Collects what the source of a loop wants to be told at run time.

    The text itself holds no size that depends on I or H, so that cells which differ in these alone
    are one library.

    Args:
        loop: the stages.
        backward: whether the loop runs from the last step to the first.
        narrow: whether what products multiply is rounded to bfloat16.
    """

    def __init__(self, loop: Loop, *, backward: bool, narrow: bool = False):
        self.loop, self.graph, self.low = loop, loop.graph, loop.lowering
        self.backward, self.narrow = backward, narrow
        self.narrowed: dict[str, int] = {}  # memory for such rows, and how many pairs one has
        self.sizes: dict[str, int] = {}
        self.buffers: dict[str, Buffer] = {}
        self.constants: list[float] = []
        self.rowed: set[str] = set()  # buffers of which it matters how far rows are apart
        self.apart = False  # some memory has rows of their own for every thread
        self.weights: dict[Packed, Packed] = {}
        self.reads: Counter[str] = Counter()  # stages that read a packed weight
        self.width: dict[int, int] = {}  # of a stage, the vectors of a tile

    def weight(self, packed: Packed) -> Packed:
        """A weight that is laid out anew; or the same one, as another stage has it."""
        known = self.weights.setdefault(packed._replace(pointer="", stage=0, inner=""), packed)
        if known is packed:
            self.size(packed.inner.removeprefix("f."), packed.shape[1])
        self.reads[known.pointer] += 1
        return known

    def size(self, name: str, value: int) -> str:
        """A number that is told at run time."""
        self.sizes[name] = value
        return f"f.{name}"

    def offset(self, value: int, stage: int) -> str:
        """A distance in a row, as a multiple of the stage's units where it is one."""
        units = self.loop.stages[stage].domain.units
        if units > 1 and value % units == 0 and value // units <= 64:
            return f"f.W{stage}" if value == units else f"{value // units} * f.W{stage}"
        return self.size(f"o{len(self.sizes)}", value)

    def buffer(self, name: str) -> str:
        """The name in C++ of a piece of memory."""
        if name not in self.buffers:
            self.buffers[name] = Buffer(identifier(name, self.buffers), self._kind(name))
        return self.buffers[name].name

    def row(self, name: str) -> str:
        """How far rows of a piece of memory are apart, or the parts of a `sum`."""
        self.rowed.add(name)
        return f"f.{self.buffer(name)}_row"

    def own_row(self) -> str:
        """The number of row r where every thread has rows of its own."""
        self.apart = True
        return "(f.id * f.B + r)"

    def adds_up(self, *stages: int) -> bool:
        """Whether one of some stages, or of all, adds up over rows as they come, one by one."""
        chosen = [self.loop.stages[k] for k in stages] or self.loop.stages
        return any(stage.sums and not stage.products and not stage.alone for stage in chosen)

    def headed(self, stage: int) -> bool:
        """Whether the units of a stage are divided into heads."""
        return self.loop.stages[stage].domain.heads > 1

    def heads(self, stage: int) -> str:
        """How many heads a stage has."""
        return self.size(f"G{stage}", self.loop.stages[stage].domain.heads)

    def heads_of_axes(self, stage: int) -> str:
        """Of heads along several axes the type, which knows the place along each; else nothing."""
        axes = len(self.loop.stages[stage].domain.outer)
        return f"Heads<{axes}>" if axes > 1 else ""

    def head(self, stage: int) -> str:
        """The type of a parameter that says which head."""
        return f"const {self.heads_of_axes(stage)}&" if self.heads_of_axes(stage) else "long"

    def axes(self, stage: int) -> str:
        """How long the axes of heads are, the last first."""
        outer = self.loop.stages[stage].domain.outer
        sizes = (self.size(f"N{stage}_{k}", size) for k, size in enumerate(reversed(outer)))
        return "{" + ", ".join(sizes) + "}"

    def each_head(self, stage: int, lines: Sequence[str]) -> list[str]:
        """These lines for every head of a stage, where it has some."""
        if not self.headed(stage):
            return [*lines]
        one, count = self.heads_of_axes(stage), self.heads(stage)
        begin = f"for (long head = 0; head < {count}; head++) {{"
        if one:
            begin = f"for ({one} head({self.axes(stage)}); head < {count}; head.next()) {{"
        return [begin, *(f"    {line}" for line in lines), "}"]

    def _kind(self, name: str) -> str:
        word = name.partition(".")[0]
        if word in ("const", "param", "once", "temporary", "partial", "pairs"):
            return "fixed"
        if word in ("carry", "passed"):
            return {"carry": "before", "passed": "after"}[word]
        if word in ("before", "sum") or (word == "after" and not self.backward):
            return word
        return "timed"

    def literal(self, value: float) -> str:
        """A constant, told at run time where it may depend on a size."""
        if value in _PLAIN and (value or math.copysign(1, value) > 0):
            return f"broadcast({value:g})"
        known = [number.hex() for number in self.constants]  # which knows -0.0 and NaN
        if value.hex() not in known:
            self.constants.append(value)
            known.append(value.hex())
        return f"broadcast(f.constants[{known.index(value.hex())}])"

    def load(self, index: int, stage: int) -> str:
        """The expression that reads a node from memory, at row r and this head and unit."""
        node = self.graph.nodes[index]
        place = self.low.place(index)
        sizes = sizes_of(node.shape)
        address = self.address(place, sizes, stage, rowed=self.low.rowed(index))
        sizes, strides = self._along(place, sizes, stage)
        wide, text = sizes[-1] > 1 and strides[-1], f"broadcast(*({address}))"
        if wide:
            apart = "" if wide == 1 else f"{self.offset(wide, stage)}, "
            text = f"{'gather' if apart else 'load'}<TAIL>({address}, {apart}n)"
        return f"truth({text})" if node.boolean else text

    def address(
        self, place: Place, sizes: tuple[int, ...], stage: int, *, rowed: bool = True
    ) -> str:
        """Where a place's unit lies, at row r and this head and unit."""
        name = self.buffer(place.buffer)
        terms = [f"f.{name}"]
        if rowed:
            row = self.own_row() if place.buffer in self.loop.copied else "r"
            terms.append(f"{row} * {self.row(place.buffer)}")
        if place.offset:
            terms.append(self.offset(place.offset, stage))
        sizes, strides = self._along(place, sizes, stage)
        for axis in range(-len(sizes), -1):
            if sizes[axis] > 1 and strides[axis]:
                stride = self.offset(strides[axis], stage)
                terms.append(f"{self.place_of_head(axis, stage)} * {stride}")
        if sizes[-1] > 1 and (apart := strides[-1]):
            terms.append("unit" if apart == 1 else f"unit * {self.offset(apart, stage)}")
        return " + ".join(terms)

    def stride(self, place: Place, sizes: tuple[int, ...], stage: int) -> int:
        """How far a place's units are apart, where it has several."""
        sizes, strides = self._along(place, sizes, stage)
        return strides[-1] if sizes[-1] > 1 else 1

    def _along(
        self, place: Place, sizes: tuple[int, ...], stage: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and strides along the axes of a stage's heads and that of its units."""
        known = len(sizes) - self.loop.stages[stage].domain.behind
        strides = place.strides[-len(sizes) :]  # in front is one for the batch, of a parameter
        return (sizes[:known], strides[:known]) if known > 0 else ((1,), (0,))

    def place_of_head(self, axis: int, stage: int) -> str:
        """The number along an axis of heads, which counts from the end."""
        return f"head.at[{-axis - 2}]" if self.heads_of_axes(stage) else "head"
