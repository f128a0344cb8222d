"""Copies: what a loop must have in memory, and lies there only in part, stretched, or not at all.

Outputs, parts of concatenations, left operands of products and what is reshaped are read by where
they lie. Where that is not in one piece, a node is put in between that some stage computes.
"""

from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.lowering.places import domain_of, lies_whole
from flexrnn.engine.step import CannotRunError

_COMPUTED = ("product", "matmul", "total", "concat")


def with_copies(graph: Graph) -> Graph:
    """The same graph, with copies where they are needed."""
    for name, index in list(graph.outputs.items()):
        index = graph.outputs[name] = _in_one_piece(graph, index)
        op = graph.nodes[index].op
        summed = name.startswith("sum.")  # in the stage that computes it, where it is whole
        apart = summed and (op == "total" or _is_of_numbers(graph, index))
        if apart or op not in (*_COMPUTED, *OPS) or not _rowed(graph, index):
            graph.outputs[name] = _copy(graph, index)
    users = graph.users()
    for index, node in enumerate(list(graph.nodes)):
        if not _rowed(graph, index):
            continue
        args = tuple(
            _copy(graph, a) if _is_turned(graph, a) and not _is_read_once(graph, a, users[a]) else a
            for a in node.args
        )
        if index in args:  # it is the copy
            continue
        if node.op == "concat":
            args = tuple(a if _is_computed(graph, a) else _copy(graph, a) for a in args)
        elif node.op == "reshape" and not lies_whole(graph, args[0]):
            args = (_copy(graph, args[0]),)
        elif node.op == "product" and _is_stretched(graph, args[0]):
            args = (_copy(graph, args[0]), args[1])
        elif node.op == "matmul":
            args = tuple(_copy(graph, a) if _is_stretched(graph, a) else a for a in args)
        graph.nodes[index] = node._replace(args=args)
    return _sorted(graph)


def _is_of_numbers(graph: Graph, index: int) -> bool:
    """Whether a node is joined of what has one number for each head, which may lie apart there."""
    node = graph.nodes[index]
    shapes = [graph.nodes[a].shape for a in node.args]
    return node.op == "concat" and any(s[-1] == 1 != domain_of(s).heads for s in shapes)


def _rowed(graph: Graph, index: int) -> bool:
    return BATCH in graph.nodes[index].shape


def _is_turned(graph: Graph, index: int) -> bool:
    return graph.nodes[index].op == "transpose" and _rowed(graph, index)


def _is_read_once(graph: Graph, index: int, users: list[int]) -> bool:
    """Whether one operation alone reads a node, and each of its numbers once."""
    nodes = [graph.nodes[user] for user in users]
    return [(n.op in OPS, n.shape) for n in nodes] == [(True, graph.nodes[index].shape)]


def _is_computed(graph: Graph, index: int) -> bool:
    return graph.nodes[index].op in OPS and _rowed(graph, index)


def _in_one_piece(graph: Graph, index: int) -> int:
    """What a stage computes, where an output is that with other axes: it lies as well there."""
    base = index
    while graph.nodes[base].op == "reshape":
        base = graph.nodes[base].args[0]
    computed = graph.nodes[base].op in (*_COMPUTED, *OPS) and _rowed(graph, base)
    return base if computed else index


def _is_stretched(graph: Graph, index: int) -> bool:
    while graph.nodes[index].op in ("slice", "reshape"):
        index = graph.nodes[index].args[0]
    return graph.nodes[index].op == "expand"


def _copy(graph: Graph, index: int) -> int:
    if not _rowed(graph, index):
        raise CannotRunError("generated code wants a row for each of the batch, got a parameter")
    if graph.nodes[index].boolean:
        return graph.add("or", index, index)
    return graph.add("mul", index, graph.constant(1.0))


def _sorted(graph: Graph) -> Graph:
    """The same nodes, each behind its operands, and none that no output needs."""
    new, where = Graph(), dict[int, int]()
    pending = sorted(graph.ancestors(list(graph.outputs.values())), reverse=True)
    while pending:
        index = pending[-1]
        node = graph.nodes[index]
        missing = [a for a in node.args if a not in where]
        pending.extend(missing)
        if missing:
            continue
        pending.pop()
        if index in where:
            continue
        if node.op == "input":
            where[index] = new.input(node.attr("name"), node.shape, node.boolean)
        else:
            args = (where[a] for a in node.args)
            where[index] = new.add(node.op, *args, **dict(node.attrs))
        if index in graph.sources:
            new.sources.setdefault(where[index], graph.sources[index])
    new.outputs = {name: where[index] for name, index in graph.outputs.items()}
    new.call_as(graph, where)
    return new
