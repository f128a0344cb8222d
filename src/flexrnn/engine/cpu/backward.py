"""A program's backward pass, laid out for one kind of call."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexrnn.engine import batches, interpreter
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.kernel import SCRATCH, STARTS, Rows
from flexrnn.engine.cpu.layout import Layout, values_of, width
from flexrnn.engine.cpu.plan import Plan, Sizes

_NARROW = 64  # columns: with fewer, torch's product of the transposed matrices is the faster


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
        self.olds = {program.graph.inputs[f"state.{f}"]: f"state.{f}" for f in program.fields}
        self.news = {i: program.graph.outputs[name] for i, name in self.olds.items()}
        self.layout = Layout(program, kernel, sizes)
        self._states(program, plan.parts.constant, keep, given)
        graph, rows, area = program.graph, self.layout.rows, self.layout.area
        for index in program.schedule.saved:
            rows[f"saved.{index}"] = self.layout.timed(f"saved.{index}", given[f"saved.{index}"])
        roots = set(graph.outputs.values())
        self.kept: dict[int, tuple[tuple[int, ...], int | None]] = {}  # a row; where in SCRATCH
        self.sums: dict[int, tuple[int, int]] = {}  # where in SCRATCH, how many numbers
        for name in part.graph.outputs:
            kind, _, rest = name.partition(".")
            if kind == "kept":
                index = int(rest)
                inner = tuple(int(s) for s in graph.nodes[index].shape[1:])
                row = math.prod(inner)
                at = None if index in roots else area.take(sizes.steps * sizes.batch * row)
                memory = name if at is None else SCRATCH
                rows[name] = Rows(memory, row * self.layout.apart, row, offset=at or 0)
                self.kept[index] = inner, at
            elif kind == "sum":
                count = kernel.loop.sums[name]
                at = area.take(sizes.threads * 2 * count)
                rows[name] = Rows(SCRATCH, row=2 * count, offset=at)
                self.sums[int(rest)] = at, count
        self.layout.finish(given)
        self.after = self._ordered(program, part.after, given)

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
            elif new in given:
                rows[f"after.{field}"] = self.layout.timed(new, given[new])
                rows[f"before.{field}"] = rows[f"after.{field}"]._replace(first=f"state.{field}")
            ring = Rows(f"carry.{field}", batch * wide, wide, ring=True)
            rows[f"carry.{field}"] = ring._replace(first=f"final.{field}")
            rows[f"passed.{field}"] = ring._replace(
                first=f"end.{field}" if self.sizes.fewer else ""
            )
            if field in keep:
                rows[f"grad.{field}"] = self.layout.timed(f"grad.{field}", given[f"grad.{field}"])

    def __call__(self, given: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Run it; the gradients by the names of the inputs."""
        program, steps, lead = self.layout.program, self.sizes.steps, self.sizes.lead(given)
        graph, values = program.graph, values_of(program, given)
        memory = self.layout.memory(given, like, values)
        scratch = memory[SCRATCH]
        for index in program.schedule.saved:
            values[index] = _truth(graph, index, given[f"saved.{index}"])
        carries = {}
        for field in program.fields:
            shape = given[f"state.{field}"].shape
            carries[field] = memory[f"carry.{field}"] = like.new_empty(2, *shape)
            if self.sizes.fewer:  # some have no step at all
                memory[f"end.{field}"] = given[f"final.{field}"].clone()
        for index, (inner, at) in self.kept.items():
            shape = (*lead, *inner)
            if at is None:
                kept = memory[f"kept.{index}"] = like.new_empty(shape)
            else:
                kept = scratch[at : at + math.prod(shape)].view(shape)
            values[index] = kept
        totals = {}
        for index, (at, count) in self.sums.items():
            total = scratch[at : at + self.sizes.threads * 2 * count].view(-1, 2, count)
            totals[index] = total.zero_()[:, 0]
        self.layout.run(memory)
        of_state = {
            f: memory[f"end.{f}"] if self.sizes.fewer else ring[(steps - 1) & 1]
            for f, ring in carries.items()
        }
        for index in self.kept:
            values[index] = _truth(graph, index, values[index])
        for index, total in totals.items():
            node = graph.nodes[index]
            inner = tuple(int(s) for s in graph.nodes[node.args[0]].shape[1:])
            total = total.sum(0).reshape(1, *inner)
            values[index] = total.sum_to_size(tuple(int(s) for s in node.shape))
        self._after(program, values, given, like)
        return interpreter.by_name(program, of_state, values)

    def _after(
        self,
        program: Program,
        values: dict[int, Tensor],
        given: Mapping[str, Tensor],
        like: Tensor,
    ) -> None:
        """Gradients of weights and of the input: products over all steps and rows."""
        rows = self.sizes.lead(given)
        for how, index in self.after:
            node = program.graph.nodes[index]
            if how == "old":
                values[index] = self._before(index, given)
            elif how == "outer":
                values[index] = self._outer(node.args, values, given)
            else:
                args = [values[a] for a in node.args]
                values[index] = interpreter.compute(node, args, rows, like)

    def _ordered(
        self, program: Program, after: Sequence[int], given: Mapping[str, Tensor]
    ) -> list[tuple[str, int]]:
        """What `_after` does, in an order in which it can."""
        graph = program.graph
        done = {graph.inputs[n] for n in given if n in graph.inputs and n not in self.olds.values()}
        done |= {*self.kept, *self.sums, *program.schedule.saved}
        order: list[tuple[str, int]] = []
        pending = list(reversed(after))
        while pending:
            index = pending[-1]
            node = graph.nodes[index]
            outer = node.op == "outer" and len(node.shape) == 2
            needed = [a for a in node.args if not (outer and self._is_recorded(a, given))]
            missing = [a for a in needed if a not in done]
            if index in done or not missing:
                pending.pop()
            else:
                pending.extend(missing)
                continue
            if index not in done:
                done.add(index)
                order.append(("outer" if outer else "old" if index in self.olds else "", index))
        return order

    def _is_recorded(self, index: int, given: Mapping[str, Tensor]) -> bool:
        """Whether a node is a state before each step, all of whose values are there."""
        return index in self.olds and self._history(index) in given

    def _history(self, index: int) -> str:
        """The name of the memory of the values after each step, of a state before it."""
        return f"saved.{self.news[index]}"

    def _before(self, index: int, given: Mapping[str, Tensor]) -> Tensor:
        """A state before every step, `(T, B, ...)` or `(N, ...)`."""
        if self.sizes.fewer:
            sizes, first = given[STARTS].diff(), given[self.olds[index]]
            if self.news[index] == index:
                return first.index_select(0, batches.places(sizes)[1])
            after = given[self._history(index)]
            return batches.before(after, first, sizes, reverse=self.sizes.reverse)
        initial = given[self.olds[index]][None]
        if self.news[index] == index:  # it never changes
            return initial.expand(self.sizes.steps, *initial.shape[1:])
        history = given[self._history(index)]
        if self.sizes.reverse:
            return torch.cat([history[1:], initial])
        return torch.cat([initial, history[:-1]])

    def _outer(
        self, args: Sequence[int], values: dict[int, Tensor], given: Mapping[str, Tensor]
    ) -> Tensor:
        """The sum over steps and rows of the products of a left and a right operand.

        The states before the steps are the initial one and those after every step but the last:
        they lie in two places, and so there are two products.
        """
        if self.sizes.fewer:
            for arg in args:
                if arg not in values:
                    values[arg] = self._before(arg, given)
        if all(arg in values for arg in args):
            left, right = (_flat(values[arg]) for arg in args)
            if right.shape[1] < _NARROW <= left.shape[1]:
                return (right.T @ left).T.contiguous()
            return left.T @ right
        first, others = (-1, slice(None, -1)) if self.sizes.reverse else (0, slice(1, None))
        past = slice(1, None) if self.sizes.reverse else slice(None, -1)
        edge, rest = [], []
        for arg in args:
            if arg in values:
                edge.append(_flat(values[arg][first]))
                rest.append(_flat(values[arg][others]))
            else:
                edge.append(_flat(given[self.olds[arg]]))
                rest.append(_flat(given[self._history(arg)][past]))
        return (edge[0].T @ edge[1]).addmm_(rest[0].T, rest[1])


def _truth(graph: Graph, index: int, numbers: Tensor) -> Tensor:
    """Truth values as torch has them; in a loop's memory they are 1 and 0."""
    return numbers != 0 if graph.nodes[index].boolean else numbers


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
