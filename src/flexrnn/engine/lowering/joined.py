"""Joined sums: where sums along an axis are added up, what they sum is added up before.

Derivatives by a mean, a norm or a shared weight come as a sum for every part in which a row was
used, such as the gates of a layer-norm LSTM. One pass over the row finds all of them. What an
earlier pass can sum stays apart, for else the row would wait in memory for the rest.
"""

from flexrnn.engine.compiler.graph import Graph, added
from flexrnn.engine.compiler.sums import count_passes


def join_sums(graph: Graph) -> None:
    """Join the sums of one shape under each tree of additions, where nothing else reads them."""
    alive = graph.ancestors(list(graph.outputs.values()))
    readers: list[list[int]] = [[] for _ in graph.nodes]
    for user in alive:
        for arg in graph.nodes[user].args:  # y + y reads y twice, or n doublings had 2^n terms
            readers[arg].append(user)
    read_twice = {i for i, users in enumerate(readers) if len(users) != 1}
    read_twice.update(graph.outputs.values())
    passes: list[int] = []
    count_passes(graph, passes)

    def is_inside(index: int) -> bool:
        """Whether an addition is read by another one alone."""
        if graph.nodes[index].op != "add" or index in read_twice:
            return False
        return graph.nodes[readers[index][0]].op == "add"

    for root in sorted(alive, reverse=True):
        if graph.nodes[root].op != "add" or is_inside(root):
            continue
        terms, pending = list[int](), list(reversed(graph.nodes[root].args))
        while pending:
            index = pending.pop()
            if is_inside(index):
                pending.extend(reversed(graph.nodes[index].args))
            else:
                terms.append(index)
        _join(graph, root, terms, read_twice, passes)


def _join(
    graph: Graph, root: int, terms: list[int], read_twice: set[int], passes: list[int]
) -> None:
    """Let a node be the sum of these terms, with sums of one shape joined."""
    rest, alike = list[int](), dict[object, list[int]]()
    for term in terms:
        node = graph.nodes[term]
        if node.op == "sum" and term not in read_twice:
            kind = node.attrs, graph.nodes[node.args[0]].shape, passes[term]
            alike.setdefault(kind, []).append(term)
        else:
            rest.append(term)
    if all(len(sums) < 2 for sums in alike.values()):
        return
    for sums in alike.values():
        joined, *others = sums
        if others:
            total = added(graph, [graph.nodes[s].args[0] for s in sums])
            joined = graph.add("sum", total, **dict(graph.nodes[joined].attrs))
        rest.append(joined)
    *first, last = rest
    if first:
        graph.nodes[root] = graph.nodes[root]._replace(args=(added(graph, first), last))
    else:
        graph.nodes[root] = graph.nodes[last]
