"""Parts of nodes: slices and concatenations that see through one another; places one by one."""

import math
from functools import reduce

from flexrnn.engine.compiler.graph import BATCH, Graph, Node
from flexrnn.engine.compiler.turned import turned

MOST = 64  # places that are handled one by one where there is another way: each takes compiling
_NUMBERS = 512  # terms of a sum, as many as are written down each by itself
_FEW = 8  # places of which the sum is no pass of its own


def places(graph: Graph, a: int, axis: int) -> list[int]:
    """Every place along an axis by itself; the axis has size one then."""
    size = int(graph.nodes[a].shape[axis])
    if not size:
        raise ValueError("expected an axis with a place")
    return [graph.add("slice", a, axis=axis, start=k, stop=k + 1) for k in range(size)]


def added_up(graph: Graph, a: int, axis: int) -> int:
    """The sum of the places along an axis before the last: of few one by one, or turned over."""
    shape = graph.nodes[a].shape
    if shape[axis] == 0:
        one = tuple(1 if k == len(shape) + axis else size for k, size in enumerate(shape))
        return graph.add("expand", graph.constant(0.0), shape=one)
    if axis == -2 and (other := turned(graph, a)) is not None:
        return graph.add("reshape", graph.add("sum", other), shape=(*shape[:-2], 1, shape[-1]))
    size, numbers = int(shape[axis]), math.prod(map(int, shape[axis:]))
    if size <= _FEW or numbers <= _NUMBERS or BATCH not in shape:
        return reduce(lambda x, y: graph.add("add", x, y), places(graph, a, axis))
    if numbers > size:
        return graph.add("total", a, axis=axis)
    row = graph.add("reshape", a, shape=(*shape[:axis], size))  # nothing but this axis is left
    return graph.add("reshape", graph.add("sum", row), shape=(*shape[:axis], *(1,) * -axis))


def cut(new: Graph, a: int, axis: int, start: int, stop: int) -> int:
    """A part of a node, cut from what the node is made of."""
    node = new.nodes[a]
    if (start, stop) == (0, node.shape[axis]):
        return a
    if node.op == "slice" and node.attr("axis") == axis:
        offset = node.attr("start")
        return cut(new, node.args[0], axis, start + offset, stop + offset)
    if node.op == "transpose" and axis in (-1, -2):
        return new.add("transpose", cut(new, node.args[0], -3 - axis, start, stop))
    if node.op == "concat" and node.attr("axis") == axis:
        return _slice_of_concat(new, node, axis, start, stop)
    return new.add("slice", a, axis=axis, start=start, stop=stop)


def cut_elementwise(new: Graph, a: int, axis: int, start: int, stop: int) -> int:
    """The operation on parts of its operands; all of an operand where it is stretched."""
    node = new.nodes[a]
    parts = []
    for arg in node.args:
        shape = new.nodes[arg].shape
        stretched = len(shape) < -axis or shape[axis] != node.shape[axis]
        parts.append(arg if stretched else cut(new, arg, axis, start, stop))
    made = new.add(node.op, *parts, **dict(node.attrs))
    if a in new.sources:  # it is from that line still, not from the one that takes parts
        new.sources.setdefault(made, new.sources[a])
    return made


def _slice_of_concat(new: Graph, node: Node, axis: int, start: int, stop: int) -> int:
    parts, offset = [], 0
    for arg in node.args:
        size = int(new.nodes[arg].shape[axis])
        first, last = max(start - offset, 0), min(stop - offset, size)
        if first < last:
            parts.append(cut(new, arg, axis, first, last))
        offset += size
    return join(new, tuple(parts), axis)


def join(new: Graph, parts: tuple[int, ...], axis: int) -> int:
    """Parts side by side; neighbours that were cut from one node grow together again."""
    nodes = [new.nodes[part] for part in parts]
    if axis in (-1, -2) and all(node.op == "transpose" for node in nodes):
        inner = join(new, tuple(node.args[0] for node in nodes), -3 - axis)
        return new.add("transpose", inner)
    grown: list[int] = []
    for part in parts:
        last, node = new.nodes[grown[-1]] if grown else None, new.nodes[part]
        if last is not None and _adjacent(last, node, axis):
            start, stop = last.attr("start"), node.attr("stop")
            grown[-1] = cut(new, node.args[0], axis, start, stop)
        elif node.op == "concat" and node.attr("axis") == axis:
            grown.extend(node.args)
        else:
            grown.append(part)
    return grown[0] if len(grown) == 1 else new.add("concat", *grown, axis=axis)


def _adjacent(last: Node, node: Node, axis: int) -> bool:
    return (
        last.op == node.op == "slice"
        and last.args == node.args
        and last.attr("axis") == node.attr("axis") == axis
        and last.attr("stop") == node.attr("start")
    )
