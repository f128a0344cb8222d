"""A forward pass of which nothing is open but addresses: where operands lie, and results go.

Between tensors and the compiled loop there is then little more than a row of numbers, and whatever
is computed before the loop.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from flexrnn.engine.cpu.forward import Forward
from flexrnn.engine.cpu.kernel import SCRATCH
from flexrnn.engine.cpu.layout import values_of
from flexrnn.engine.cpu.pool import POOL

_OUTPUT = "output"
_SMALL = 4096  # numbers, up to which the allocator is quicker than the pool


class Straight:
    """A forward pass without derivatives, by addresses.

    Args:
        forward: laid out; see its `is_straight`.
        names: of the operands, in the order in which their addresses will come.

    Attributes:
        reads: whether something is computed before the loop, of the operands themselves.
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
                copies.append((f"final.{field}", _OUTPUT, forward.last * count, count))
            elif sizes.steps == 1:  # what the only step writes may lie where it belongs
                instead[rows.memory, offset] = f"final.{field}"
            else:
                end = forward.ends[field]
                copies.append((f"final.{field}", end.memory, end.offset * itemsize, count))
        self._before, self._program = layout.before, layout.program
        self.reads = self._before.reads
        self._read = [name for name in names if not name.startswith("state.")]
        self._computed = [f"node.{index}" for index in self._before.wanted]
        self._lead, self._steps = (sizes.steps, sizes.batch), slice(0, sizes.steps)
        order = [*names, _OUTPUT, *(f"final.{field}" for field in fields)]
        order += [SCRATCH, *self._computed]
        self._run, used = layout.addressed(order, where, instead, forward.chunks[0])
        self._copies = [(order.index(to), order.index(of), at, n) for to, of, at, n in copies]
        self._scratch = layout.area.size if SCRATCH in used else 0

    def __call__(self, addresses: Sequence[int], operands: Sequence[Tensor]) -> None:
        """Run it.

        Args:
            addresses: of the operands; of the output `(T, B, ...)`; of every field of the last
                state `(B, ...)`. What is written overlaps with nothing.
            operands: these themselves, but for states, if it `reads` them.
        """
        scratch = self._take() if self._scratch else None
        at = [*addresses, 0 if scratch is None else scratch.data_ptr()]
        if self.reads:
            computed = self._compute(operands, scratch)
            at += [computed[name].data_ptr() for name in self._computed]
        self._run(at)
        for to, of, offset, count in self._copies:
            ctypes.memmove(at[to], at[of] + offset, count)

    def _compute(self, operands: Sequence[Tensor], scratch: Tensor | None) -> dict[str, Tensor]:
        """What the loop reads that is computed before it, some of it into its own memory."""
        given = dict(zip(self._read, operands, strict=True))
        found = given if scratch is None else {**given, SCRATCH: scratch}
        values, like = values_of(self._program, given), operands[0]
        self._before.begin(self._program, values, found, like)
        self._before.add(self._program, values, found, like, self._lead, self._steps)
        return found

    def _take(self) -> Tensor:
        if self._scratch > _SMALL:
            return POOL.take(self._scratch, self.dtype, brief=True)
        return torch.empty(self._scratch, dtype=self.dtype, device="cpu")
