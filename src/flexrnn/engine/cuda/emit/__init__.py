"""From the stages of a loop to the Triton source of its kernels."""

from flexrnn.engine.cuda.emit.source import FIRST_POINTER, Source, source

__all__ = ["FIRST_POINTER", "Source", "source"]
