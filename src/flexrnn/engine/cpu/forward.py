"""A program's forward pass, laid out for one kind of call."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.batches import everywhere
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.chunks import Chunk, chunks
from flexrnn.engine.cpu.kernel import SCRATCH, STARTS, Rows
from flexrnn.engine.cpu.layout import Layout, values_of, width
from flexrnn.engine.cpu.plan import Plan, Sizes, weights_of
from flexrnn.engine.cpu.pool import POOL
from flexrnn.engine.cpu.saved import BLOCK, part, saved_of
from flexrnn.engine.interpreter import Run


class _End(NamedTuple):
    """A last state that is a part of other memory."""

    memory: str
    offset: int
    inner: tuple[int, ...]  # its shape, behind B

    def of(self, memory: Mapping[str, Tensor], batch: tuple[int, ...]) -> Tensor:
        return part(memory[self.memory], (*batch, *self.inner), self.offset)


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
        self.last = 0 if sizes.reverse else sizes.steps - 1  # the step that is run last
        self.layout = Layout(program, plan.forward, sizes)
        self.constant = plan.parts.constant
        self.histories: dict[str, tuple[int, ...]] = {}  # those that the caller gets
        self.ends: dict[str, _End] = {}
        saved = saved_of(program, keep)
        rows = sizes.steps * sizes.batch
        self.block, places = rows * saved.width if saved.block else None, saved.places(rows)
        self._states(program, plan, places, given)
        outputs = plan.parts.forward.graph.outputs
        for index, inner in saved.block.items():
            if (name := f"saved.{index}") in outputs:  # else it is a state
                self.layout.rows[name] = self.layout.whole(BLOCK, inner, places[index])
        self.saved = [f"history.{field}" for field in saved.kept.values()]
        self.saved += [BLOCK] if saved.block else []
        self.alone: dict[str, tuple[int, ...]] = {}
        for index, inner in saved.alone.items():
            if (name := f"saved.{index}") in outputs:
                self.layout.rows[name] = self.layout.whole(name, inner)
                self.alone[name] = inner
            else:
                name = self.layout.node(index)
            self.saved.append(name)
        self.saves = bool(saved.block or self.alone)
        self.chunks = self._chunks(plan)
        steps = max(chunk.last - chunk.first for chunk in self.chunks)
        # Where steps have unlike numbers of rows, it will serve calls of more than this one's.
        self.layout.hoist(steps * sizes.batch, self.saved, given)
        self.layout.finish(given)

    @property
    def is_straight(self) -> bool:
        """Whether one run of the loop is all that follows what `Before` computes, for one field."""
        more = self.constant or self.saves or self.sizes.fewer
        return not more and len(self.chunks) == len(self.keep) == 1

    def _chunks(self, plan: Plan) -> tuple[Chunk, ...]:
        """As few steps as their input's products, unless all of one are saved."""
        products = [n for n in plan.forward.source.buffers if n.startswith("hoisted.")]
        if any(name.startswith("node.") for name in self.saved):
            products = []
        nodes = self.layout.program.graph.nodes
        inner = (nodes[int(name.partition(".")[2])].shape[1:] for name in products)
        numbers = sum(math.prod(map(int, shape)) for shape in inner)
        weights = weights_of(self.layout.program)
        return chunks(self.sizes, numbers, plan.forward.itemsize, weights)

    def _states(
        self, program: Program, plan: Plan, places: Mapping[int, int], given: Mapping[str, Tensor]
    ) -> None:
        """Where the states lie: whole where somebody reads them later, else the last two."""
        rows, news = self.layout.rows, program.graph.outputs
        for field in program.fields:
            first = given[f"state.{field}"]
            wide, step = width(first), first.numel()
            if field in self.constant:
                rows[f"const.{field}"] = Rows(f"state.{field}", row=wide)
                continue
            if field in self.keep:
                lies = self.layout.whole(f"history.{field}", first.shape[1:])
                self.histories[field] = tuple(first.shape[1:])
            elif field in plan.parts.recorded and (new := news[f"state.{field}"]) in places:
                lies = self.layout.whole(BLOCK, first.shape[1:], places[new])
                at = places[new] + self.last * step
                self.ends[field] = _End(BLOCK, at, tuple(first.shape[1:]))
            else:
                at = self.layout.area.take(2 * step)
                lies = Rows(SCRATCH, step, wide, brief=True, offset=at)
                at += ((self.sizes.steps - 1) & 1) * step
                self.ends[field] = _End(SCRATCH, at, tuple(first.shape[1:]))
            end = f"end.{field}" if self.sizes.fewer else ""
            rows[f"after.{field}"] = lies._replace(first=end)
            rows[f"before.{field}"] = lies._replace(first=f"state.{field}")

    def _repeated(self, first: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """What a state that never changes is at every step."""
        if self.sizes.fewer:
            return everywhere(first, given[STARTS].diff())
        return first.repeat(self.sizes.steps, *[1] * first.dim())

    def __call__(self, given: Mapping[str, Tensor], like: Tensor) -> Run:
        """Run it."""
        program, lead = self.layout.program, self.sizes.lead(given)
        values = values_of(program, given) if self.layout.before.reads else {}
        memory = self.layout.memory(given, like, values)
        for field, inner in self.histories.items():
            memory[f"history.{field}"] = like.new_empty((*lead, *inner))
        if self.block is not None:
            memory[BLOCK] = POOL.take(self.block, like.dtype)[: self.block]
        for name, inner in self.alone.items():
            shape = (*lead, *inner)
            memory[name] = part(POOL.take(math.prod(shape), like.dtype), shape)
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
        final = []
        for field in program.fields:
            if field in self.constant:
                end = given[f"state.{field}"]
            elif self.sizes.fewer:
                final.append(memory[f"end.{field}"])
                continue
            elif field in self.ends:
                end = self.ends[field].of(memory, lead[1:])
            else:
                end = memory[f"history.{field}"][self.last]
            final.append(end.clone())
        return Run(history, tuple(final), tuple(memory[name] for name in self.saved))
