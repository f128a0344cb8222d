"""A forward pass of which nothing is open but addresses: where operands lie, and results go.

Between tensors and the compiled loop there is then little more than a row of numbers.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from flexrnn.engine.cpu.forward import Forward
from flexrnn.engine.cpu.kernel import SCRATCH
from flexrnn.engine.cpu.pool import POOL

_OUTPUT = "output"
_SMALL = 4096  # numbers, up to which the allocator is quicker than the pool


class Straight:
    """A forward pass without derivatives, by addresses.

    Args:
        forward: laid out; its loop is all there is to do.
        names: of the operands, in the order in which their addresses will come.
    """

    def __init__(self, forward: Forward, names: Sequence[str]):
        layout, sizes, (kept,) = forward.layout, forward.sizes, forward.keep
        itemsize, fields = layout.kernel.itemsize, layout.program.fields
        self.dtype = torch.float32 if itemsize == 4 else torch.float64
        where = {f"history.{kept}": _OUTPUT}
        instead: dict[tuple[str, int], str] = {}
        copies: list[tuple[str, str, int, int]] = []
        for field in fields:
            rows = layout.rows[f"after.{field}"]
            count, offset = sizes.batch * rows.row * itemsize, rows.offset * itemsize
            if field == kept:
                last = 0 if sizes.reverse else sizes.steps - 1
                copies.append((f"final.{field}", _OUTPUT, last * count, count))
            elif sizes.steps == 1:  # what the only step writes may lie where it belongs
                instead[rows.memory, offset] = f"final.{field}"
            else:
                last = (sizes.steps - 1) & 1
                copies.append((f"final.{field}", SCRATCH, offset + last * count, count))
        order = [*names, _OUTPUT, *(f"final.{field}" for field in fields), SCRATCH]
        self._run, used = layout.addressed(order, where, instead, forward.chunks[0])
        self._copies = [(order.index(to), order.index(of), at, n) for to, of, at, n in copies]
        self._scratch = layout.area.size if SCRATCH in used else 0

    def __call__(self, addresses: Sequence[int]) -> None:
        """Run it.

        Args:
            addresses: of the operands; of the output `(T, B, ...)`; of every field of the last
                state `(B, ...)`. What is written overlaps with nothing.
        """
        scratch = self._take() if self._scratch else None
        at = (*addresses, 0 if scratch is None else scratch.data_ptr())
        self._run(at)
        for to, of, offset, count in self._copies:
            ctypes.memmove(at[to], at[of] + offset, count)

    def _take(self) -> Tensor:
        if self._scratch > _SMALL:
            return POOL.take(self._scratch, self.dtype)
        return torch.empty(self._scratch, dtype=self.dtype, device="cpu")
