"""From the graph of one loop to the stages that a thread goes through at every step.

A stage is one pass over a domain: G heads of W units, for every row of the batch. Products of a
stage come first, tile by tile, and what is computed from their tile follows while it lies in the
first-level cache. A node belongs into the earliest stage in which its operands can be had; a value
that a later stage reads, or that is read elsewhere than where it was computed, goes to memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.lowering.copies import with_copies
from flexrnn.engine.lowering.joined import join_sums
from flexrnn.engine.lowering.moments import gather_moments
from flexrnn.engine.lowering.places import Domain, Place, domain_of, in_one_piece, sizes_of
from flexrnn.engine.lowering.sink import sink
from flexrnn.engine.step import CannotRunError

REDUCTIONS = ("sum", "amax", "moment")
ALIASES = ("slice", "reshape", "expand", "transpose")


class Store(NamedTuple):
    """A value of a stage and where it goes."""

    node: int
    place: Place


@dataclass
class Product:
    """A product of a stage. Its blocks are columns `j·W ... (j+1)·W`, for units 0 ... W of each."""

    node: int
    left: int
    weight: int
    blocks: dict[int, int] = field(default_factory=dict)  # column block -> node


@dataclass
class Stage:
    """One pass over a domain."""

    domain: Domain
    products: list[Product] = field(default_factory=list)
    values: list[int] = field(default_factory=list)  # elementwise nodes, in an order to compute
    stores: list[Store] = field(default_factory=list)
    reduced: list[int] = field(default_factory=list)  # `sum` and `amax` nodes gathered here
    totals: list[int] = field(default_factory=list)  # `total` nodes that are added up here
    sums: list[Store] = field(default_factory=list)  # over the batch and time
    # Every thread may compute all of it for itself: it is one number a row, nobody else reads what
    # it writes before the next step but what is in `Loop.copied`, and it sums nothing.
    alone: bool = False
    # Of a stage before it, whose number this is, every thread goes through its units once more, for
    # `moment` nodes: it reads only what itself has written, and need not wait for others.
    again: int | None = None


class Loop(NamedTuple):
    """Stages in their order, and where everything lies."""

    graph: Graph
    stages: list[Stage]
    temporaries: dict[str, int]  # name -> numbers a row
    partial: dict[int, Domain]  # reduction -> the domain it gathers over
    sums: dict[str, int]  # name of an output `sum.I` -> how many numbers
    copied: set[str]  # temporaries of which every thread may have one
    lowering: "Lowering"

    @property
    def waits(self) -> list[int]:
        """The stages behind which threads that share units meet: others read its results."""
        before = [s.alone or behind.again is not None for s, behind in pairwise(self.stages)]
        return [k for k, ready in enumerate([*before, False]) if not ready]

    def partial_name(self, index: int) -> str:
        """The name of the memory of what parts of a row have given to a reduction."""
        return f"partial.{sorted(self.partial).index(index)}"

    def reduction_of(self, name: str) -> int:
        """The reduction of which that is the memory."""
        return sorted(self.partial)[int(name.removeprefix("partial."))]


def lower(graph: Graph, *, again: bool, flat: bool = False) -> Loop:
    """Divide the graph of a loop into stages.

    Args:
        graph: of the loop.
        again: a thread finds the squares of its part of a row (see `moments.py`) when it goes
            through it once more, and not with the sum, from what it still holds.
        flat: of heads of one number each, such as what a sum over a row of each leaves, several
            are computed at once, as if they were units.
    """
    join_sums(graph)
    lowering = Lowering(gather_moments(with_copies(graph)), again=again, flat=flat)
    for index in sorted(lowering.alive):
        lowering.assign(index)
    sink(lowering)
    lowering.settle()
    low = lowering
    return Loop(low.graph, low.stages, low.temporaries, low.partial, low.sums, low.copied, low)


class Lowering:
    """Decides for each node in which stage it is computed and where it lies."""

    def __init__(self, graph: Graph, *, again: bool, flat: bool):
        self.graph, self.again, self.flat = graph, again, flat
        self.nodes = graph.nodes
        self.users = graph.users()
        self.alive = graph.ancestors(list(graph.outputs.values()))
        self.stages: list[Stage] = []
        self.stage: dict[int, int] = {}  # value or product -> its stage
        self.blocks: dict[int, tuple[int, int]] = {}  # node -> (product, column block)
        self.behind: set[int] = set()  # values of products by heads of one column, and made of them
        self.memory: dict[int, Place] = {}
        self.temporaries: dict[str, int] = {}
        self.partial: dict[int, Domain] = {}
        self.gathered: dict[int, int] = {}  # reduction -> the stage that goes over its operand
        self.sums: dict[str, int] = {}
        self.copied: set[str] = set()

    # Which stage ------------------------------------------------------------------------------

    def assign(self, index: int) -> None:
        """Put a node into the earliest stage that can compute it."""
        node = self.nodes[index]
        if node.op in ("input", "constant", *ALIASES) or not self.rowed(index):
            pass
        elif node.op == "concat":
            self.stage[index] = max(self.stage[a] for a in node.args)
        elif node.op == "product":
            self._assign_product(index)
        elif node.op in REDUCTIONS:
            self._assign_reduction(index)
        elif node.op == "total":
            self._assign_total(index)
        elif node.op in OPS or node.op == "matmul":
            if self.domain(index).behind and any(
                a in self.behind or a in self.blocks for a in node.args
            ):
                self.behind.add(index)  # while the product's tile is there
            domain = self.domain(index)
            own = None if node.op == "matmul" else domain
            ready = max((self._ready(a, own) for a in node.args), default=0)
            self.stage[index] = self._place_in(domain, ready)
            self.stages[self.stage[index]].values.append(index)
        else:
            raise CannotRunError(f"generated code has no form of {node.op} inside a loop")

    def _assign_reduction(self, index: int) -> None:
        node = self.nodes[index]
        domain = self.domain(node.args[0])
        gather = last = self._place_in(domain, self._ready(node.args[0], domain))
        if self.again and any(self.nodes[u].op == "moment" for u in self.users[index]):
            last = self._again(gather)  # both are ready behind it
        elif self.again and node.op == "moment":
            gather = last = self._again(self.gathered[node.args[1]])
        self.stages[gather].reduced.append(index)
        self.partial[index], self.gathered[index] = domain, gather
        final = self._place_in(self.domain(index), last + 1)
        self.stage[index] = final
        self.stages[final].values.append(index)

    def _assign_total(self, index: int) -> None:
        (term,) = self.nodes[index].args
        domain = self.domain(term)
        number = self._place_in(domain, self._ready(term, domain), beside="totals")
        self.stages[number].totals.append(index)
        self.stage[index] = self.gathered[index] = number

    def _again(self, number: int) -> int:
        """The stage that goes through the units of another once more."""
        for k, stage in enumerate(self.stages):
            if stage.again == number:
                return k
        self.stages.append(Stage(self.stages[number].domain, again=number))
        return len(self.stages) - 1

    def _assign_product(self, index: int) -> None:
        left, weight = self.nodes[index].args
        outer, columns, _ = self.domain(index)
        width = self._block_width(index, columns)
        product = Product(index, left, weight)
        domain = Domain(outer, width)
        if len(self.nodes[weight].shape) == 3 and len(outer) != 1:
            raise CannotRunError("generated code has no products by heads of more than one axis")
        ready = self._ready(left, None)
        self.stage[index] = self._place_in(domain, ready, beside="products")
        self.stages[self.stage[index]].products.append(product)
        if width == columns:
            product.blocks[0] = index
            self.blocks[index] = (index, 0)
            return
        for user in self.users[index]:
            if user in self.alive:
                block = self.nodes[user].attr("start") // width
                product.blocks[block] = user
                self.blocks[user] = (index, block)
                self.stage[user] = self.stage[index]

    def _block_width(self, index: int, columns: int) -> int:
        """W where every reader of a product takes columns `j·W ... (j+1)·W` of it."""
        users = [self.nodes[u] for u in self.users[index] if u in self.alive]
        if index in self.graph.outputs.values():
            return columns
        if not all(u.op == "slice" and u.attr("axis") == -1 for u in users):
            return columns
        widths = {u.attr("stop") - u.attr("start") for u in users}
        width = widths.pop()
        aligned = not widths and all(u.attr("start") % width == 0 for u in users)
        return width if aligned and columns % width == 0 else columns

    def _place_in(self, domain: Domain, earliest: int, beside: str = "values") -> int:
        """A stage over a domain; products and totals, for which units go otherwise, do not meet."""
        for k in range(earliest, len(self.stages)):
            stage = self.stages[k]
            others = {"products": stage.totals, "totals": stage.products}.get(beside)
            if stage.domain == domain and stage.again is None and not others:
                return k
        self.stages.append(Stage(domain))
        return len(self.stages) - 1

    def _ready(self, index: int, domain: Domain | None) -> int:
        """The first stage that can read a node: where it is computed, if over the same domain.

        Args:
            index: a node.
            domain: of the reader; None where it reads more than its own unit.
        """
        node = self.nodes[index]
        if index in self.blocks:
            stage = self.stage[index]
            return stage if self.stages[stage].domain == domain else stage + 1
        if node.op in ALIASES:
            return self._ready(node.args[0], None)
        if index not in self.stage:
            return 0
        apart = node.op in ("concat", "total")
        same = not apart and self.stages[self.stage[index]].domain == domain
        return self.stage[index] + (0 if same else 1)

    def domain(self, index: int) -> Domain:
        """What a stage that computes a node goes over."""
        node = self.nodes[index]
        flat = self.flat and node.op != "product" and index not in self.behind
        return domain_of(node.shape, flat=flat)

    def rowed(self, index: int) -> bool:
        """Whether a node has a value for every row of the batch."""
        return BATCH in self.nodes[index].shape

    def constant_of(self, index: int) -> float | None:
        """The number that a node is everywhere, if it is one."""
        node = self.nodes[index]
        while node.op in ALIASES:
            node = self.nodes[node.args[0]]
        return node.attr("value") if node.op == "constant" else None

    # Where it lies ----------------------------------------------------------------------------

    def settle(self) -> None:
        """Give memory to outputs, to concatenations, and to what is read out of its stage."""
        outputs: dict[int, list[str]] = {}
        for name, index in self.graph.outputs.items():
            if name.startswith("sum."):
                self._sum(name, index)
            else:
                outputs.setdefault(index, []).append(name)
        for stage in self.stages:
            stage.alone = self._is_alone(stage)
        for index in sorted(self.alive):  # first of all, so that temporaries need not be
            if index in outputs and index in self.stage and self.stages[self.stage[index]].alone:
                self._write(index, self._temporary(index))
            for name in outputs.get(index, ()):
                self._write(index, self._in_one_piece(name, index))
        for index in sorted(self.alive):
            read = any(user in self.alive for user in self.users[index])  # else it is only summed
            if self.nodes[index].op == "concat" and index not in self.memory and read:
                self._write(index, self._temporary(index))
        for number, stage in enumerate(self.stages):
            for product in stage.products:
                self.place(product.left)
            for index in list(stage.values):
                node = self.nodes[index]
                if node.op == "matmul":
                    for arg in node.args:
                        self.place(arg)
                    continue
                # Of a reduction the row was read when it was gathered.
                first = 1 if node.op in REDUCTIONS else 0
                for arg in node.args[first:]:
                    self._make_readable(arg, number, self.domain(index))
            for index in [*stage.reduced, *stage.totals]:
                arg = self.nodes[index].args[0]
                self._make_readable(arg, number, self.domain(arg))

    def _is_alone(self, stage: Stage) -> bool:
        if stage.domain != Domain((), 1) or stage.products or stage.reduced:
            return False
        if any(self.nodes[u].op == "concat" for v in stage.values for u in self.users[v]):
            return False  # it lies in one place, which other stages write too
        names = (n for n, index in self.graph.outputs.items() if index in stage.values)
        return all(name.startswith(("saved.", "kept.")) for name in names)

    def in_register(self, index: int, stage: int, domain: Domain) -> bool:
        """Whether a stage over a domain has a node at hand without reading memory."""
        if index not in self.stage or self.nodes[index].op in ("concat", "total"):
            return False
        return self.stage.get(index) == stage and self.stages[stage].domain == domain

    def _make_readable(self, index: int, stage: int, domain: Domain) -> None:
        node = self.nodes[index]
        if self.in_register(index, stage, domain) or self.constant_of(index) is not None:
            return
        if not self.rowed(index) and node.op in OPS:
            for arg in node.args:
                self._make_readable(arg, stage, domain)
        else:
            self.place(index)

    def place(self, index: int) -> Place:
        """Where a node lies in memory; a value that lies nowhere gets a place."""
        if index in self.memory:
            return self.memory[index]
        node = self.nodes[index]
        if node.op == "constant":
            raise CannotRunError("generated code reads a number where it wants a tensor")
        if node.op == "input":
            self.memory[index] = self._in_one_piece(node.attr("name"), index)
        elif node.op in ALIASES and index not in self.blocks:
            self.memory[index] = self._alias(index)
        else:
            self._write(index, self._temporary(index))
        return self.memory[index]

    def _alias(self, index: int) -> Place:
        node = self.nodes[index]
        base = self.place(node.args[0])
        sizes = sizes_of(node.shape)
        match node.op:
            case "slice":
                return base.sliced(node.attr("axis"), node.attr("start"))
            case "expand":
                return base.stretched(sizes_of(self.nodes[node.args[0]].shape), len(sizes))
            case "transpose":
                return base.turned()
            case "reshape":
                return in_one_piece(base.buffer, sizes)._replace(offset=base.offset)
        return base

    def _in_one_piece(self, buffer: str, index: int) -> Place:
        return in_one_piece(buffer, sizes_of(self.nodes[index].shape))

    def _temporary(self, index: int) -> Place:
        name = f"temporary.{len(self.temporaries)}"
        self.temporaries[name] = math.prod(sizes_of(self.nodes[index].shape))
        if index in self.stage and self.stages[self.stage[index]].alone:
            self.copied.add(name)
        return self._in_one_piece(name, index)

    def _write(self, index: int, place: Place) -> None:
        """Let the stage that computes a node store it; the first place is where it is read."""
        self.memory.setdefault(index, place)
        node = self.nodes[index]
        if node.op != "concat":
            self.stages[self.stage[index]].stores.append(Store(index, place))
            return
        for arg, part in self._parts(index, place):
            self.stages[self.stage[arg]].stores.append(Store(arg, part))

    def _parts(self, index: int, place: Place) -> Iterator[tuple[int, Place]]:
        """The parts of a concatenation, and where each lies."""
        axis, start = self.nodes[index].attr("axis"), 0
        for arg in self.nodes[index].args:
            yield arg, place.sliced(axis, start)
            start += int(self.nodes[arg].shape[axis])

    def _sum(self, name: str, index: int) -> None:
        """Sum a value over batch and time, where it is computed."""
        sizes = sizes_of(self.nodes[index].shape)
        self.sums[name] = math.prod(sizes)
        place = in_one_piece(name, sizes)
        whole = [(index, place)]
        parts = self._parts(index, place) if self.nodes[index].op == "concat" else whole
        for arg, part in parts:
            self.stages[self.stage[arg]].sums.append(Store(arg, part))
