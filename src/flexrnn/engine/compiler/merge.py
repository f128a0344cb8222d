"""Merge: one product for all that share a left operand, however the person wrote them.

Slices move towards the inputs and concatenations open up until products stand bare; products of
the same left operand then become one with their weights side by side. So the naive LSTM's eight
products become the vectorised one's two, and `linear(cat([x, h]), W)` an input and a recurrent one.
"""

from flexrnn.engine.compiler.cuts import cut, cut_elementwise, join
from flexrnn.engine.compiler.graph import BATCH, Graph, Node, Shape, rewrite, swept
from flexrnn.engine.compiler.ops import OPS


def merge(graph: Graph) -> Graph:
    """The same function with as few products as their left operands allow."""
    return normalize(merge_products(normalize(graph)))


def normalize(graph: Graph) -> Graph:
    """Apply the rules below until none applies."""
    graph = swept(graph)
    while True:
        new = swept(rewrite(graph, _Rules(graph)))
        if new.nodes == graph.nodes:
            return new
        graph = new


class _Rules:
    """What becomes of each node of a graph."""

    def __init__(self, graph: Graph):
        users = graph.users()
        whole = set(graph.outputs.values())
        self.cut = {  # elementwise results of which nobody needs more than parts
            index
            for index, node in enumerate(graph.nodes)
            if node.op in OPS
            and index not in whole
            and all(graph.nodes[user].op == "slice" for user in users[index])
        }

    def __call__(self, new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if node.op == "slice" and node.args[0] in self.cut and new.nodes[args[0]].op in OPS:
            return cut_elementwise(new, args[0], *(v for _, v in node.attrs))
        return _rule(new, node, args)


def _rule(new: Graph, node: Node, args: tuple[int, ...]) -> int | None:
    if node.op == "product":
        return _product_of_concat(new, *args)
    if node.op == "slice":
        return cut(new, args[0], node.attr("axis"), node.attr("start"), node.attr("stop"))
    if node.op == "concat":
        return join(new, args, node.attr("axis"))
    if node.op == "where" and args[1] == args[2] and new.nodes[args[1]].shape == node.shape:
        return args[1]  # so that of a sequence that has ended what never changes stays constant
    if node.op == "reshape" and new.nodes[args[0]].op == "reshape":
        return _reshape(new, new.nodes[args[0]].args[0], node.attr("shape"))
    return None


def _reshape(new: Graph, a: int, shape: Shape) -> int:
    return a if new.nodes[a].shape == shape else new.add("reshape", a, shape=shape)


def _product_of_concat(new: Graph, a: int, w: int) -> int | None:
    """[a, b] W = a W_a + b W_b."""
    left = new.nodes[a]
    if left.op != "concat" or left.attr("axis") != -1 or BATCH not in left.shape:
        return None
    total, start = None, 0
    for part in left.args:
        stop = start + int(new.nodes[part].shape[-1])
        term = new.add("product", part, cut(new, w, -2, start, stop))
        total = term if total is None else new.add("add", total, term)
        start = stop
    return total


def merge_products(graph: Graph) -> Graph:
    """Put the weights of products with one left operand side by side, in the order of their use."""
    groups: dict[tuple[int, object], list[int]] = {}
    for index in sorted(graph.ancestors(list(graph.outputs.values()))):
        node = graph.nodes[index]
        if node.op == "product" and BATCH in node.shape:
            weight = graph.nodes[node.args[1]]
            groups.setdefault((node.args[0], weight.shape[:-1]), []).append(index)
    merged = {index: group for group in groups.values() if len(group) > 1 for index in group}

    wide: dict[int, int] = {}  # first product of a group -> the product of all

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        group = merged.get(index)
        if group is None:
            return None
        widths = [int(graph.nodes[k].shape[-1]) for k in group]
        if group[0] not in wide:
            weights = _weights(new, graph, [graph.nodes[k].args[1] for k in group])
            wide[group[0]] = new.add("product", args[0], join(new, tuple(weights), -1))
        start = sum(widths[: group.index(index)])
        stop = start + widths[group.index(index)]
        return cut(new, wide[group[0]], -1, start, stop)

    return rewrite(graph, rule)


def _weights(new: Graph, old: Graph, wanted: list[int]) -> list[int]:
    """Copy nodes made of parameters alone into a graph that may not have come to them yet."""
    where: dict[int, int] = {}
    for index in sorted(old.ancestors(wanted)):
        node = old.nodes[index]
        if node.op == "input":
            where[index] = new.inputs[node.attr("name")]
        else:
            where[index] = new.add(node.op, *(where[a] for a in node.args), **dict(node.attrs))
    return [where[index] for index in wanted]
