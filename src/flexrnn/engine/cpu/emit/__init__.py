"""From stages to C++: `source` writes the text of one loop."""

from flexrnn.engine.cpu.emit.context import Packed
from flexrnn.engine.cpu.emit.products import ROWS_IN_PLACE, Shape
from flexrnn.engine.cpu.emit.run import HEAD
from flexrnn.engine.cpu.emit.source import Source, source

__all__ = ["HEAD", "ROWS_IN_PLACE", "Packed", "Shape", "Source", "source"]
