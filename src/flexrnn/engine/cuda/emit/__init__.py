"""From the stages of a loop to the Triton source of its kernels."""

from flexrnn.engine.cuda.emit.names import is_only_multiplied
from flexrnn.engine.cuda.emit.resident import on_their_way
from flexrnn.engine.cuda.emit.source import FIRST_POINTER, Source, source, tiles_of
from flexrnn.engine.cuda.emit.tiles import WIDTHS, Tile

__all__ = ["FIRST_POINTER", "WIDTHS", "Source", "Tile", "is_only_multiplied", "on_their_way",
           "source", "tiles_of"]  # fmt: skip
