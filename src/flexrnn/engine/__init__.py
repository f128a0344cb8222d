"""Engines: how a step is run over a sequence. They know no cell."""
