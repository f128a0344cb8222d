"""From stages to C++: `source` writes the text of one loop."""

from flexrnn.engine.cpu.emit.products import Packed, Shape
from flexrnn.engine.cpu.emit.source import Source, source

__all__ = ["Packed", "Shape", "Source", "source"]
