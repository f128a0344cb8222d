"""What is computed behind the loop of a backward pass: gradients of weights and of the input.

They are products over the steps and rows of a chunk, done when the loop has run its steps, by
`outer.py` where that is faster than torch. Sums over time and rows add up from chunk to chunk; what
is made of these is computed at the end.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from flexrnn.engine import batches, interpreter
from flexrnn.engine.compiler.graph import BATCH, Graph, Node
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.chunks import Chunk
from flexrnn.engine.cpu.kernel import STARTS
from flexrnn.engine.cpu.nodes import compute, cut_of, flat, pays, product, product_of_pieces
from flexrnn.engine.cpu.outer import Outer, is_faster, multiply
from flexrnn.engine.cpu.pieces import Cut
from flexrnn.engine.cpu.plan import Sizes
from flexrnn.engine.interpreter import Values

# Columns below which, and rows from which on, torch's product of the transposed matrices is the
# faster, and turning its result over included.
_THIN, _LONG = 64, 256
# Rows up to which products for the gradients of several parameters are done side by side, rather
# than a large one of which every gradient is a part, which has to be copied.
_FEW = 1024
_SUMS = ("outer", "batch_sum")  # over time and rows


class Call(NamedTuple):
    """What a call has at hand, and what it has found so far, by nodes."""

    program: Program
    given: Mapping[str, Tensor]
    like: Tensor
    whole: Values  # operands and what is saved, at all steps; what is made of parameters
    found: Values  # sums, and what has a row for every step, of the steps until now


class After:
    """What is computed behind a loop, laid out for one kind of call. It keeps no operand alive.

    Args:
        program: the program.
        after: the nodes that are computed; see `extract`.
        kept: nodes that the loop leaves behind at every step.
        sums: nodes that the loop sums up over all steps.
        sizes: of the call.
        names: of the operands and of what is saved.
        given: the operands.
        narrow: products round what they multiply to bfloat16.

    Attributes:
        splits: whether it can be done chunk by chunk. No sum over all steps is known before the
            last one, so what has a row for every step must not be made of one.
    """

    def __init__(
        self,
        program: Program,
        after: Sequence[int],
        kept: Iterable[int],
        sums: Iterable[int],
        sizes: Sizes,
        names: Collection[str],
        given: Mapping[str, Tensor],
        *,
        narrow: bool,
    ):
        graph = program.graph
        self.sizes, self.narrow = sizes, narrow
        self.olds = {graph.inputs[f"state.{f}"]: f"state.{f}" for f in program.fields}
        self.news = {i: graph.outputs[name] for i, name in self.olds.items()}
        inputs = {graph.inputs[name] for name in names if name in graph.inputs}
        operands = inputs - {*self.olds} | {*program.schedule.saved}
        found = (n for n in graph.outputs if n[:5] == "grad." and n[:11] != "grad.state.")
        self.roots = frozenset(graph.outputs[name] for name in found)
        self.once: list[int] = []  # made of parameters
        self.chunk: list[int] = []  # computed in every chunk, in front of its products
        self.ends: list[int] = []  # likewise, products of which nothing else is made
        self.late: list[int] = []  # made of sums
        self.splits = True
        rows = sizes.steps * sizes.batch
        self.weights = self._in_pieces(graph, {*kept}, rows, given)
        order = self._ordered(graph, after, {*operands, *kept, *sums}, names)
        sums, products = set(sums), list[int]()
        for index in order:
            node, timed = graph.nodes[index], _is_timed(graph, index)
            if sums.intersection(node.args):
                self.late.append(index)
                sums.add(index)
                self.splits &= not timed
            elif timed or any(_is_timed(graph, arg) for arg in node.args):
                (products if _is_outer(node) else self.chunk).append(index)
                if not timed:
                    assert node.op in _SUMS
                    sums.add(index)
            else:
                self.once.append(index)
        read = {arg for i in order for arg in graph.nodes[i].args}
        of_rows = (i for i in self.chunk if _is_of_rows(graph, i, rows))
        self.ends += (i for i in of_rows if i in self.roots and i not in read)
        self.chunk = [i for i in self.chunk if i not in self.ends]
        assert self.weights.keys() <= {*self.ends}
        self.parted: dict[int, list[int]] = {}
        own = is_faster()
        if own or rows <= _FEW:
            whole = (i for i in products if i not in self.roots)
            self.parted = {i: parts for i in whole if (parts := _parts(graph, i, order))}
        thin = (i for i in products if i not in self.parted and _is_thin(graph.nodes[i]))
        self.turned = frozenset(thin if rows >= _LONG and not own else ())
        self.groups = self._grouped(graph, products) if own else [[index] for index in products]
        self.read = tuple(i for i in sorted(read & operands) if _is_timed(graph, i))

    def _ordered(
        self, graph: Graph, after: Sequence[int], done: set[int], names: Collection[str]
    ) -> list[int]:
        """What is to be computed, in an order in which it can be."""
        done, order = set(done), list[int]()
        pending = list(reversed(after))
        while pending:
            index = pending[-1]
            node = graph.nodes[index]
            args = node.args[:1] if index in self.weights else node.args
            needed = [a for a in args if not (_is_outer(node) and self._is_recorded(a, names))]
            missing = [a for a in needed if a not in done]
            if index in done or not missing:
                pending.pop()
            else:
                pending.extend(missing)
                continue
            if index not in done:
                done.add(index)
                order.append(index)
        return order

    def _in_pieces(
        self, graph: Graph, kept: Set[int], rows: int, given: Mapping[str, Tensor]
    ) -> dict[int, Cut]:
        """Weights that lie in pieces, of products of all rows that the loop has left.

        They are the last: nothing else is made of them.
        """
        nodes = graph.nodes
        read = {arg for node in nodes for arg in node.args}
        last = (i for i in self.roots if i not in read and _is_timed(graph, i))
        of_kept = (i for i in last if nodes[i].args and nodes[i].args[0] in kept)
        found = {i: cut_of(graph, i, rows, given) for i in of_kept}
        return {index: weight for index, weight in found.items() if weight}

    def _grouped(self, graph: Graph, products: Iterable[int]) -> list[list[int]]:
        """Products that share an operand, which is laid out for all of them at once."""
        lefts: dict[int, list[int]] = {}
        for index in products:
            lefts.setdefault(graph.nodes[index].args[0], []).append(index)
        rights: dict[tuple[int, int], list[int]] = {}
        for index in (group[0] for group in lefts.values() if len(group) == 1):
            parts = len(self.parted.get(index, ()))
            rights.setdefault((graph.nodes[index].args[1], parts), []).append(index)
        return [*(group for group in lefts.values() if len(group) > 1), *rights.values()]

    def begin(self, call: Call, *, several: bool) -> None:
        """Compute what is made of parameters, and get memory for what chunks will fill.

        Args:
            call: of which nothing is known yet but what is at hand.
            several: there is more than one chunk.
        """
        graph, lead = call.program.graph, self.sizes.lead(call.given)
        interpreter.compute_nodes(call.program, self.once, call.whole, (), call.like)
        for index in (*(self.chunk if several else ()), *self.ends):
            if index in self.roots and _is_timed(graph, index):
                shape = interpreter.shape_of(graph.nodes[index], lead)
                call.found[index] = call.like.new_empty(shape)

    def add(self, call: Call, chunk: Chunk, kept: Mapping[int, Tensor]) -> Values:
        """Compute what follows from the steps of a chunk, and add it to what is found.

        Args:
            call: what is known.
            chunk: which steps.
            kept: what the loop has left of them.

        Returns:
            What has a row for every step, of these steps.
        """
        graph = call.program.graph
        span, lead = chunk.span(self.sizes), chunk.lead(self.sizes, call.given)
        values = call.whole | {i: _truth(graph, i, tensor) for i, tensor in kept.items()}
        for index in self.read:
            values[index] = _truth(graph, index, call.whole[index][span])
        for index in self.chunk:
            total = call.found.get(index)
            if index in self.olds:
                values[index] = _truth(graph, index, self._before(index, call.given, span))
            elif not _is_timed(graph, index):
                value = self._compute(call, index, values, lead)
                call.found[index] = value if total is None else total + value
            elif total is None:
                values[index] = self._compute(call, index, values, lead)
                if index in self.roots:
                    call.found[index] = values[index]
            else:
                values[index] = self._compute(call, index, values, lead, total[span])
        products = [self._outer(group, values, call, span) for group in self.groups]
        for index in self.ends:
            left, right = graph.nodes[index].args
            rows, into = values[left], call.found[index][span]
            if weight := self.weights.get(index):
                products.append(product_of_pieces(rows, weight, call.given, into))
            else:
                products.append(product(rows, values[right], into))
        self._multiply(products)
        return values

    def end(self, call: Call, values: Values) -> Values:
        """Compute what is made of sums, all of which are known now.

        Args:
            call: what is known.
            values: those of the last chunk, which is the only one where `splits` is false.

        Returns:
            All that was computed, with whatever is at hand.
        """
        for index in self.turned:
            call.found[index] = call.found[index].T.contiguous()
        parts: dict[int, Tensor] = {}
        for index, own in self.parted.items():  # each in one piece, as a parameter's gradient lies
            whole = call.found[index]
            parts |= {i: whole[k] for k, i in enumerate(own)}
        at_hand = {i: call.whole[i] for i in self.roots if i in call.whole}
        values = values | at_hand | call.found | parts
        whole = slice(0, self.sizes.steps)
        for index in self.late:
            if index in parts:
                continue
            if _is_outer(call.program.graph.nodes[index]):
                self._multiply([self._outer([index], values, call, whole)])
                values[index] = call.found[index]
            else:
                lead = self.sizes.lead(call.given)
                values[index] = self._compute(call, index, values, lead)
        return values

    def _compute(
        self,
        call: Call,
        index: int,
        values: Values,
        lead: tuple[int, ...],
        into: Tensor | None = None,
    ) -> Tensor:
        node = call.program.graph.nodes[index]
        args = [values[arg] for arg in node.args]
        threads, narrow = self.sizes.threads, self.narrow
        return compute(node, args, lead, call.like, threads, into, narrow=narrow)

    def _multiply(self, products: Sequence[Outer]) -> None:
        multiply(products, self.sizes.threads, narrow=self.narrow)

    def _is_recorded(self, index: int, names: Collection[str]) -> bool:
        """Whether a node is a state before each step, all of whose values are there."""
        return index in self.olds and self._history(index) in names

    def _history(self, index: int) -> str:
        """The name of the memory of the values after each step, of a state before it."""
        return f"saved.{self.news[index]}"

    def _before(self, index: int, given: Mapping[str, Tensor], span: slice) -> Tensor:
        """A state before every one of some steps, `(T, B, ...)` or `(N, ...)`."""
        first = given[self.olds[index]]
        if self.sizes.fewer:
            sizes = given[STARTS].diff()
            if self.news[index] == index:
                return batches.everywhere(first, sizes)
            after = given[self._history(index)]
            return batches.before(after, first, sizes, reverse=self.sizes.reverse)
        if self.news[index] == index:  # it never changes
            return first.expand(span.stop - span.start, *first.shape)
        past = given[self._history(index)][self._past(span)]
        if not self._begins(span):
            return past
        return torch.cat([past, first[None]] if self.sizes.reverse else [first[None], past])

    def _begins(self, span: slice) -> bool:
        """Whether the first step of the forward pass is among these."""
        return span.stop == self.sizes.steps if self.sizes.reverse else span.start == 0

    def _past(self, span: slice) -> slice:
        """The steps before these, but for what is before the first of all."""
        by = 1 if self.sizes.reverse else -1
        return slice(max(0, span.start + by), span.stop + by)

    def _outer(self, group: Sequence[int], values: Values, call: Call, span: slice) -> Outer:
        """What some steps add to sums of products of left and right operands."""
        nodes = call.program.graph.nodes
        args = [nodes[index].args for index in group]
        if group[0] in self.turned:
            args = [(right, left) for left, right in args]
        lefts, rights = (list(dict.fromkeys(some)) for some in zip(*args, strict=True))
        rows = self._rows({*lefts, *rights}, values, call.given, span)
        if adds := group[0] in call.found:
            totals = [call.found[index] for index in group]
        else:
            totals = [
                self._total(index, rows[left][0], rows[right][0], call)
                for index, (left, right) in zip(group, args, strict=True)
            ]
        return Outer(
            [rows[arg] for arg in lefts],
            [rows[arg] for arg in rights],
            [totals] if len(lefts) == 1 else [[total] for total in totals],
            adds,
        )

    def _total(self, index: int, left: Tensor, right: Tensor, call: Call) -> Tensor:
        """Memory for a sum of products."""
        shape = [left.shape[1], right.shape[1]]
        if parts := len(self.parted.get(index, ())):
            shape = [parts, shape[0], shape[1] // parts]
        call.found[index] = total = call.like.new_empty(shape)
        return total

    def _rows(
        self, args: Iterable[int], values: Values, given: Mapping[str, Tensor], span: slice
    ) -> dict[int, list[Tensor]]:
        """All rows `(N, ...)` of some operands for some steps, of each in as many pieces.

        The states before the steps are the initial one and those after every step but the last:
        they lie in two places, and so there are two pieces where the first step is among these.
        """
        if self.sizes.fewer:
            for arg in args:
                if arg not in values:
                    values[arg] = self._before(arg, given, span)
        if all(arg in values for arg in args):
            return {arg: [flat(values[arg])] for arg in args}
        found: dict[int, list[Tensor]] = {arg: [] for arg in args}
        first, others = (-1, slice(-1)) if self.sizes.reverse else (0, slice(1, None))
        begins, past = self._begins(span), self._past(span)
        for arg, pieces in found.items():
            if begins:
                whole = arg in values
                pieces.append(flat(values[arg][first] if whole else given[self.olds[arg]]))
            if arg in values:
                pieces.append(flat(values[arg][others] if begins else values[arg]))
            else:
                pieces.append(flat(given[self._history(arg)][past]))
        return found


def _truth(graph: Graph, index: int, numbers: Tensor) -> Tensor:
    """Truth values as torch has them; in a loop's memory they are 1 and 0."""
    return numbers != 0 if graph.nodes[index].boolean else numbers


def _is_timed(graph: Graph, index: int) -> bool:
    """Whether a node has rows at every step."""
    return BATCH in graph.nodes[index].shape


def _is_outer(node: Node) -> bool:
    """Whether a node is one large product."""
    return node.op == "outer" and len(node.shape) == 2


def _is_of_rows(graph: Graph, index: int, rows: int) -> bool:
    """Whether a node is the product of so many rows with a weight, and pays to be our library's."""
    node = graph.nodes[index]
    if node.op != "product":
        return False
    weight = [int(s) for s in graph.nodes[node.args[1]].shape]
    return len(weight) == 2 and pays(rows, weight)


def _is_thin(node: Node) -> bool:
    return int(node.shape[1]) < _THIN <= int(node.shape[0])


def _parts(graph: Graph, index: int, readers: Iterable[int]) -> list[int]:
    """The parts of a product, by columns, if nothing else is read of it and they are alike."""
    nodes = graph.nodes
    found = [i for i in readers if index in nodes[i].args]
    if len(found) < 2 or any(nodes[i].op != "slice" or nodes[i].attr("axis") != -1 for i in found):
        return []
    found.sort(key=lambda i: nodes[i].attr("start"))
    wide = int(nodes[index].shape[1]) // len(found)
    starts = [(nodes[i].attr("start"), nodes[i].attr("stop")) for i in found]
    alike = starts == [(k * wide, (k + 1) * wide) for k in range(len(found))]
    return found if alike and wide * len(found) == nodes[index].shape[1] else []
