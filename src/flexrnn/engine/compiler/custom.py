"""Custom derivatives: those that a `torch.autograd.Function` has beside its value.

A node `custom_vjp(value, cotangent, x, gradient, ...)` has the value of its first operand, and
hands to every x the gradient beside it, in which `cotangent` stands for its own. Autodiff puts that
in its place. In a program such a value is `opaque`: autograd would find another derivative.
"""

from flexrnn.engine.compiler.graph import Graph, Node, rewrite, swept

_MOVES = ("neg", "slice", "reshape", "expand", "transpose", "sum", "total", "detach")


def gradients(graph: Graph, node: Node, cotangent: int) -> list[tuple[int, int]]:
    """To whom a node hands what, where its own cotangent is this one."""
    _, place, *pairs = node.args
    made = {place: cotangent}
    for index in sorted(_readers(graph, pairs[1::2], place) - {place}):
        reader = graph.nodes[index]
        args = (made.get(arg, arg) for arg in reader.args)
        made[index] = graph.add(reader.op, *args, **dict(reader.attrs))
    return [(x, made.get(g, g)) for x, g in zip(pairs[::2], pairs[1::2], strict=True)]


def is_linear(graph: Graph, gradient: int, cotangent: int) -> bool:
    """Whether a gradient of a sum is the sum of gradients, as far as that is easily seen."""
    reads = _readers(graph, [gradient], cotangent)

    def follows(index: int) -> bool:  # is nothing where the cotangent is nothing
        return index in reads or is_zero(graph, index)

    def is_kept(node: Node) -> bool:
        which = [k for k, arg in enumerate(node.args) if arg in reads]
        match node.op:
            case "mul" | "product" | "matmul":
                return len(which) == 1
            case "div":
                return which == [0]
            case "where":
                return which[0] > 0 and all(map(follows, node.args[1:]))
            case "add" | "sub" | "concat":
                return all(map(follows, node.args))
        return node.op in _MOVES

    return follows(gradient) and all(is_kept(graph.nodes[k]) for k in reads - {cotangent})


def is_zero(graph: Graph, index: int) -> bool:
    """Whether a node is 0, however often."""
    while graph.nodes[index].op in ("expand", "reshape", "slice"):
        index = graph.nodes[index].args[0]
    node = graph.nodes[index]
    return node.op == "constant" and node.attr("value") == 0


def plain(graph: Graph) -> Graph:
    """A graph with values alone, when nothing is left to differentiate."""

    def rule(new: Graph, node: Node, args: tuple[int, ...], _: int) -> int | None:
        return new.add("opaque", args[0]) if node.op == "custom_vjp" else None

    if all(node.op != "custom_vjp" for node in graph.nodes):
        return graph
    return swept(rewrite(graph, rule))


def _readers(graph: Graph, roots: list[int], place: int) -> set[int]:
    """A place and what depends on it, of all that these nodes are computed from."""
    found = {place}
    for index in sorted(graph.ancestors(roots)):
        if any(arg in found for arg in graph.nodes[index].args):
            found.add(index)
    return found
