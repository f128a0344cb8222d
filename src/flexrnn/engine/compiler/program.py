"""A program: a graph with its schedule, and its form as text.

A program knows neither B nor T, and nothing of the cell that it came from. The text is stable: it
can be stored, compared and loaded in another process. A line is a node:

    %17 = slice %16 axis=-1 start=0 stop=4 : (B, 4)

The schedule is not part of it: it follows from the graph.
"""

import ast
import re
from typing import Any, NamedTuple

from flexrnn.engine.compiler.graph import BATCH, SHAPES, Graph, Node, Shape
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.schedule import Schedule, schedule

VERSION = 1
_HEAD = f"flexrnn program {VERSION}"
_LINE = re.compile(r"%(\d+) = (\w+)((?: %\d+)*)((?: \w+=\S+)*) : (bool )?\(([^)]*)\)")
_OUTPUT = re.compile(r"output (\S+) = %(\d+)")


class Program(NamedTuple):
    """What an engine runs."""

    graph: Graph
    schedule: Schedule

    @property
    def fields(self) -> tuple[str, ...]:
        """The state's fields, in order."""
        return tuple(name[6:] for name in self.graph.inputs if name.startswith("state."))


def build(graph: Graph) -> Program:
    """Schedule a graph."""
    return Program(graph, schedule(graph))


def dumps(program: Program) -> str:
    """A program as text."""
    lines = [_HEAD]
    lines += [line(index, node) for index, node in enumerate(program.graph.nodes)]
    lines += [f"output {name} = %{index}" for name, index in program.graph.outputs.items()]
    return "\n".join(lines) + "\n"


def line(index: int, node: Node) -> str:
    """One node as text."""
    args = "".join(f" %{a}" for a in node.args)
    attrs = "".join(f" {name}={_spelt(value)}" for name, value in node.attrs)
    kind = "bool " if node.boolean else ""
    return f"%{index} = {node.op}{args}{attrs} : {kind}({', '.join(map(str, node.shape))})"


def loads(text: str) -> Program:
    """The program of a text.

    Raises:
        ValueError: the text is no program of this version; the message names the line.
    """
    head, _, body = text.partition("\n")
    if head != _HEAD:
        raise ValueError(f"program: expected {_HEAD!r} in line 1, got {head[:60]!r}")
    graph = Graph()
    number, row = 1, head
    try:
        for number, row in enumerate(body.splitlines(), start=2):  # noqa: B007  # named in the error
            _read(graph, row)
    except (ValueError, KeyError, IndexError, TypeError, SyntaxError) as error:
        raise ValueError(f"program: line {number}: {row[:80]!r}: {error}") from None
    if not graph.outputs:
        raise ValueError("program: expected at least one output, got a text that ends too early")
    _check_names(graph)
    return build(graph)


def _check_names(graph: Graph) -> None:
    """Refuse inputs and outputs that do not belong together."""
    states = {name for name in graph.inputs if name.startswith("state.")}
    if states != {name for name in graph.outputs if name.startswith("state.")}:
        raise ValueError("program: expected a new state for each old one, and no other")
    for name, index in graph.outputs.items():
        target = name.removeprefix("grad.")
        if target not in graph.inputs:
            raise ValueError(f"program: expected an output of a known input, got {name!r}")
        if graph.nodes[index].shape != graph.nodes[graph.inputs[target]].shape:
            raise ValueError(f"program: expected {name!r} of the shape of {target!r}")
    for name in graph.inputs:
        field = name.removeprefix("cotangent.")
        if field != name and f"state.{field}" not in states:
            raise ValueError(f"program: expected the cotangent of a state, got {name!r}")


def _read(graph: Graph, row: str) -> None:
    if found := _OUTPUT.fullmatch(row):
        name, index = found[1], int(found[2])
        if index >= len(graph.nodes) or name in graph.outputs:
            raise ValueError("expected a node that stands above, and a new name")
        graph.outputs[name] = index
        return
    found = _LINE.fullmatch(row)
    if found is None or graph.outputs:
        raise ValueError("expected a node, or an output after all nodes")
    index, op, boolean = int(found[1]), found[2], found[5] is not None
    args = tuple(int(a) for a in found[3].replace("%", "").split())
    attrs = dict(_attribute(pair) for pair in found[4].split())
    shape: Shape = tuple(BATCH if s == BATCH else int(s) for s in found[6].split(", ") if s)
    if index != len(graph.nodes) or any(a >= index for a in args):
        raise ValueError(f"expected node %{len(graph.nodes)}, of nodes above it")
    if op == "input":
        if set(attrs) != {"name"} or args or attrs["name"] in graph.inputs:
            raise ValueError("expected an input with a new name")
        made = graph.input(attrs["name"], shape, boolean)
    elif op in SHAPES or (op in OPS and len(args) == len(OPS[op].domain)):
        made = graph.add(op, *args, **attrs)
    else:
        raise ValueError(f"expected a known operation, got {op!r} of {len(args)}")
    if made != index or graph.nodes[index].shape != shape or graph.nodes[index].boolean != boolean:
        raise ValueError(f"expected shape {graph.nodes[made].shape}")


def _spelt(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if value else "()"
    return str(value) if not isinstance(value, float) else value.hex()


def _attribute(pair: str) -> tuple[str, Any]:
    name, _, text = pair.partition("=")
    if name == "shape":
        sizes = () if text == "()" else text.split("x")
        return name, tuple(BATCH if s == BATCH else int(s) for s in sizes)
    if name == "name":
        return name, text
    return name, float.fromhex(text) if "x" in text or "inf" in text else ast.literal_eval(text)
