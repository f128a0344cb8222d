"""A call of a loop, laid out: where its buffers lie."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from weakref import ref

from torch import Tensor

from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.before import Before
from flexrnn.engine.cpu.chunks import Chunk
from flexrnn.engine.cpu.emit import Packed, Shape
from flexrnn.engine.cpu.kernel import SCRATCH, Area, Kernel, Rows
from flexrnn.engine.cpu.nodes import cut_of
from flexrnn.engine.cpu.pieces import Box, Cut, Piece, pieces
from flexrnn.engine.cpu.plan import Sizes
from flexrnn.engine.cpu.pool import POOL
from flexrnn.engine.cpu.shares import shares
from flexrnn.engine.lowering.places import in_one_piece


class Layout:
    """One kind of call of one loop. It keeps neither the program nor any operand alive.

    Args:
        program: the program.
        kernel: a loop of it, compiled.
        sizes: of the call.
    """

    def __init__(self, program: Program, kernel: Kernel, sizes: Sizes):
        self._graph, self._schedule = ref(program.graph), program.schedule
        self.kernel, self.sizes = kernel, sizes
        self.rows: dict[str, Rows] = {}
        self.area = Area(kernel.itemsize)  # of the memory named SCRATCH
        self._computed: set[int] = set()
        self._brief: dict[int, int] = {}  # products that are computed into SCRATCH, and where
        self._cut: dict[int, Cut] = {}  # of these, weights that are read in pieces

    @property
    def program(self) -> Program:
        """The program, which who calls holds."""
        graph = self._graph()
        assert graph is not None
        return Program(graph, self._schedule)

    def hoist(self, rows: int, apart: Collection[str], given: Mapping[str, Tensor]) -> None:
        """Lay out the products of a chunk's input that no more than this chunk reads.

        Args:
            rows: of the largest chunk, over all its steps.
            apart: memories of those that somebody reads later.
            given: the operands.
        """
        graph = self.program.graph
        for name in self.kernel.source.buffers:
            kind, _, rest = name.partition(".")
            if kind != "hoisted" or f"node.{rest}" in apart:
                continue
            index, row = int(rest), self._row(int(rest))
            if len(graph.nodes[graph.nodes[index].args[1]].shape) == 2:  # torch makes others anew
                self._brief[index] = at = self.area.take(rows * row)
                self.rows[name] = Rows(SCRATCH, row * self.apart, row, brief=True, offset=at)
                if found := cut_of(graph, index, rows, given):
                    self._cut[index] = found

    def finish(self, given: Mapping[str, Tensor]) -> None:
        """Lay out what is left: parameters, inputs, and what is made of them."""
        weights = [self._weight(packed, given) for packed in self.kernel.source.weights]
        for name in self.kernel.source.buffers:
            if name not in self.rows and not self.kernel.owns(name):
                self.rows[name] = self._input(name, given)
        steps, batch, reverse, _, fewer, _ = self.sizes
        threads, across = shares(self.kernel, self.sizes)
        self._launch = self.kernel.launch(
            self.rows,
            weights,
            self.area,
            steps=steps,
            batch=batch,
            reverse=reverse,
            fewer=fewer,
            across=across,
            threads=threads,
        )
        self.before = Before(
            self.program.graph,
            self._computed,
            self._brief,
            self._cut,
            self.sizes.threads,
            narrow=self.kernel.narrow,
        )

    def memory(
        self, given: Mapping[str, Tensor], like: Tensor, values: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        """The memory of a call: its operands, what is made of weights before, and `SCRATCH`.

        Args:
            given: the operands.
            like: a state.
            values: the operands as torch computes with them; what is computed is added.
        """
        memory = dict(given)
        self.before.begin(self.program, values, memory, like)
        memory[SCRATCH] = POOL.take(self.area.size, like.dtype, brief=True)
        return memory

    def run(self, memory: Mapping[str, Tensor], chunk: Chunk) -> None:
        """Run the loop for the steps of a chunk."""
        self._launch(memory, *chunk)

    def addressed(
        self,
        order: Sequence[str],
        where: Mapping[str, str],
        instead: Mapping[tuple[str, int], str],
        chunk: Chunk,
    ) -> tuple[Callable[[Sequence[int]], None], set[str]]:
        """The loop for the steps of a chunk, by addresses; as `Launch.addressed`."""
        return self._launch.addressed(order, where, instead, *chunk)

    def _input(self, name: str, given: Mapping[str, Tensor]) -> Rows:
        kind, _, rest = name.partition(".")
        if kind == "hoisted":
            row = self._row(int(rest))
            return Rows(self.node(int(rest)), row * self.apart, row, brief=True)
        if kind == "once":
            return Rows(self.node(int(rest)))
        if kind == "param":
            straight = given[name].is_contiguous()
            return Rows(name if straight else self.node(self.program.graph.inputs[name]))
        return self.timed(name, given[name])

    def _row(self, index: int) -> int:
        """How many numbers of a node a row has."""
        return math.prod(int(s) for s in self.program.graph.nodes[index].shape[1:])

    @property
    def apart(self) -> int:
        """Rows from one step to the next; where steps have unlike numbers, they are counted."""
        return 1 if self.sizes.fewer else self.sizes.batch

    def timed(self, name: str, tensor: Tensor) -> Rows:
        """A tensor `(T, B, ...)` or `(N, ...)` whose rows lie in one piece."""
        return Rows(name, tensor.stride(0), tensor.stride(0 if self.sizes.fewer else 1))

    def whole(self, memory: str, inner: Sequence[int], offset: int = 0) -> Rows:
        """A tensor in one piece, or such a part of one, with rows of this shape at every step."""
        row = math.prod(inner)
        return Rows(memory, row * self.apart, row, offset=offset)

    def node(self, index: int) -> str:
        """The memory of a node that is computed before the loop."""
        self._computed.add(index)
        return f"node.{index}"

    def _weight(self, packed: Packed, given: Mapping[str, Tensor]) -> list[Piece]:
        """Where the blocks of a weight lie; where they lie nowhere, torch computes it."""
        graph = self.program.graph
        kind, _, rest = packed.weight.partition(".")
        index = int(rest) if kind == "once" else graph.inputs[packed.weight]
        shape = tuple(int(s) for s in graph.nodes[index].shape)
        outer = tuple((0, size) for size in shape[:-1])
        units = packed.shape[-1]
        boxes = [(*outer, (b * units, (b + 1) * units)) for b in packed.blocks]
        found: list[Piece] = []
        for box in boxes:
            parts = pieces(graph, index, box, given) or []
            if not parts or not all(self._can_read(piece, box) for piece in parts):
                break
            found += parts
        else:
            return found
        memory, strides = self.node(index), in_one_piece("", shape).strides
        return [Piece(memory, box[-1][0], box, strides) for box in boxes]

    def _can_read(self, piece: Piece, box: Box) -> bool:
        """Whether a loop can read a piece, which must be of all heads and columns of a box."""
        whole = (*piece.box[:-2], piece.box[-1]) == (*box[:-2], box[-1])
        # In place, rows or columns are read by vectors.
        return whole and (self.kernel.shape is not Shape.FEW or 1 in piece.strides[-2:])


def values_of(program: Program, given: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Inputs and parameters as torch computes with them, by their nodes."""
    return {
        index: given.get(f"original.{name}", given[name])
        for name, index in program.graph.inputs.items()
        if name in given and not name.startswith("state.")
    }


def width(tensor: Tensor) -> int:
    """Numbers in a row of a state `(B, ...)`."""
    return math.prod(tensor.shape[1:])
