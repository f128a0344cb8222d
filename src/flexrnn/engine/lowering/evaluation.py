"""Evaluation: how the nodes of a stage come into variables, in an order in which they can.

An engine says how each kind is written in its language; which operands a line reads, and what
needs no line, is the same for all.
"""

from collections.abc import Iterable, Sequence

from flexrnn.engine.compiler.called import of_input, with_names
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.stages import ALIASES, REDUCTIONS, Loop, Stage


class Evaluation:
    """Writes what is computed for some rows and units; subclasses know the language.

    Args:
        loop: whose stages are written.
    """

    comment: str  # how a remark begins
    number: int
    stage: Stage
    accumulators: Accumulators

    def __init__(self, loop: Loop):
        self.loop, self.graph, self.low = loop, loop.graph, loop.lowering
        self.names: dict[int, str] = {}  # node -> the variable that holds it

    def use(self, index: int) -> str:
        """The variable or literal that holds a node's value, computed where it is not yet."""
        pending = [index]
        while pending:  # no recursion, for a step may be longer than Python's stack is deep
            missing = [a for a in self._read(pending[-1]) if not self._is_at_hand(a)]
            if missing and not self._is_at_hand(pending[-1]):
                pending.extend(reversed(missing))
            else:
                self._define(pending.pop())
        constant = None if index in self.names else self.low.constant_of(index)
        return self.names[index] if constant is None else self.literal(constant)

    def remark(self, index: int) -> str:
        """Behind a line: the person's line that the node is from, where that is to be told."""
        place = self.graph.sources.get(index)
        return "" if place is None else f"  {self.comment} {place}"

    def readable(self, text: str, taken: Iterable[str]) -> str:
        """A text with the person's names of values, where those are to be told.

        Args:
            text: with every line that reads the variables.
            taken: words of the language that are no names.
        """
        if not self.graph.sources:
            return text
        called = {name: self._called(index) for index, name in self.names.items()}
        return with_names(text, called, taken, f"{self.comment} ")

    def _called(self, index: int) -> str:
        """What the person calls a node, or the memory that it is read from."""
        nodes = self.graph.nodes
        while index not in self.graph.called and nodes[index].op in ALIASES:
            index = nodes[index].args[0]
        if index in self.graph.called or nodes[index].op != "input":
            return self.graph.called.get(index, "")
        name = of_input(nodes[index].attr("name"), self.graph.inputs)
        kind, _, rest = name.partition(".")
        derivative = "d" if kind in ("carry", "grad") else ""
        return "" if rest.isdigit() else derivative + (rest or kind)

    def _is_at_hand(self, index: int) -> bool:
        """Whether a node needs no line of its own any more."""
        number = self.low.constant_of(index) is not None and not self.graph.nodes[index].boolean
        return number or index in self.names

    def _read(self, index: int) -> Sequence[int]:
        """What a node's line reads by name."""
        node, low = self.graph.nodes[index], self.low
        here = low.in_register(index, self.number, self.stage.domain)
        if here and (index in low.blocks or node.op in (*REDUCTIONS, "matmul")):
            return node.args[1:] if node.op in REDUCTIONS else ()
        inline = not low.rowed(index)  # of parameters alone
        if node.op not in OPS or not (here or inline):
            return ()
        terms = self.accumulators.sums.get(index)
        return node.args if terms is None else terms[1]

    def _define(self, index: int) -> None:
        if self._is_at_hand(index):
            return
        node, low = self.graph.nodes[index], self.low
        here = low.in_register(index, self.number, self.stage.domain)
        read = [self.use(a) for a in self._read(index)]
        if here and index in low.blocks:
            self.names[index] = self.block(index)
        elif here and node.op in REDUCTIONS:
            self.names[index] = self.total(index)
        elif here and node.op == "matmul":
            self.names[index] = self.matmul(index)
        elif index in self.accumulators.sums:
            total = self.accumulator(self.accumulators.sums[index][0])
            self.names[index] = self.assign(index, " + ".join([total, *read]))
        elif node.op in OPS and (here or not low.rowed(index)):
            self.names[index] = self.assign(index, self.operation(index, read))
        else:
            self.names[index] = self.load(index)

    # In a language ----------------------------------------------------------------------------

    def literal(self, value: float) -> str:
        """A number."""
        raise NotImplementedError

    def assign(self, index: int, text: str) -> str:
        """A new variable for a node's value, and the line that sets it."""
        raise NotImplementedError

    def accumulator(self, number: int) -> str:
        """The expression of a sum of products."""
        raise NotImplementedError

    def block(self, index: int) -> str:
        """The variable of a block of a product's columns."""
        raise NotImplementedError

    def total(self, index: int) -> str:
        """The variable with what a row's reduction has found in all."""
        raise NotImplementedError

    def matmul(self, index: int) -> str:
        """The variable of a product of two matrices of a row."""
        raise NotImplementedError

    def operation(self, index: int, read: list[str]) -> str:
        """The expression of an elementwise operation on operands that are written."""
        raise NotImplementedError

    def load(self, index: int) -> str:
        """The variable of what lies in memory."""
        raise NotImplementedError
