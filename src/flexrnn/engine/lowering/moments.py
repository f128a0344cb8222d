"""Moments: a sum of squared differences from the mean is found in the pass that finds the mean.

As a norm is written, a row is summed up, then the squares of what is left of it, and where threads
or programs share a row, all of them meet between the two. But each can sum the squared differences
from the mean of its own part; of n numbers, in parts of n_i with means m_i,

    Σ (x - m)² = Σ_i [Σ (x - m_i)² + n_i (m_i - m)²]

(Chan, Golub and LeVeque 1983). Nothing is cut off by it as by Σ x² - n m².
"""

from flexrnn.engine.compiler.cuts import cut_elementwise
from flexrnn.engine.compiler.graph import BATCH, Graph, Node, rewrite


def gather_moments(graph: Graph) -> Graph:
    """The graph of a loop in which such sums are a `moment` of the row and of its sum.

    Where x - m is then read by parts alone, as by gates, each is made where it is read.
    """
    differences: set[int] = set()

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        found = _squared(new, args[0]) if node.op == "sum" else None
        if found is None:
            return None
        differences.add(new.nodes[args[0]].args[0])
        return new.add("moment", *found)

    made = rewrite(graph, rule)
    return _taken_apart(made, differences) if differences else graph


def _taken_apart(graph: Graph, rows: set[int]) -> Graph:
    """The same without those of some elementwise rows of which all that is read are parts."""
    alive = graph.ancestors(list(graph.outputs.values()))
    users = graph.users()
    parts = {row: _parts(graph, row, [u for u in users[row] if u in alive]) for row in rows}
    made: dict[int, int] = {}  # a slice -> what it is in the new graph

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if node.op != "slice" or index not in parts.get(node.args[0], ()):
            return None
        made[index] = cut_elementwise(new, args[0], *(v for _, v in node.attrs))
        return made[index]

    new = rewrite(graph, rule)
    for name, index in graph.outputs.items():
        if parts.get(index):
            new.outputs[name] = new.add("concat", *(made[part] for part in parts[index]), axis=-1)
    return new


def _parts(graph: Graph, row: int, readers: list[int]) -> list[int]:
    """Slices that are all who read a row, if they lie side by side and make up the whole."""
    nodes = graph.nodes
    if any(nodes[i].op != "slice" or nodes[i].attr("axis") != -1 for i in readers):
        return []
    readers = sorted(readers, key=lambda i: nodes[i].attr("start"))
    ends = [0, *(nodes[i].attr("stop") for i in readers)]
    whole = [*(nodes[i].attr("start") for i in readers), nodes[row].shape[-1]]
    return readers if ends == whole else []


def _squared(graph: Graph, index: int) -> tuple[int, int] | None:
    """Of (x - Σ x / n)² the row and its sum."""
    square = graph.nodes[index]
    if square.op not in ("mul", "square") or len({*square.args}) > 1:
        return None
    difference = graph.nodes[square.args[0]]
    if difference.op != "sub":
        return None
    row, mean = difference.args
    shape = graph.nodes[row].shape
    if BATCH not in shape or shape != square.shape:
        return None
    while graph.nodes[mean].op == "expand":
        (mean,) = graph.nodes[mean].args
    quotient = graph.nodes[mean]
    if quotient.op != "div":
        return None
    total, count = (graph.nodes[arg] for arg in quotient.args)
    if total.op != "sum" or total.args != (row,) or count.op != "constant":
        return None
    return (row, quotient.args[0]) if count.attr("value") == shape[-1] else None
