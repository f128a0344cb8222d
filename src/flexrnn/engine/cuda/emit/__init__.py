"""From the stages of a loop to the Triton source of its kernels."""

from flexrnn.engine.cuda.emit.held import on_their_way
from flexrnn.engine.cuda.emit.names import ROUNDED, at_next_step, is_only_multiplied
from flexrnn.engine.cuda.emit.source import FIRST_POINTER, Source, source, tiles_of
from flexrnn.engine.cuda.emit.tiles import WIDTHS, Tile

__all__ = ["FIRST_POINTER", "ROUNDED", "WIDTHS", "Source", "Tile", "at_next_step",
           "is_only_multiplied", "on_their_way", "source", "tiles_of"]  # fmt: skip
