"""Chunks of steps: what large products and a loop hand to each other lives for one of them only.

A loop wants the input's products, and leaves the gradients of gates to the products behind it. For
all steps at once these would be the largest tensors of a call. So a loop runs some steps at a time,
few enough that they stay small, enough that the products are large.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.cpu.plan import Sizes

ROWS = 512  # of a chunk, over all its steps: a product of so many is as fast as a larger one
_FEW = 128  # rows from which on it nearly is, where the sums that it adds to stay in a cache
_STEPS = 8  # of a chunk, or a loop begins too often for what it does
_OF_WEIGHTS = 3  # times what is handed over: what is read of them and of their gradients' sums
BYTES = 512 << 10  # handed over in a chunk; less is not worth the trouble


class Chunk(NamedTuple):
    """Steps of a pass, counted in its order, from the first on; those of a loop back come last."""

    first: int
    last: int  # the first behind them

    def span(self, sizes: Sizes) -> slice:
        """The steps in the order of time; all rows where steps have unlike numbers of them."""
        if sizes.fewer:
            return slice(None)
        if sizes.reverse:
            return slice(sizes.steps - self.last, sizes.steps - self.first)
        return slice(self.first, self.last)

    def lead(self, sizes: Sizes, given: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The axes in front of what there is at every one of these steps; see `Sizes.lead`."""
        lead = sizes.lead(given)
        return lead if sizes.fewer else (self.last - self.first, *lead[1:])


def chunks(sizes: Sizes, numbers: int, itemsize: int, weights: int) -> tuple[Chunk, ...]:
    """The chunks of a call, in the order of its forward pass.

    Args:
        sizes: of the call. Where steps have unlike numbers of rows, they are one chunk.
        numbers: that are handed over at every step and row.
        itemsize: bytes of a number.
        weights: numbers in weights, which are there anyway: no memory is saved by handing over far
            less than these, and they are read in every chunk.
    """
    steps, row = sizes.steps, numbers * itemsize
    if not row or not sizes.batch or sizes.fewer:
        return (Chunk(0, steps),)
    rows = min(ROWS, max(_FEW, _STEPS * sizes.batch, weights // (_OF_WEIGHTS * numbers)))
    least = max(-(-rows // sizes.batch), -(-BYTES // (row * sizes.batch)))
    count = max(1, (2 * steps + least) // (2 * least))
    return tuple(Chunk(steps * k // count, steps * (k + 1) // count) for k in range(count))
