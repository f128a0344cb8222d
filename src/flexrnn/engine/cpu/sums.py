"""What a loop adds up over all steps and rows: gradients of biases and their kin."""

import math
from collections.abc import Iterable

from torch import Tensor

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.cpu.kernel import SCRATCH, Area, Kernel, Rows

_PARTS = 3  # of a sum; see `Pointwise` of the emitter


class Sums:
    """The sums of a loop, side by side in one piece of memory, so that all begin at once.

    Args:
        indices: their nodes.
        kernel: the loop.
        threads: each has sums of its own.
        area: of the memory named `SCRATCH`, where theirs is taken.

    Attributes:
        rows: where they lie, by the names of buffers.
    """

    def __init__(self, indices: Iterable[int], kernel: Kernel, threads: int, area: Area):
        each, self.threads = Area(kernel.itemsize), threads
        counts = {index: kernel.loop.sums[f"sum.{index}"] for index in indices}
        self._places = {index: (each.take(count), count) for index, count in counts.items()}
        self.numbers = each.size  # of one part of all sums
        self.at = area.take(threads * _PARTS * self.numbers)
        self.rows = {
            f"sum.{index}": Rows(SCRATCH, row=self.numbers, offset=self.at + at)
            for index, (at, _) in self._places.items()
        }

    def begin(self, scratch: Tensor) -> Tensor | None:
        """The sums of every thread `(threads, numbers)`, nothing as yet; None if there is none."""
        if not self._places:
            return None
        whole = scratch[self.at : self.at + self.threads * _PARTS * self.numbers]
        return whole.zero_().view(self.threads, _PARTS, self.numbers)[:, 0]

    def end(self, totals: Tensor, graph: Graph) -> dict[int, Tensor]:
        """What they are over all threads, by their nodes."""
        found = dict[int, Tensor]()
        for index, (at, count) in self._places.items():
            node = graph.nodes[index]
            shape = tuple(int(s) for s in node.shape)
            value = totals[:, at : at + count].sum(0)  # each in memory of its own, as a gradient is
            if math.prod(shape) < count:  # over axes of a row, too
                inner = (int(s) for s in graph.nodes[node.args[0]].shape[1:])
                value = value.reshape(1, *inner).sum_to_size(shape)
            found[index] = value.reshape(shape)
        return found
