"""One compiled loop, and how it is called."""

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from operator import add, itemgetter, mul
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.cpu import cpp
from flexrnn.engine.cpu.build.isa import machine
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.emit import HEAD, Shape, Source, source
from flexrnn.engine.cpu.pieces import Piece
from flexrnn.engine.lowering.stages import Loop, lower
from flexrnn.engine.replay import ByAddress, addresses, is_watched

SCRATCH = "scratch"  # what a loop has for itself while it runs
STARTS = "starts"  # where the rows of every step begin
_FIRST, _LAST = HEAD.index("first"), HEAD.index("last")
_LINE = 64  # bytes of a cache line, on which everything in an area begins


class Rows(NamedTuple):
    """Where a buffer of a loop lies."""

    memory: str  # the name of the tensor
    time: int = 0  # numbers from one time step to the next
    row: int = 0  # from one row of the batch to the next
    brief: bool = False  # of a state only the last two steps are there, of others those of a chunk
    # Of a state: the tensor with what comes before the first step, or gets the last.
    first: str = ""
    offset: int = 0  # numbers from the tensor's first


class Area:
    """A piece of memory that is dealt out: how many numbers it must hold."""

    def __init__(self, itemsize: int):
        self.unit, self.size = _LINE // itemsize, 0

    def take(self, numbers: int) -> int:
        """Where so many numbers begin."""
        at, self.size = self.size, self.size + -(-numbers // self.unit) * self.unit
        return at


class Launch:
    """A call of a loop with everything decided but where the tensors lie."""

    def __init__(
        self,
        run: Callable[..., None],
        pointers: Sequence[tuple[str, int]],
        sizes: Sequence[int],
        constants: ctypes.Array[ctypes.c_double],
        threads: int,
        alone: ctypes.Array[ctypes.c_long],
    ):
        self._run, self._threads = run, threads
        self._memories = [memory for memory, _ in pointers]
        self._offsets = [offset for _, offset in pointers]
        self._pack = Struct(f"{len(pointers)}P").pack
        self._sizes = (ctypes.c_long * len(sizes))(*sizes)
        self._constants, self._alone = constants, alone

    def __call__(self, memory: Mapping[str, Tensor], first: int, last: int) -> None:
        """Run some steps of the loop, from `first` to before `last`, on these tensors."""
        if is_watched():
            self._asked(memory, first, last)
            return
        at = dict(zip(memory, addresses(*memory.values()), strict=True))
        at[""] = 0
        pointers = map(add, map(at.__getitem__, self._memories), self._offsets)
        sizes = self._of(first, last)
        self._run(self._pack(*pointers), sizes, self._constants, self._threads, self._alone)

    def _asked(self, memory: Mapping[str, Tensor], first: int, last: int) -> None:
        """The same, said to whoever watches as one function of the tensors that it takes."""
        names = [name for name in memory if name in self._memories]
        run, _ = self.addressed(names, {}, {}, first, last)
        ByAddress(lambda *addresses: run(addresses))(*(memory[name] for name in names))

    def addressed(
        self,
        order: Sequence[str],
        where: Mapping[str, str],
        instead: Mapping[tuple[str, int], str],
        first: int,
        last: int,
    ) -> tuple[Callable[[Sequence[int]], None], set[str]]:
        """The same call, of the addresses of memories instead of a mapping of tensors.

        Args:
            order: names of all memories, in the order in which their addresses will come.
            where: other names that the loop's memories have there.
            instead: the name of a memory that takes the place of another from an offset on.
            first, last: the steps.

        Returns:
            What is called with the addresses, and the names of `order` that it looks at.
        """
        places: list[tuple[str, int]] = []
        for memory, offset in zip(self._memories, self._offsets, strict=True):
            other = instead.get((memory, offset))
            places.append((where.get(memory, memory), offset) if other is None else (other, 0))
        numbers = {name: k for k, name in enumerate((*order, ""))}
        pick = itemgetter(*(numbers[name] for name, _ in places))
        offsets = tuple(offset for _, offset in places)
        pack, run, sizes = self._pack, self._run, self._of(first, last)
        constants, threads, alone = self._constants, self._threads, self._alone

        def call(addresses: Sequence[int]) -> None:
            pointers = map(add, pick((*addresses, 0)), offsets)
            run(pack(*pointers), sizes, constants, threads, alone)

        return call, {name for name, _ in places}

    def _of(self, first: int, last: int) -> Any:
        """The sizes, for these steps."""
        sizes = self._sizes
        if (sizes[_FIRST], sizes[_LAST]) != (first, last):
            sizes = type(sizes)(*sizes)  # other threads may be calling, too
            sizes[_FIRST], sizes[_LAST] = first, last
        return sizes


class Kernel:
    """A loop, compiled.

    Args:
        graph: of the loop; see `extract`.
        backward: it runs from the last step to the first.
        shape: of the calls for which it is.
        dtype: of every number.
        narrow: what products multiply is rounded to bfloat16.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        backward: bool,
        shape: Shape,
        dtype: torch.dtype,
        narrow: bool = False,
    ):
        isa = machine()
        self.shape, self.narrow = shape, narrow
        self.itemsize = 4 if dtype == torch.float32 else 8
        self.lanes = isa.vector_bytes // self.itemsize
        self.loop: Loop = lower(graph, again=True, flat=True)
        self.source: Source = source(
            self.loop,
            backward=backward,
            registers=isa.sums,
            lanes=self.lanes,
            shape=shape,
            narrow=narrow,
        )
        real = "float" if dtype == torch.float32 else "double"
        self.text = cpp.prologue(real, isa, narrow=narrow) + "\n" + self.source.text
        common = cpp.common(real, isa, self.source.functions, narrow=narrow)
        self._run = library(self.text, common=common).run
        self._run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int, ctypes.c_void_p]
        self._run.restype = None
        constants = self.source.constants
        self._constants = (ctypes.c_double * len(constants))(*constants)
        # What calls by so many threads have learned of these, by the number of digits of B: `Alone`
        # in loop.h.
        self._alone: dict[tuple[int, int], ctypes.Array[ctypes.c_long]] = {}

    @property
    def weight_bytes(self) -> int:
        """Of all packed weights."""
        return sum(self._bytes())

    @property
    def read_bytes(self) -> int:
        """Of packed weights, as often as a step reads them."""
        return sum(map(mul, self._bytes(), self.source.reads))

    def _bytes(self) -> list[int]:
        weights = self.source.weights
        return [math.prod(w.shape) * len(w.blocks) * self.itemsize for w in weights]

    @property
    def tiles(self) -> int:
        """Those that threads can share, in the stage of products that has the fewest; or 1."""
        weights = self.source.weights
        each = (w.shape[0] * -(-w.shape[-1] // (w.width * self.lanes)) for w in weights)
        return min(each, default=1)

    def launch(
        self,
        rows: Mapping[str, Rows],
        weights: Sequence[Sequence[Piece]],
        area: Area,
        *,
        steps: int,
        batch: int,
        reverse: bool,
        fewer: bool,
        across: bool,
        threads: int,
    ) -> Launch:
        """Decide everything about a call but where its tensors lie.

        Args:
            rows: where every buffer lies, but for the loop's own.
            weights: the pieces of every weight of the source.
            area: of the memory named `SCRATCH`; what the loop wants for itself is taken there.
            steps: T.
            batch: B.
            reverse: the sequence goes from its end to its beginning.
            fewer: steps have fewer and fewer rows; where they begin is in the memory `STARTS`.
            across: threads share the units of all rows; otherwise the rows.
            threads: how many.
        """
        pointers: list[tuple[str, int]] = [(STARTS if fewer else "", 0)]
        strides: list[int] = []
        for name in self.source.buffers:
            given = rows.get(name) or self._own(name, area, batch, threads if across else 1)
            pointers += ((given.memory, given.offset * self.itemsize), (given.first, 0))
            strides += (given.time, given.row, given.brief)
        for weight in self.source.weights:
            heads, inner, units = weight.shape
            columns = weight.width * self.lanes
            numbers = heads * -(-units // columns) * inner * len(weight.blocks) * columns
            few = self.shape is Shape.FEW  # which reads them where they lie
            pointers.append(("", 0) if few else (SCRATCH, area.take(numbers) * self.itemsize))
        before = len(HEAD) + len(self.source.sizes) + len(strides)
        at, table = before + 2 * len(self.source.weights), list[int]()
        for weight, parts in zip(self.source.weights, weights, strict=True):
            strides += (at + len(table), len(parts))
            for piece in parts:
                table += (len(pointers), *_place(piece, weight.blocks, weight.shape[-1]))
                pointers.append((piece.memory, piece.offset * self.itemsize))
        sizes = (steps, batch, reverse, across, 0, steps, *self.source.sizes, *strides, *table)
        alone = self._alone.setdefault((threads, batch.bit_length()), (ctypes.c_long * 3)())
        return Launch(self._run, pointers, sizes, self._constants, threads, alone)

    def owns(self, name: str) -> bool:
        """Whether a buffer is one that the loop wants for itself."""
        return name.startswith(("temporary.", "partial.", "pairs."))

    def _own(self, name: str, area: Area, batch: int, copies: int) -> Rows:
        """A buffer of the loop itself; of some, threads that share units have one each."""
        if name in self.loop.temporaries:
            row = self.loop.temporaries[name]
            copies = copies if name in self.loop.copied else 1
            return Rows(SCRATCH, row=row, offset=area.take(copies * batch * row))
        if row := self.source.narrowed.get(name):
            return Rows(SCRATCH, row=row, offset=area.take(copies * batch * row))
        heads = self.loop.partial[self.loop.reduction_of(name)].heads
        return Rows(SCRATCH, offset=area.take(copies * batch * heads * self.lanes))


def _place(piece: Piece, blocks: Sequence[int], units: int) -> tuple[int, ...]:
    """A piece as weights.h has it: block, first, last, and the strides of head, row and column."""
    (first, last), (column, _) = piece.box[-2:]
    head = piece.strides[0] if len(piece.strides) == 3 else 0
    return (blocks.index(column // units), first, last, head, *piece.strides[-2:])
