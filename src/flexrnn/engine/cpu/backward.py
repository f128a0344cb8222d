"""A program's backward pass, laid out for one kind of call."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.after import After, Call
from flexrnn.engine.cpu.chunks import Chunk, chunks
from flexrnn.engine.cpu.kernel import SCRATCH, Rows
from flexrnn.engine.cpu.layout import Layout, values_of, width
from flexrnn.engine.cpu.plan import Plan, Sizes, weights_of
from flexrnn.engine.cpu.saved import BLOCK, part, saved_of
from flexrnn.engine.cpu.sums import Sums


class _Kept(NamedTuple):
    """A value that the loop leaves behind at every step."""

    inner: tuple[int, ...]  # its shape, behind T and B
    offset: int | None  # where in `SCRATCH` those of a chunk lie; None where all are wanted


class Backward:
    """The backward pass; arguments as in `plan.laid_out`."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        keep: tuple[str, ...],
        sizes: Sizes,
        given: Mapping[str, Tensor],
    ):
        part, kernel = plan.parts.backward, plan.backward
        assert part is not None
        assert kernel is not None
        self.sizes = sizes
        self.layout = Layout(program, kernel, sizes)
        graph, rows, area = program.graph, self.layout.rows, self.layout.area
        saved = saved_of(program, keep)
        self.apart = (*saved.kept, *saved.alone)  # what is saved, but for the block
        for index in self.apart:
            rows[f"saved.{index}"] = self.layout.timed(f"saved.{index}", given[f"saved.{index}"])
        places = saved.places(sizes.steps * sizes.batch)
        for index, at in places.items():
            rows[f"saved.{index}"] = self.layout.whole(BLOCK, saved.block[index], at)
        self._states(program, plan.parts.constant, keep, given)
        outputs = part.graph.outputs
        kept, sums = (
            [int(name.partition(".")[2]) for name in outputs if name.startswith(kind)]
            for kind in ("kept.", "sum.")
        )
        names = {*given, *(f"saved.{index}" for index in places)}
        self.after = After(
            program, part.after, kept, sums, sizes, names, given, narrow=kernel.narrow
        )
        read = {*self.after.read, *self.after.roots, *self.after.news.values()}
        self.views = {i: (saved.block[i], at) for i, at in places.items() if i in read}
        inner = {i: tuple(int(s) for s in graph.nodes[i].shape[1:]) for i in kept}
        passing = [i for i in kept if i not in self.after.roots]
        numbers = sum(math.prod(inner[i]) for i in passing) if self.after.splits else 0
        self.chunks = chunks(sizes, numbers, kernel.itemsize, weights_of(program))
        most = max(chunk.last - chunk.first for chunk in self.chunks)
        self.kept: dict[int, _Kept] = {}
        for index in kept:
            name, row, at = f"kept.{index}", math.prod(inner[index]), None
            rows[name] = self.layout.whole(name, inner[index])
            if index in passing:
                at = area.take(most * sizes.batch * row)
                rows[name] = rows[name]._replace(memory=SCRATCH, brief=True, offset=at)
            self.kept[index] = _Kept(inner[index], at)
        self.sums = Sums(sums, kernel, sizes.threads, area)
        rows |= self.sums.rows
        self.layout.finish(given)

    def _states(
        self,
        program: Program,
        constant: frozenset[str],
        keep: tuple[str, ...],
        given: Mapping[str, Tensor],
    ) -> None:
        rows, batch = self.layout.rows, self.sizes.batch
        for field in program.fields:
            initial = given[f"state.{field}"]
            wide = width(initial)
            new = f"saved.{program.graph.outputs[f'state.{field}']}"
            if field in constant:
                rows[f"const.{field}"] = Rows(f"state.{field}", row=wide)
            elif new in rows:
                rows[f"after.{field}"] = rows[new]
                rows[f"before.{field}"] = rows[f"after.{field}"]._replace(first=f"state.{field}")
            ring = Rows(f"carry.{field}", batch * wide, wide, brief=True)
            rows[f"carry.{field}"] = ring._replace(first=f"final.{field}")
            rows[f"passed.{field}"] = ring._replace(
                first=f"end.{field}" if self.sizes.fewer else ""
            )
            if field in keep:
                rows[f"grad.{field}"] = self.layout.timed(f"grad.{field}", given[f"grad.{field}"])

    def __call__(self, given: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Run it; the gradients by the names of the inputs."""
        program, sizes = self.layout.program, self.sizes
        values = values_of(program, given)
        memory = self.layout.memory(given, like, values)
        lead = sizes.lead(given)
        given = {**given, **self._views(given, lead)}
        for index in (*self.apart, *self.views):
            values[index] = given[f"saved.{index}"]
        call = Call(program, given, like, values, {})
        carries = {}
        for field in program.fields:
            shape = given[f"state.{field}"].shape
            carries[field] = memory[f"carry.{field}"] = like.new_empty(2, *shape)
            if sizes.fewer:  # some have no step at all
                memory[f"end.{field}"] = given[f"final.{field}"].clone()
        for index, kept in self.kept.items():
            if kept.offset is None:
                whole = like.new_empty((*lead, *kept.inner))
                call.found[index] = memory[f"kept.{index}"] = whole
        totals = self.sums.begin(memory[SCRATCH])
        self.after.begin(call, several=len(self.chunks) > 1)
        known: dict[int, Tensor] = {}
        for chunk in reversed(self.chunks):
            self.layout.run(memory, chunk)
            known = self.after.add(call, chunk, self._left(call, memory[SCRATCH], chunk))
        if totals is not None:
            known |= self.sums.end(totals, program.graph)
        of_state = {
            f: memory[f"end.{f}"] if sizes.fewer else ring[(sizes.steps - 1) & 1]
            for f, ring in carries.items()
        }
        return interpreter.by_name(program, of_state, self.after.end(call, known))

    def _views(self, given: Mapping[str, Tensor], lead: tuple[int, ...]) -> dict[str, Tensor]:
        """What torch reads of the block."""
        return {
            f"saved.{index}": part(given[BLOCK], (*lead, *inner), at)
            for index, (inner, at) in self.views.items()
        }

    def _left(self, call: Call, scratch: Tensor, chunk: Chunk) -> dict[int, Tensor]:
        """What the loop has left of the steps of a chunk."""
        found, lead = {}, chunk.lead(self.sizes, call.given)
        for index, (inner, at) in self.kept.items():
            if at is None:
                found[index] = call.found[index][chunk.span(self.sizes)]
            else:
                found[index] = part(scratch, (*lead, *inner), at)
        return found
