"""A program's forward pass, laid out for one kind of call."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.batches import everywhere
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.chunks import Chunk, chunks
from flexrnn.engine.cpu.kernel import SCRATCH, STARTS, Area, Rows
from flexrnn.engine.cpu.layout import Layout, values_of, width
from flexrnn.engine.cpu.plan import Plan, Sizes
from flexrnn.engine.cpu.pool import POOL
from flexrnn.engine.interpreter import Run
from flexrnn.engine.lowering.places import in_one_piece

_SAVED = "saved"  # the memory of what only the backward pass reads


class _Part(NamedTuple):
    """A tensor that is a part of an area."""

    inner: tuple[int, ...]  # its shape, behind T and B
    offset: int

    def of(self, area: Tensor, lead: tuple[int, ...]) -> Tensor:
        shape = (*lead, *self.inner)
        return area.as_strided(shape, _strides(shape), self.offset)


@lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return in_one_piece("", shape).strides


class Forward:
    """The forward pass; arguments as in `plan.laid_out`."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        keep: tuple[str, ...],
        sizes: Sizes,
        given: Mapping[str, Tensor],
    ):
        self.sizes, self.keep = sizes, keep
        self.layout = Layout(program, plan.forward, sizes)
        self.constant = plan.parts.constant
        self.saved_area = Area(plan.forward.itemsize)
        self.histories: dict[str, tuple[int, ...]] = {}  # those that the caller gets
        self.parts: dict[str, _Part] = {}  # name of a saved buffer or an end -> where it lies
        self._states(program, plan, given)
        for index in program.schedule.saved:
            if f"saved.{index}" in plan.parts.forward.graph.outputs:
                inner = program.graph.nodes[index].shape[1:]
                self._save(f"saved.{index}", tuple(int(s) for s in inner))
        self.saves = any(name.startswith(("saved.", "history.")) for name in self.parts)
        self.saved = [self._source(program, index) for index in program.schedule.saved]
        self.layout.finish(given)
        self.chunks = self._chunks(plan)

    @property
    def is_straight(self) -> bool:
        """Whether one run of the loop is all that follows what torch computes, for one field."""
        more = self.constant or self.saves or self.sizes.fewer
        return not more and len(self.chunks) == len(self.keep) == 1

    def _chunks(self, plan: Plan) -> tuple[Chunk, ...]:
        """As few steps as their input's products, unless all of one are saved."""
        products = [n for n in plan.forward.source.buffers if n.startswith("hoisted.")]
        if any(name.startswith("node.") for name in self.saved):
            products = []
        numbers = sum(self.layout.rows[name].row for name in products)
        return chunks(self.sizes, numbers, plan.forward.itemsize)

    def _states(self, program: Program, plan: Plan, given: Mapping[str, Tensor]) -> None:
        """Where the states lie: whole where somebody reads them later, else the last two."""
        rows = self.layout.rows
        for field in program.fields:
            first = given[f"state.{field}"]
            wide = width(first)
            if field in self.constant:
                rows[f"const.{field}"] = Rows(f"state.{field}", row=wide)
                continue
            lies = Rows("", wide * self.layout.apart, wide)
            if field in self.keep:
                lies = lies._replace(memory=f"history.{field}")
                self.histories[field] = tuple(first.shape[1:])
            elif field in plan.parts.recorded:
                lies = lies._replace(
                    memory=_SAVED, offset=self._save(f"history.{field}", first.shape[1:])
                )
            else:
                at = self.layout.area.take(2 * first.numel())
                lies = Rows(SCRATCH, first.numel(), wide, brief=True, offset=at)
                last = at + ((self.sizes.steps - 1) & 1) * first.numel()
                self.parts[f"end.{field}"] = _Part(tuple(first.shape[1:]), last)
            end = f"end.{field}" if self.sizes.fewer else ""
            rows[f"after.{field}"] = lies._replace(first=end)
            rows[f"before.{field}"] = lies._replace(first=f"state.{field}")

    def _save(self, name: str, inner: tuple[int, ...]) -> int:
        """Take memory for a value at every step."""
        wide = math.prod(inner)
        at = self.saved_area.take(self.sizes.steps * self.sizes.batch * wide)
        self.parts[name] = _Part(inner, at)
        self.layout.rows[name] = Rows(_SAVED, wide * self.layout.apart, wide, offset=at)
        return at

    def _source(self, program: Program, index: int) -> str:
        """Where a saved value is found once the loop is done."""
        if f"saved.{index}" in self.parts:
            return f"saved.{index}"
        fields = (*self.keep, *program.fields)
        news = program.graph.outputs
        field = next((f for f in fields if news[f"state.{f}"] == index), None)
        return self.layout.node(index) if field is None else f"history.{field}"

    def _repeated(self, first: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """What a state that never changes is at every step."""
        if self.sizes.fewer:
            return everywhere(first, given[STARTS].diff())
        return first.repeat(self.sizes.steps, *[1] * first.dim())

    def __call__(self, given: Mapping[str, Tensor], like: Tensor) -> Run:
        """Run it."""
        program, lead = self.layout.program, self.sizes.lead(given)
        values = values_of(program, given) if self.layout.before.wanted else {}
        memory = self.layout.memory(given, like, values)
        for field, inner in self.histories.items():
            memory[f"history.{field}"] = like.new_empty((*lead, *inner))
        if self.saves:
            memory[_SAVED] = POOL.take(self.saved_area.size, like.dtype)
        if self.sizes.fewer:  # some have no step at all
            ends = (field for field in program.fields if field not in self.constant)
            memory |= {f"end.{field}": given[f"state.{field}"].clone() for field in ends}
        for chunk in self.chunks:
            span, some = chunk.span(self.sizes), chunk.lead(self.sizes, given)
            self.layout.before.add(program, values, memory, like, some, span)
            self.layout.run(memory, chunk)
        history = {}
        for field in self.keep:
            history[field] = (
                self._repeated(given[f"state.{field}"], given)
                if field in self.constant
                else memory[f"history.{field}"]
            )
        for name in self.saved:
            if name in self.parts:
                memory[name] = self.parts[name].of(memory[_SAVED], lead)
        last = 0 if self.sizes.reverse else self.sizes.steps - 1
        final = []
        for field in program.fields:
            if field in self.constant:
                end = given[f"state.{field}"]
            elif self.sizes.fewer:
                final.append(memory[f"end.{field}"])
                continue
            elif f"end.{field}" in self.parts:
                end = self.parts[f"end.{field}"].of(memory[SCRATCH], lead[1:])
            else:
                end = memory[f"history.{field}"][last]
            final.append(end.clone())
        return Run(history, tuple(final), tuple(memory[name] for name in self.saved))
