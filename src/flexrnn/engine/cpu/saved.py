"""What a forward pass leaves for the backward pass: one block of memory, and what torch computes.

An operator of torch's must not return two tensors of one memory. So the block is handed over whole,
and who reads it knows from the program and the sizes alone where everything lies.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.overrides import handle_torch_function

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.split import Dependence, dependences
from flexrnn.engine.lowering.places import in_one_piece
from flexrnn.engine.replay import is_watched

BLOCK = "block"  # the name of its memory

Inner = tuple[int, ...]  # a shape, behind T and B


class Saved(NamedTuple):
    """Of a program's saved values, where each is found."""

    kept: dict[int, str]  # in the history of a field that the caller gets
    block: dict[int, Inner]  # in the block
    alone: dict[int, Inner]  # in a tensor of its own: the input's products, where torch may do them

    @property
    def width(self) -> int:
        """How many numbers the block holds for a row."""
        return sum(map(math.prod, self.block.values()))

    def places(self, rows: int) -> dict[int, int]:
        """Where in the block each value begins: one behind the other, with no gap to be read.

        Args:
            rows: T·B.
        """
        found, at = {}, 0
        for index, inner in self.block.items():
            found[index] = at
            at += rows * math.prod(inner)
        return found

    def by_name(self, handed: Sequence[Tensor]) -> dict[str, Tensor]:
        """What was handed over, by the names of memory: the histories, the block, the others."""
        names = [f"saved.{index}" for index in self.kept]
        names += [BLOCK] if self.block else []
        names += [f"saved.{index}" for index in self.alone]
        return dict(zip(names, handed, strict=True))


_known: WeakKeyDictionary[Graph, dict[tuple[str, ...], Saved]] = WeakKeyDictionary()


def saved_of(program: Program, keep: tuple[str, ...]) -> Saved:
    """Where a program's saved values are found, for a call that keeps these fields' histories."""
    known = _known.setdefault(program.graph, {})
    if keep not in known:
        known[keep] = _saved(program, keep)
    return known[keep]


def _saved(program: Program, keep: tuple[str, ...]) -> Saved:
    graph, depends = program.graph, dependences(program.graph)
    found = Saved({}, {}, {})
    for index in program.schedule.saved:
        node = graph.nodes[index]
        inner = tuple(int(s) for s in node.shape[1:])
        field = next((f for f in keep if graph.outputs[f"state.{f}"] == index), None)
        if field is not None:
            found.kept[index] = field
        elif node.op == "product" and depends[index] == Dependence.INPUT:
            found.alone[index] = inner
        else:
            found.block[index] = inner
    # What fills whole lines of a cache first, for else nothing behind it would begin on one.
    block = dict(sorted(found.block.items(), key=lambda item: -_even(math.prod(item[1]))))
    return found._replace(block=block)


def _even(number: int) -> int:
    """The largest power of two that divides a number."""
    return number & -number


def part(
    memory: Tensor, shape: tuple[int, ...], at: int = 0, strides: tuple[int, ...] | None = None
) -> Tensor:
    """A tensor that begins so many numbers behind a memory's first; in one piece by default."""
    if is_watched():  # whose offset is asked anew
        return handle_torch_function(part, (memory,), memory, shape, at, strides)
    strides = _strides(shape) if strides is None else strides
    return memory.as_strided(shape, strides, memory.storage_offset() + at)


@lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return in_one_piece("", shape).strides
