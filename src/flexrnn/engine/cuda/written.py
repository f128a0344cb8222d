"""A loop, lowered and written as kernels for one dtype."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from flexrnn.engine.cuda import kernels
from flexrnn.engine.cuda.emit import WIDTHS, Source, Tile, source, tiles_of
from flexrnn.engine.lowering.stages import Loop

REAL = {  # of every dtype, what numbers in registers are
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


class Written:
    """One loop, lowered, and written as often as there are widths of tiles.

    Args:
        stages: of the loop.
        dtype: of inputs, parameters and states.
        backward: it runs from the last step to the first.
    """

    def __init__(self, stages: Loop, dtype: torch.dtype, *, backward: bool):
        self.stages, self.backward = stages, backward
        self.real, self.operand = (str(d).replace("torch.", "tl.") for d in (REAL[dtype], dtype))
        self.chosen: dict[Hashable, Any] = {}  # what `tiers` has found out, by what it depends on
        self.refused: set[Hashable] = set()  # launches that a card has not room for
        self._sources: dict[Hashable, Source] = {}

    def source(self, widest: int = WIDTHS[-1], *, even: bool = False) -> Source:
        """The source with tiles of so many units at most; `even`: see `emit.tiles_of`."""
        key = widest, even
        if key not in self._sources:
            tiles = tiles_of(self.stages, widest, even=even, half=self.operand != self.real)
            same = (found for found in self._sources.values() if found.tiles == tiles)
            self._sources[key] = next(same, None) or self._written(tiles)
        return self._sources[key]

    def _written(self, tiles: Sequence[Tile]) -> Source:
        return source(
            self.stages,
            backward=self.backward,
            real=self.real,
            operand=self.operand,
            tiles=tiles,
            least=kernels.least_columns(self.operand),
            whole=self.real != "tl.float64" or kernels.keeps_doubles(),
        )
