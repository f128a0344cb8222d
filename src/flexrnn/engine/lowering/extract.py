"""What of a program runs inside generated loops, as graphs of their own, and what is left of it.

Two graphs come out, one a direction in time. Their inputs are what lies in memory:

    x0            a row of the layer's input          hoisted.I    a product, done for all steps
    before.F      the state before the step           const.F      a state that never changes
    param.N       a parameter                         once.I       made of parameters
    saved.I       what the forward pass has saved     after.F      the state after the step
    carry.F       the loss's derivative by the state  grad.F       its part that comes from outside

and their outputs `after.F`, `saved.I`, `passed.F` (to the step before), `kept.I` (at every step,
for what is done after the loop) and `sum.I` (summed over batch and time). `I` is a node of the
program.
"""

from collections.abc import Iterable
from typing import NamedTuple

from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.pretty import lines_of
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.split import Dependence, dependences
from flexrnn.engine.lowering.places import lies_whole

_ALIASES = ("slice", "reshape", "expand", "detach", "opaque", "constant")


class Part(NamedTuple):
    """One loop, and the nodes of the program that are computed after it."""

    graph: Graph
    after: tuple[int, ...]  # products over the batch and what follows from them


class Extract(NamedTuple):
    """A program, divided."""

    forward: Part
    backward: Part | None
    constant: frozenset[str]  # fields whose new value is the old one
    recorded: frozenset[str]  # fields whose every value the backward pass reads


def extract(
    program: Program,
    *,
    hoist: bool,
    keep: Iterable[str],
    sum_inside: bool = True,
    lines: bool = False,
) -> Extract:
    """Divide a program.

    Args:
        program: what to run.
        hoist: products of the input are done for all steps at once, before the loop; otherwise
            they are done step by step in it, beside those of the state.
        keep: fields whose derivative comes from outside at every step.
        sum_inside: the loop sums over batch and time; otherwise torch does, once it is done.
        lines: nodes keep the person's lines, as a loop's source calls them. What is compiled goes
            without, for equal loops are one library.
    """
    graph, plan = program
    constant = frozenset(
        f for f in program.fields if graph.outputs[f"state.{f}"] == graph.inputs[f"state.{f}"]
    )
    news: dict[int, str] = {}  # of fields that get one value, the first
    for field in program.fields:
        if field not in constant:
            news.setdefault(graph.outputs[f"state.{field}"], field)
    recorded = frozenset(f for i, f in news.items() if i in plan.saved)
    forward = _Forward(program, constant, hoist)
    for field in program.fields:
        if field not in constant:
            forward.output(f"after.{field}", graph.outputs[f"state.{field}"])
    for index in plan.saved:
        if index not in news and not forward.is_hoisted(index):
            forward.output(f"saved.{index}", index)
    backward = None
    if any(name.startswith("grad.") for name in graph.outputs):
        backward = _backward(program, constant, news, keep, sum_inside)
    parts = Extract(forward.part(), backward, constant, recorded)
    names = lines_of(graph) if lines else {}
    for part in filter(None, parts[:2]):
        sources = part.graph.sources.items()
        part.graph.sources = {i: names[place] for i, place in sources if place in names}
    return parts


class _Loop:
    """Copies nodes of a program into the graph of a loop, down to what lies in memory."""

    def __init__(self, program: Program, constant: frozenset[str]):
        self.source, self.plan = program
        self.constant = constant
        self.depends = dependences(self.source)
        self.inline = _inlined(self.source)
        self.graph = Graph()
        self.where: dict[int, int] = {}

    def output(self, name: str, index: int) -> None:
        self.graph.outputs[name] = self.copy(index)

    def copy(self, index: int) -> int:
        """The node of the loop's graph that stands for a node of the program."""
        pending = [index]
        while pending:
            node = self.source.nodes[pending[-1]]
            if pending[-1] not in self.where:
                found = self.in_memory(pending[-1])
                if found is None:
                    # A weight is packed as it lies in memory, also where it is made of parameters.
                    args = node.args[:1] if node.op == "product" else node.args
                    missing = [a for a in args if a not in self.where]
                    if missing:
                        pending.extend(reversed(missing))
                        continue
                    copies = [self.where[a] for a in args]
                    copies += [self._weight(a) for a in node.args[len(args) :]]
                    if node.op in ("detach", "opaque"):  # nobody differentiates a loop
                        found = copies[0]
                    else:
                        found = self.graph.add(node.op, *copies, **dict(node.attrs))
                if pending[-1] in self.source.sources:
                    self.graph.sources.setdefault(found, self.source.sources[pending[-1]])
                if pending[-1] in self.source.called:
                    self.graph.called.setdefault(found, self.source.called[pending[-1]])
                self.where[pending[-1]] = found
            pending.pop()
        return self.where[index]

    def in_memory(self, index: int) -> int | None:
        """An input of the loop for a node that lies in memory, None for one to compute."""
        node = self.source.nodes[index]
        if node.op == "input":
            return self.operand(node.attr("name"), index)
        if self.depends[index] == Dependence.PARAMETER and not self.inline[index]:
            return self.input(f"once.{index}", index)
        return None

    def _weight(self, index: int) -> int:
        if self.source.nodes[index].op == "input":
            return self.copy(index)
        return self.input(f"once.{index}", index)

    def operand(self, name: str, index: int) -> int:
        """An input of the program."""
        if name.startswith("state."):
            field = name[6:]
            return self.input(("const." if field in self.constant else "before.") + field, index)
        return self.input(name, index)

    def input(self, name: str, index: int) -> int:
        node = self.source.nodes[index]
        if name in self.graph.inputs:
            return self.graph.inputs[name]
        return self.graph.input(name, node.shape, node.boolean)


def _inlined(graph: Graph) -> list[bool]:
    """Of every node, whether it is made of parameters and as well computed where it is used."""
    lies: list[bool] = []  # it is a parameter, a constant, or a part of one
    inline: list[bool] = []
    for node, users in zip(graph.nodes, graph.users(), strict=True):
        parts = all(lies[a] for a in node.args)
        alias = node.op in _ALIASES
        if node.op == "reshape":
            parts &= lies_whole(graph, node.args[0])
        cheap = node.op in OPS and OPS[node.op].cheap and BATCH not in node.shape
        # Others read it in memory; and what is the largest of a row is looked for by torch.
        cheap &= all(graph.nodes[u].op not in (*_ALIASES, "amax") for u in users)
        lies.append(node.op in ("input", "constant") or (alias and parts))
        inline.append(parts if alias else cheap and all(lies[a] or inline[a] for a in node.args))
    return inline


class _Forward(_Loop):
    def __init__(self, program: Program, constant: frozenset[str], hoist: bool):
        super().__init__(program, constant)
        self.hoist = hoist

    def is_hoisted(self, index: int) -> bool:
        """Whether a node is computed for all steps at once, before the loop."""
        product = self.source.nodes[index].op == "product"
        return self.hoist and product and self.depends[index] == Dependence.INPUT

    def in_memory(self, index: int) -> int | None:
        if self.is_hoisted(index):
            return self.input(f"hoisted.{index}", index)
        return super().in_memory(index)

    def part(self) -> Part:
        return Part(self.graph, ())


class _Backward(_Loop):
    def __init__(
        self,
        program: Program,
        constant: frozenset[str],
        news: dict[int, str],
        keep: Iterable[str],
    ):
        super().__init__(program, constant)
        self.news, self.keep = news, set(keep)
        self.saved = set(self.plan.saved)

    def in_memory(self, index: int) -> int | None:
        if index in self.saved:
            name = f"after.{self.news[index]}" if index in self.news else f"saved.{index}"
            return self.input(name, index)
        return super().in_memory(index)

    def operand(self, name: str, index: int) -> int:
        if not name.startswith("cotangent."):
            return super().operand(name, index)
        field = name.removeprefix("cotangent.")
        carry = self.input(f"carry.{field}", index)
        if field not in self.keep:
            return carry
        return self.graph.add("add", carry, self.input(f"grad.{field}", index))


def _backward(
    program: Program,
    constant: frozenset[str],
    news: dict[int, str],
    keep: Iterable[str],
    sum_inside: bool,
) -> Part:
    graph, plan = program
    loop = _Backward(program, constant, news, keep)
    for field in program.fields:
        name = f"grad.state.{field}"
        if name in graph.outputs:
            loop.output(f"passed.{field}", graph.outputs[name])
        else:
            zero = loop.graph.constant(0.0)
            shape = graph.nodes[graph.inputs[f"state.{field}"]].shape
            loop.graph.outputs[f"passed.{field}"] = loop.graph.add("expand", zero, shape=shape)
    after: set[int] = set()  # what is computed once the loop is done
    for index in plan.after:
        node = graph.nodes[index]
        if node.op in ("outer", "product", "batch_sum") or after.intersection(node.args):
            after.add(index)
    roots = [i for name, i in graph.outputs.items()
             if name.startswith("grad.") and not name.startswith("grad.state.")]  # fmt: skip
    needed = graph.ancestors(roots)
    for index in sorted(after & needed):
        node = graph.nodes[index]
        if sum_inside and node.op == "batch_sum" and node.args[0] not in after:
            loop.output(f"sum.{index}", node.args[0])
            continue
        for arg in node.args:
            if arg not in after and not _at_hand(loop, arg):
                loop.output(f"kept.{arg}", arg)
    for index in roots:
        if index not in after and not _at_hand(loop, index):
            loop.output(f"kept.{index}", index)
    return Part(loop.graph, tuple(sorted(after & needed)))


def _at_hand(loop: _Backward, index: int) -> bool:
    """Whether torch has a value for all steps without the loop's help."""
    node = loop.source.nodes[index]
    given = node.op == "input" and not node.attr("name").startswith("cotangent.")
    return given or index in loop.saved or loop.depends[index] == Dependence.PARAMETER
