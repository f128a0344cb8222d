"""From stages to C++: `source` writes the text of one loop."""

from flexrnn.engine.cpu.emit.source import Source, source

__all__ = ["Source", "source"]
