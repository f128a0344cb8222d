"""From the stages of a loop to the Triton source of its kernels."""

from flexrnn.engine.cuda.emit.resident import AT_ONCE, CHUNK
from flexrnn.engine.cuda.emit.source import FIRST_POINTER, Source, source
from flexrnn.engine.cuda.emit.tiles import WIDTHS

__all__ = ["AT_ONCE", "CHUNK", "FIRST_POINTER", "WIDTHS", "Source", "source"]
