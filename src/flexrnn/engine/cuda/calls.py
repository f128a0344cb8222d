"""What a tier is told of a call."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = (16, 32, 64)  # of a program's tile; the fewest are those that a product has


class Call(NamedTuple):
    """A call of a loop."""

    steps: int
    batch: int
    reverse: bool
    precision: str  # of products of float32: `ieee`, or `tf32`
    itemsize: int  # bytes of a weight's number
    processors: int  # of the device
    shared: int  # bytes of memory that a program may have on one
    layout: Tensor | None = None  # where sequences end at different steps; see `layout_of`
    tall: int = ROWS[0]  # rows of a tile

    @property
    def rows(self) -> int:
        """Tiles of rows."""
        return -(-self.batch // self.tall)

    @property
    def fixed(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        ragged = self.layout is not None
        return {
            "REVERSE": self.reverse,
            "RAGGED": ragged,
            "M": self.tall,
            "PRECISION": self.precision,
        }


def layout_of(batch_sizes: Tensor, batch: int, device: torch.device) -> Tensor:
    """Where the rows of every step lie, for kernels, on their device.

    The steps of each sequence, `(B,)`, then the row at which each step begins, `(T + 1,)`.

    Args:
        batch_sizes: how many sequences have each step, the longest first.
        batch: B.
        device: the kernels'.
    """
    steps = torch.searchsorted(-batch_sizes, -torch.arange(batch))
    begins = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    return torch.cat([steps, begins]).to(device)
