"""Tidy: what derivatives leave behind when they are written down rule by rule.

A transposed product of transposed operands, sums side by side, minus signs that are added,
g·a - g·b instead of g·(a - b), gradients of columns that nobody reads: what a hand would not write.
"""

import torch

from flexrnn.engine.compiler.cuts import cut
from flexrnn.engine.compiler.graph import BATCH, Graph, Node, rewrite, swept
from flexrnn.engine.compiler.ops import OPS

_BOUNDED = ("tanh", "sigmoid", "sin", "cos", "constant")


def tidied(graph: Graph) -> Graph:
    """The same forward and backward step, with what is said above said shorter."""
    return _without_unwanted_columns(_shorter(graph))


def _without_unwanted_columns(graph: Graph) -> Graph:
    """Of weights side by side those at an edge may be constant, and have no gradient."""
    users = graph.users()
    whole = set(graph.outputs.values())
    spans: dict[int, tuple[int, int, int]] = {}  # an axis, and the part of it that anybody reads
    for index, node in enumerate(graph.nodes):
        parts = [graph.nodes[user] for user in users[index]]
        if node.op != "outer" or index in whole or any(part.op != "slice" for part in parts):
            continue
        axes = {part.attr("axis") for part in parts}
        if axes in ({-1}, {-2}):
            axis = axes.pop()
            start, stop = min(p.attr("start") for p in parts), max(p.attr("stop") for p in parts)
            if (start, stop) != (0, node.shape[axis]):
                spans[index] = axis, start, stop

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if index in spans:
            axis, start, stop = spans[index]
            left, right = args
            if axis == -1:
                return new.add("outer", left, cut(new, right, -1, start, stop))
            return new.add("outer", cut(new, left, -1, start, stop), right)
        if node.op != "slice" or node.args[0] not in spans:
            return None
        axis, first, _ = spans[node.args[0]]
        return cut(new, args[0], axis, node.attr("start") - first, node.attr("stop") - first)

    return _shorter(rewrite(graph, rule)) if spans else graph


def _shorter(graph: Graph) -> Graph:
    return _once(_once(graph))  # a factor comes to light behind a sign


def _once(graph: Graph) -> Graph:
    forward = graph.ancestors([i for name, i in graph.outputs.items() if name[:6] == "state."])
    users, whole = graph.users(), set(graph.outputs.values())

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if (value := None if node.boolean else _number(new, node, args)) is not None:
            return new.constant(value)
        if index not in forward and node.op in ("add", "sub"):
            alone = all(len(users[arg]) == 1 and arg not in whole for arg in node.args)
            return _signed(new, node, args) or (_factored(new, node, args) if alone else None)
        return _tidy(new, node, args)

    return swept(rewrite(graph, rule))


def _signed(new: Graph, node: Node, args: tuple[int, ...]) -> int | None:
    """a + (-b) is a - b, to the last bit."""
    a, b = args
    first, second = (new.nodes[arg] for arg in args)
    if second.op == "neg":
        return new.add("sub" if node.op == "add" else "add", a, *second.args)
    if first.op == "neg" and node.op == "add":
        return new.add("sub", b, *first.args)
    return None


def _factored(new: Graph, node: Node, args: tuple[int, ...]) -> int | None:
    """g a + g b is g (a + b), where all are rows: of a number's sums `sums.py` knows more.

    And where a or b is small, so that a + b is no greater than what a float holds: where nothing
    is selected g may be 0, and 0 times infinity would be NaN.
    """
    first, second = (new.nodes[arg] for arg in args)
    if first.op != "mul" or second.op != "mul":
        return None
    for g in dict.fromkeys(first.args):
        if g in second.args:
            a, b = (other for each in (first, second) for other in _without(each.args, g))
            bounded = any(new.nodes[each].op in _BOUNDED for each in (a, b))
            if bounded and all(_is_row(new, each, node) for each in (g, a, b)):
                total = new.add(node.op, a, b)
                return new.add("mul", g, total)
    return None


def _is_row(new: Graph, index: int, of: Node) -> bool:
    """Whether a node is as wide as another, and nothing that is stretched."""
    return new.nodes[index].shape == of.shape and new.nodes[index].op != "expand"


def _without(args: tuple[int, ...], one: int) -> tuple[int, ...]:
    at = args.index(one)
    return args[:at] + args[at + 1 :]


def _number(new: Graph, node: Node, args: tuple[int, ...]) -> float | None:
    """What an operation makes of nothing but numbers."""
    operands = [new.nodes[arg] for arg in args]
    if node.op not in OPS or not all(operand.op == "constant" for operand in operands):
        return None
    values = [torch.tensor(o.attr("value"), dtype=torch.float64) for o in operands]
    return float(OPS[node.op].torch(*values, **dict(node.attrs)))


def _tidy(new: Graph, node: Node, args: tuple[int, ...]) -> int | None:
    """(aᵀ g)ᵀ is gᵀ a, sums side by side are one sum, and a condition on numbers is met or not."""
    operands = [new.nodes[arg] for arg in args]
    if node.op == "where" and (truth := _number(new, operands[0], operands[0].args)) is not None:
        chosen = args[1 if truth else 2]
        return chosen if new.nodes[chosen].shape == node.shape else None
    if node.op == "transpose" and operands[0].op == "outer":
        return new.add("outer", *reversed(operands[0].args))
    if node.op == "transpose" and operands[0].op == "transpose":
        return operands[0].args[0]
    if node.op == "concat" and all(o.op == "batch_sum" and len(o.shape) == 1 for o in operands):
        terms = [new.nodes[o.args[0]].shape for o in operands]
        if all(term == (BATCH, *o.shape) for term, o in zip(terms, operands, strict=True)):
            joined = new.add("concat", *(o.args[0] for o in operands), axis=-1)
            return new.add("batch_sum", joined, shape=node.shape)
    return None
