"""A program: a graph with its schedule, and its form as text.

A program knows neither B nor T, and nothing of the cell that it came from. The text is stable: it
can be stored, compared and loaded in another process. A line is a node:

    %17 = slice %16 axis=-1 start=0 stop=4 : (B, 4)

The schedule is not part of it: it follows from the graph. What a program saves for the backward
pass does, too, so that another policy of saving is another version: caches of compiled code, which
outlive a version of this library, know a program by its text.
"""

import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from flexrnn.engine.compiler.graph import BATCH, Graph, Node, Shape
from flexrnn.engine.compiler.schedule import Schedule, schedule
from flexrnn.engine.compiler.split import Dependence, dependences

VERSION = 4
_HEAD = f"flexrnn program {VERSION}"
_NARROW = "products of bfloat16"
_LINE = re.compile(r"%(\d+) = (\w+)((?: %\d+)*)((?: \w+=\S+)*) : (bool )?\(([^)]*)\)")
_OUTPUT = re.compile(r"output (\S+) = %(\d+)")
_INTEGER = re.compile(r"-?\d+")


class Program(NamedTuple):
    """What an engine runs."""

    graph: Graph
    schedule: Schedule

    @property
    def fields(self) -> tuple[str, ...]:
        """The state's fields, in order."""
        return self.schedule.fields


def build(graph: Graph) -> Program:
    """Schedule a graph."""
    return Program(graph, schedule(graph))


def dumps(program: Program) -> str:
    """A program as text."""
    lines = [_HEAD, _NARROW] if program.graph.narrow else [_HEAD]
    lines += [line(index, node) for index, node in enumerate(program.graph.nodes)]
    lines += [f"output {_spelt(name)} = %{index}" for name, index in program.graph.outputs.items()]
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
    rows = body.splitlines()
    graph.narrow = rows[:1] == [_NARROW]
    try:
        for number, row in enumerate(rows, start=2):
            if number > 2 or not graph.narrow:
                _read(graph, row)
    except (ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"program: line {number}: {row[:80]!r}: {error}") from None
    if not graph.outputs:
        raise ValueError("program: expected at least one output, got a text that ends too early")
    _check_names(graph)
    program = build(graph)
    _check_order(program)
    if dumps(program) != text:
        raise ValueError("program: expected the text as it was written, got it in another form")
    return program


def _check_names(graph: Graph) -> None:
    """Refuse inputs and outputs that do not belong together."""
    states = {name for name in graph.inputs if name.startswith("state.")}
    for name, index in graph.inputs.items():
        shape = graph.nodes[index].shape
        rows = not name.startswith("param.")
        if (shape[:1] == (BATCH,)) != rows or BATCH in shape[1:]:
            raise ValueError(f"program: expected the batch first and only there, got {name!r}")
    kinds = ("state.", "param.", "cotangent.")
    xs = [name for name in graph.inputs if not name.startswith(kinds)]
    if not states or not xs or xs != [f"x{k}" for k in range(len(xs))]:
        raise ValueError("program: expected the inputs x0, x1, ... and a state")
    if states != {name for name in graph.outputs if name.startswith("state.")}:
        raise ValueError("program: expected a new state for each old one, and no other")
    cotangents = [name for name in graph.inputs if name.startswith("cotangent.")]
    pairs = [(name, name.removeprefix("grad.")) for name in graph.outputs]
    pairs += [(name, f"state.{name[10:]}") for name in cotangents]
    for name, target in pairs:
        if target not in graph.inputs or target in cotangents:
            raise ValueError(f"program: expected {name!r} to belong to an input")
        index = graph.outputs.get(name, graph.inputs.get(name, 0))
        if graph.nodes[index][3:] != graph.nodes[graph.inputs[target]][3:]:
            raise ValueError(f"program: expected {name!r} of the shape of {target!r}")
    gradients = any(name.startswith("grad.") for name in graph.outputs)
    if (gradients or cotangents) and {f"state.{name[10:]}" for name in cotangents} != states:
        raise ValueError("program: expected a cotangent of each state, and no other")


def _check_order(program: Program) -> None:
    """Refuse what no stage could compute, and sums over the batch inside the loops."""
    graph, plan = program
    depends = dependences(graph)
    for name, index in graph.outputs.items():
        if name.startswith("state.") and depends[index] == Dependence.COTANGENT:
            raise ValueError(f"program: expected {name!r} to come before the backward pass")
    stages = (plan.once, plan.hoisted, plan.loop, plan.prepare, plan.reverse)
    computed = (i for stage in stages for i in stage)
    if any(graph.nodes[i].op in ("outer", "batch_sum") for i in computed):
        raise ValueError("program: expected sums over the batch after the loops")


def _read(graph: Graph, row: str) -> None:
    if found := _OUTPUT.fullmatch(row):
        name, index = unquote(found[1]), int(found[2])
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
    else:
        made = graph.add(op, *args, **attrs)
    if made != index or graph.nodes[index].shape != shape or graph.nodes[index].boolean != boolean:
        raise ValueError(f"expected shape {graph.nodes[made].shape}")


def _spelt(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if value else "()"
    if isinstance(value, str):  # a key of a ParameterDict can be any text
        return quote(value, safe="[]")
    return str(value) if not isinstance(value, float) else value.hex()


def _attribute(pair: str) -> tuple[str, Any]:
    name, _, text = pair.partition("=")
    if name == "shape":
        sizes = () if text == "()" else text.split("x")
        return name, tuple(BATCH if s == BATCH else int(s) for s in sizes)
    if name == "name":
        return name, unquote(text)
    return name, int(text) if _INTEGER.fullmatch(text) else float.fromhex(text)
