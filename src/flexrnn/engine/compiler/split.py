"""Split: what is done once, what for all time steps at once, and what step by step.

A node that depends on parameters alone is computed once; on parameters and input alone, for all T
steps at once; only what depends on the state stays in the loop. Sums are regrouped first, so that
of `x W + b + h U` all but the last addition leaves the loop. Which node goes where follows from its
dependence; `schedule` says it.
"""

from enum import IntEnum

from flexrnn.engine.compiler.graph import BATCH, Graph, Node, rewrite, swept


class Dependence(IntEnum):
    """The latest kind of operand that a node is computed from."""

    PARAMETER = 0
    INPUT = 1
    STATE = 2
    COTANGENT = 3


_KINDS = {
    "param": Dependence.PARAMETER,
    "state": Dependence.STATE,
    "cotangent": Dependence.COTANGENT,
}


def dependences(graph: Graph) -> list[Dependence]:
    """Of every node, what it depends on."""
    found: list[Dependence] = []
    for node in graph.nodes:
        if node.op == "input":
            kind, _, _ = node.attr("name").partition(".")
            found.append(_KINDS.get(kind, Dependence.INPUT))
        else:
            latest = max((found[a] for a in node.args), default=Dependence.PARAMETER)
            # What has rows but reads none, such as a parameter stretched over the batch, counts as
            # input: it has rows at every time step.
            found.append(max(latest, Dependence.INPUT) if BATCH in node.shape else latest)
    return found


def regroup_sums(graph: Graph) -> Graph:
    """Add up parameters first, then input, then state: addition is regrouped, to rounding."""
    depends, users = dependences(graph), graph.users()

    def inner(index: int) -> bool:  # an addition that only another addition reads
        readers = users[index]
        return (
            graph.nodes[index].op == "add"
            and len(readers) == 1
            and graph.nodes[readers[0]].op == "add"
            and graph.nodes[readers[0]].args.count(index) == 1
            and index not in graph.outputs.values()
        )

    def terms(index: int) -> list[int]:
        found, pending = [], list(reversed(graph.nodes[index].args))
        while pending:  # no recursion, for a sum may have more terms than Python's stack is deep
            arg = pending.pop()
            if inner(arg):
                pending.extend(reversed(graph.nodes[arg].args))
            else:
                found.append(arg)
        return found

    where: dict[int, int] = {}

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        where.update(zip(node.args, args, strict=True))
        if node.op != "add" or inner(index):
            return None
        leaves = sorted(terms(index), key=lambda term: depends[term])  # stable: the written order
        if len(leaves) < 3 or depends[leaves[0]] == depends[leaves[-1]]:
            return None
        total = where[leaves[0]]
        for leaf in leaves[1:]:
            total = new.add("add", total, where[leaf])
        return total

    return swept(rewrite(graph, rule))
