"""Axes, and where in memory a node's numbers lie along them.

Every axis but the batch counts. The last is that of units, along which vectors run; those before it
are heads, of which there may be several axes or none.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from flexrnn.engine.compiler.graph import BATCH, Graph, Shape


class Domain(NamedTuple):
    """What a stage goes over, for every row: units of every head."""

    outer: tuple[int, ...]  # axes of heads
    units: int
    behind: int = 0  # axes of one number behind that of the units

    @property
    def heads(self) -> int:
        """How many there are."""
        return math.prod(self.outer)


class Place(NamedTuple):
    """Where a node lies: numbers from the beginning of a row of a buffer."""

    buffer: str
    offset: int
    strides: tuple[int, ...]  # numbers from one to the next along every axis, 0 where it is one

    def sliced(self, axis: int, start: int) -> "Place":
        """A part of it."""
        return self._replace(offset=self.offset + start * self.strides[axis])

    def turned(self) -> "Place":
        """It with its last two axes exchanged."""
        return self._replace(strides=(*self.strides[:-2], self.strides[-1], self.strides[-2]))

    def stretched(self, sizes: tuple[int, ...], rank: int) -> "Place":
        """It again and again along axes that had one number, and along new ones in front."""
        old = tuple(s if n > 1 else 0 for s, n in zip(self.strides, sizes, strict=True))
        return self._replace(strides=(0,) * (rank - len(old)) + old)


def sizes_of(shape: Shape) -> tuple[int, ...]:
    """The axes beside the batch; one number is an axis of one."""
    return tuple(int(s) for s in shape if s != BATCH) or (1,)


def domain_of(shape: Shape, *, flat: bool = False) -> Domain:
    """What a stage that computes this shape goes over.

    Args:
        shape: with the batch, or without it.
        flat: of heads of one number each, the last axis is that of units.
    """
    *outer, units = sizes_of(shape)
    while outer[:1] == [1]:
        del outer[0]
    behind = 0
    while flat and units == 1 and outer:
        units, behind = outer.pop(), behind + 1
    return Domain(tuple(outer), units, behind)


def in_one_piece(buffer: str, sizes: tuple[int, ...]) -> Place:
    """A place whose numbers lie side by side."""
    strides = tuple(math.prod(sizes[k + 1 :]) for k in range(len(sizes)))
    return Place(buffer, 0, strides)


def lies_whole(graph: Graph, index: int) -> bool:
    """Whether the numbers of a view lie side by side, so that its axes may be others."""
    while True:
        node = graph.nodes[index]
        if node.op == "slice":
            before = sizes_of(node.shape)[: node.attr("axis")]
            if any(size != 1 for size in before):
                return False
        elif node.op == "expand":
            if domain_of(node.shape) != domain_of(graph.nodes[node.args[0]].shape):
                return False
        elif node.op == "transpose":
            return False
        elif node.op not in ("detach", "opaque"):  # what is reshaped lies whole, or has been copied
            return True
        index = node.args[0]


class Named(Protocol):
    """What has a name in generated code."""

    @property
    def name(self) -> str:
        """The name."""
        ...


def identifier(name: str, taken: Mapping[str, Named]) -> str:
    """A name in generated code for a piece of memory.

    Args:
        name: of the memory: a kind, and a field or a parameter or a node.
        taken: those that have a name.
    """
    kind, _, rest = name.partition(".")
    if rest.isdigit():  # a node's number, which means nothing there
        return f"{kind}{sum(other.startswith(f'{kind}.') for other in taken)}"
    plain = re.sub(r"\W", "_", name)
    while plain in {other.name for other in taken.values()}:
        plain += "_"
    return plain
