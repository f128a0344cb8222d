"""From the stages of a loop to the Triton source of its kernels."""

from flexrnn.engine.cuda.emit.resident import on_their_way
from flexrnn.engine.cuda.emit.source import FIRST_POINTER, Source, source
from flexrnn.engine.cuda.emit.tiles import WIDTHS

__all__ = ["FIRST_POINTER", "WIDTHS", "Source", "on_their_way", "source"]
