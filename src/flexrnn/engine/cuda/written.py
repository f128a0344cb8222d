"""A loop, lowered and written as kernels for one dtype."""

from collections.abc import Hashable
from typing import Any

import torch

from flexrnn.engine.cuda import kernels
from flexrnn.engine.cuda.emit import WIDTHS, Source, source
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
        """The source with tiles of so many units at most; `even`: see `emit.source`."""
        key = widest, even
        if key not in self._sources:
            self._sources[key] = source(
                self.stages,
                backward=self.backward,
                real=self.real,
                operand=self.operand,
                widest=widest,
                even=even,
                whole=self.real != "tl.float64" or kernels.keeps_doubles(),
            )
        return self._sources[key]
