"""One compiled loop, and how it is called."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.cpu import cpp
from flexrnn.engine.cpu.emit import Source, source
from flexrnn.engine.cpu.isa import machine
from flexrnn.engine.cpu.stages import Loop, lower
from flexrnn.engine.cpu.toolchain import library

_LINE = 64  # bytes of a cache line, on which packed weights and scratch memory begin


class Rows(NamedTuple):
    """A piece of memory that a loop is given."""

    data: Tensor
    time: int = 0  # numbers from one time step to the next
    row: int = 0  # from one row of the batch to the next
    ring: bool = False  # only the last two steps are there
    first: Tensor | None = None  # of a state: what comes before the first step


class Kernel:
    """A loop, compiled.

    Args:
        graph: of the loop; see `extract`.
        backward: it runs from the last step to the first.
        single: for a batch of one row.
        dtype: of every number.
    """

    def __init__(self, graph: Graph, *, backward: bool, single: bool, dtype: torch.dtype):
        isa = machine()
        self.itemsize = 4 if dtype == torch.float32 else 8
        self.lanes = isa.vector_bytes // self.itemsize
        self.loop: Loop = lower(graph)
        self.source: Source = source(
            self.loop, backward=backward, registers=isa.sums, single=single
        )
        real = "float" if dtype == torch.float32 else "double"
        self.text = cpp.prologue(real, isa) + "\n" + self.source.text
        self._run = library(self.text).run
        self._run.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int]
        self._run.restype = None
        constants = self.source.constants
        self._constants = (ctypes.c_double * len(constants))(*constants)
        self._sizes = self.source.sizes
        self._fixed = [
            name for name in self.source.buffers if name.startswith(("temporary", "partial"))
        ]

    def scratch(self, batch: int, threads: int) -> list[tuple[str, int, int]]:
        """`(name, numbers, numbers a row)` of what the loop wants for itself."""
        wanted = []
        for name in self._fixed:
            if name.startswith("temporary"):
                row = self.loop.temporaries[name]
                wanted.append((name, batch * row, row))
            else:
                index = sorted(self.loop.partial)[int(name.partition(".")[2])]
                heads = self.loop.partial[index].heads
                wanted.append((name, threads * batch * heads * self.lanes, 0))
        for weight, (heads, inner, units) in zip(
            self.source.weights, self.source.panels, strict=True
        ):
            columns = weight.width * self.lanes
            tiles = -(-units // columns)
            numbers = heads * tiles * inner * len(weight.starts) * columns
            wanted.append((weight.pointer, numbers, 0))
        return wanted

    def __call__(
        self,
        rows: dict[str, Rows],
        weights: dict[str, Tensor],
        *,
        steps: int,
        batch: int,
        reverse: bool,
        across: bool,
        threads: int,
    ) -> None:
        """Run the loop.

        Args:
            rows: what every buffer is.
            weights: right operands of products, `(K, N)` or `(G, K, N)` in any layout.
            steps, batch: T and B.
            reverse: the sequence goes from its end to its beginning.
            across: threads share the units of all rows; otherwise the rows.
            threads: how many.
        """
        wanted = self.scratch(batch, threads)
        unit = _LINE // self.itemsize
        places, total = {}, 0
        for name, numbers, row in wanted:
            places[name] = (total, row)
            total += -(-numbers // unit) * unit
        first = next(iter(weights.values()), None)
        some = next(iter(rows.values())).data if first is None else first
        scratch = torch.empty(total, dtype=some.dtype)
        base = scratch.data_ptr()
        pointers: list[int] = []
        strides: list[int] = []
        for name in self.source.buffers:
            if name in places:
                offset, row = places[name]
                pointers += (base + offset * self.itemsize, 0)
                strides += (0, row, 0)
            else:
                given = rows[name]
                ahead = 0 if given.first is None else given.first.data_ptr()
                pointers += (given.data.data_ptr(), ahead)
                strides += (given.time, given.row, given.ring)
        for weight in self.source.weights:
            tensor = weights[weight.weight]
            offset, _ = places[weight.pointer]
            pointers += (tensor.data_ptr(), base + offset * self.itemsize)
            strides += (0, *tensor.stride()) if tensor.dim() == 2 else tensor.stride()
        sizes = (steps, batch, reverse, across, *self._sizes, *strides)
        p = (ctypes.c_void_p * len(pointers))(*pointers)
        s = (ctypes.c_long * len(sizes))(*sizes)
        self._run(p, s, self._constants, threads)
