"""A program as a person reads it: formulas, stage by stage."""

from collections.abc import Sequence
from itertools import count
from linecache import getline
from pathlib import Path
from textwrap import shorten
from typing import Any

from flexrnn.engine.compiler.ahead import Ref
from flexrnn.engine.compiler.called import of_input
from flexrnn.engine.compiler.graph import BATCH, Graph, Node, Shape
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.schedule import saved_floats

_HEADS = {
    "once": "once a call",
    "hoisted": "before the loop, all T steps at once",
    "loop": "the loop, step by step",
    "prepare": "backward, once a call",
    "reverse": "backward loop, from the last step to the first",
    "after": "after it, all T steps at once",
}
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "lt": "<", "ge": ">=",
          "le": "<=", "eq": "==", "ne": "!=", "product": "@", "matmul": "@"}  # fmt: skip
_LONGEST = 60  # characters of a formula
_WIDEST = 80  # characters of a person's line
_SHORT = 16  # of an operand for which a line of its own would gain nothing
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "@": 3}


def pretty(program: Program) -> str:
    """The program's formulas by stage; a value that is used once stands where it is used."""
    graph, plan = program
    blocks, names = [], _Names(graph)
    if graph.ahead is not None:
        blocks.append("\n".join(["once a call, by torch", *(f"    {row}" for row in _made(graph))]))
    saved = set(plan.saved)
    for stage, head in _HEADS.items():
        indices = getattr(plan, stage)
        printer = _Printer(graph, indices, saved | set(plan.kept), names)
        rows = [printer.row(i, "  (saved)" if stage == "loop" and i in saved else "")
                for i in indices if printer.has_row(i)]  # fmt: skip
        if rows:
            blocks.append("\n".join([head, *(f"    {row}" for row in rows)]))
    if plan.reverse or plan.after:
        blocks.append(f"saved for the backward pass: {saved_floats(graph, plan)} numbers a step")
    return "\n\n".join(blocks)


def lines_of(graph: Graph) -> dict[str, str]:
    """Where nodes are from in the person's code, and what a remark calls that.

    The number of a line, and its file where they are in several.
    """
    places = (place for place in graph.sources.values() if place.rpartition(":")[2].isdigit())
    found = {place: Path(place.removeprefix("at ")).name for place in places}
    files = {name.rpartition(":")[0] for name in found.values()}
    if len(files) == 1:
        return {place: f"line {name.rpartition(':')[2]}" for place, name in found.items()}
    return found


def origins(program: Program) -> list[str]:
    """The person's lines that nodes are from, as remarks in a source call them, with their text.

    A program that was read from a text knows none, and a file may be gone.
    """
    names = lines_of(program.graph)
    where = {place: place.removeprefix("at ").rpartition(":") for place in names}
    base = {place: Path(file).name for place, (file, _, _) in where.items()}
    # By name first: the same wherever the files lie.
    order = sorted(names, key=lambda p: (base[p], where[p][0], int(where[p][2])))
    if not order:
        return []
    files = ", ".join(dict.fromkeys(base[place] for place in order))
    width = max(map(len, names.values()))
    rows = [f"Behind a formula stands the line of {files} that it is from, or a derivative of:"]
    for place in order:
        file, _, line = where[place]
        text = shorten(getline(file, int(line)), _WIDEST, placeholder=" ...")
        rows.append(f"    {names[place]:<{width}}  {text}".rstrip())
    return rows


def formulas(graph: Graph) -> str:
    """A graph's formulas, before it has a schedule."""
    needed = graph.ancestors(list(graph.outputs.values()))
    indices = [i for i in sorted(needed) if graph.nodes[i].op != "input"]
    printer = _Printer(graph, indices, set(), _Names(graph))
    return "\n".join(printer.row(i) for i in indices if printer.has_row(i))


class _Names:
    """What formulas call nodes, the same in all stages.

    By the name that the person has for it, or else a number; a new state is what it becomes.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.outputs: dict[int, list[str]] = {}
        for name, index in graph.outputs.items():
            self.outputs.setdefault(index, []).append(_output_name(name))
        given = {i: of_input(name, graph.inputs) for name, i in graph.inputs.items()}
        self.known = {index: _input_name(name) for index, name in given.items()}
        self.taken, self.unnamed = {*self.known.values()}, 0

    def of(self, index: int) -> str:
        """The name of a node, which gets one when it is first asked for."""
        if index not in self.known:
            self.known[index] = self._new(index)
        return self.known[index]

    def _new(self, index: int) -> str:
        states = [name for name in self.outputs.get(index, []) if name.endswith("'")]
        if states:
            return states[0]
        called = self.graph.called.get(index)
        if called:
            names = (f"{called}_{k}" if k else called for k in count())
        else:
            self.unnamed += 1
            names = (f"v{k}" for k in count(self.unnamed))
        found = next(name for name in names if name not in self.taken)
        self.taken.add(found)
        return found


class _Printer:
    """Formulas of the nodes of one stage."""

    def __init__(self, graph: Graph, indices: Sequence[int], named: set[int], names: "_Names"):
        self.graph, self.outputs = graph, names.outputs
        self.names = _Names(graph)  # for measuring; nothing is printed yet
        here = set(indices)
        users = graph.users()
        self.read = {i for i, readers in enumerate(users) if readers}
        self.inline = {i for i, node in enumerate(graph.nodes) if node.op == "constant"}
        for i in indices:
            self._shorten(i)
            once = len(users[i]) == 1 and self._reads(users[i], i) == 1
            kept = i in self.outputs or i in named or not set(users[i]) <= here
            if not kept and (once or graph.nodes[i].op == "slice"):
                self.inline.add(i)
        self.names = names  # of the nodes with a line of their own, shared by all stages

    def _shorten(self, index: int) -> None:
        """Give the longest operands lines of their own until the formula fits one."""
        longest = _SHORT if self.graph.nodes[index].op == "concat" else _LONGEST
        while len(self._formula(index)[0]) > longest:
            operands = [a for a in self.graph.nodes[index].args if a in self.inline]
            sized = [(len(self._formula(a)[0]), a) for a in operands]
            if not sized or max(sized)[0] <= _SHORT:
                return
            self.inline.remove(max(sized)[1])

    def _reads(self, users: list[int], index: int) -> int:
        return sum(self.graph.nodes[u].args.count(index) for u in users)

    def has_row(self, index: int) -> bool:
        """Whether a node has a line of its own."""
        return index not in self.inline

    def row(self, index: int, note: str = "") -> str:
        """`name = formula   shape`."""
        formula = self._formula(index)[0]  # names what it reads before it is named itself
        names = self.outputs.get(index, [])
        if not names or (index in self.read and self.names.of(index) not in names):
            names = [*names, self.names.of(index)]
        names = " = ".join(names)
        shape = _shape(self.graph.nodes[index].shape)
        left = f"{names} = {formula}"
        return f"{left:<60} {shape}{note}"

    def _use(self, index: int, strength: int = 0) -> str:
        if index not in self.inline:
            return self.names.of(index)
        formula, own = self._formula(index)
        return f"({formula})" if own < strength else formula

    def _formula(self, index: int) -> tuple[str, int]:
        """A formula and how strongly it holds together."""
        node = self.graph.nodes[index]
        if node.op in _INFIX:
            sign = _INFIX[node.op]
            strength = _STRENGTH.get(sign, 0)
            left, right = node.args
            return f"{self._use(left, strength)} {sign} {self._use(right, strength + 1)}", strength
        if node.op == "neg":
            return f"-{self._use(node.args[0], 3)}", 2
        if node.op == "constant":
            return f"{node.attr('value'):g}", 4
        if node.op == "transpose":
            return f"{self._use(node.args[0], 4)}.T", 4
        if node.op == "slice":
            return f"{self._use(node.args[0], 4)}[{_index(node)}]", 4
        operands = [self._use(a) for a in node.args]
        options = [f"{k}={v:g}" for k, v in node.attrs if isinstance(v, float)]
        if node.op in ("expand", "reshape", "batch_sum"):
            options = [_shape(node.shape)]
        return f"{node.op}({', '.join(operands + options)})", 4


def _made(graph: Graph) -> list[str]:
    """What torch makes ahead, an operation a line."""
    ahead = graph.ahead
    assert ahead is not None
    names = [_input_name(name) for name in ahead.given]
    ends = {ref.number: name for ref, name in zip(ahead.results, ahead.names, strict=True)}
    rows = []
    unnamed = count(1)
    for number, call in enumerate(ahead.calls, start=len(names)):
        end = ends.get(number)
        names.append(_input_name(end) if end else f"t{next(unnamed)}")
        operands = [_argument(a, names) for a in call.args]
        operands += [f"{name}={_argument(a, names)}" for name, a in call.kwargs.items()]
        left = f"{names[-1]} = {call.name.partition('.')[0]}({', '.join(operands)})"
        shape = graph.nodes[graph.inputs[end]].shape if end else None
        rows.append(left if shape is None else f"{left:<60} {_shape(shape)}")
    return rows


def _argument(value: Any, names: list[str]) -> str:
    if isinstance(value, Ref):
        return names[value.number]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(part, names) for part in value)}]"
    return str(value).removeprefix("torch.")


def _index(node: Node) -> str:
    part = f"{node.attr('start')}:{node.attr('stop')}"
    before = len(node.shape) + node.attr("axis") - (BATCH in node.shape)  # the batch goes without
    return ", ".join([*[":"] * before, part, *[":"] * (-1 - node.attr("axis"))])


def _shape(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"


def _input_name(name: str) -> str:
    kind, _, rest = name.partition(".")
    return {"state": rest, "param": rest, "cotangent": f"d{rest}"}.get(kind, name)


def _output_name(name: str) -> str:
    kind, _, rest = name.partition(".")
    return f"{rest}'" if kind == "state" else f"grad {_input_name(rest)}"
