"""Sums along a row that need no pass of their own.

The derivative of a mean, as in a layer norm, is the sum of what another sum scales, Σ (s·u + r·g)
with one number s and one r a row. So s·Σu + r·Σg: these sums find all they want in the pass that
finds s, and Σu is 0 where u is less its own mean.
"""

from typing import NamedTuple

from flexrnn.engine.compiler.graph import Graph, Node, added, rewrite

_MOST = 16  # terms of a sum that is taken apart
_PASSES = ("sum", "amax", "total")  # over a row: what reads them begins when they are whole


class _Term(NamedTuple):
    """A part of what a sum adds up: a row, and numbers by which it is multiplied, or divided."""

    row: int
    factors: tuple[tuple[str, int], ...] = ()
    negative: bool = False


def gather_sums(graph: Graph) -> Graph:
    """Take sums of the backward step apart whose terms are there in an earlier pass than they are.

    Those of the forward step stay as they are written: of x - mean or of the difference of two rows
    the sum may be far smaller than its parts, and be what the step is about. Nor is a sum of the
    backward step taken apart where a number is added to a whole row.
    """
    forward = graph.ancestors([i for name, i in graph.outputs.items() if name.startswith("state.")])
    depths: list[int] = []

    def depth(new: Graph, index: int) -> int:
        count_passes(new, depths)
        return depths[index]

    def rule(new: Graph, node: Node, args: tuple[int, ...], index: int) -> int | None:
        if index in forward:
            return None
        if node.op == "add" and args[0] == args[1]:
            return _doubled(new, args[0])
        if node.op != "sum":
            return None
        terms = _terms(new, args[0])
        whole = depth(new, args[0])
        if terms is None or any(depth(new, term.row) >= whole for term in terms):
            return None
        return _summed(new, terms, args[0])

    return rewrite(graph, rule)


def count_passes(graph: Graph, known: list[int]) -> None:
    """Append to `known`, of every further node, how many passes end before it can be computed."""
    for node in graph.nodes[len(known) :]:
        before = max((known[arg] for arg in node.args), default=0)
        known.append(before + (node.op in _PASSES))


def _doubled(new: Graph, index: int) -> int | None:
    """Twice a row that a number scales: the number is doubled."""
    for number, other in _scaled(new, index):
        twice = new.add("mul", number, new.constant(2.0))
        return new.add("mul", twice, other)
    return None


def _scaled(new: Graph, index: int) -> list[tuple[int, int]]:
    """A node as a number a row by which a row is multiplied, if it is that."""
    node = new.nodes[index]
    if node.op != "mul":
        return []
    pairs = (node.args, node.args[::-1])
    found = [(_number(new, a, node), b) for a, b in pairs if new.nodes[b].shape == node.shape]
    return [(number, row) for number, row in found if number is not None][:1]


def _number(new: Graph, index: int, of: Node) -> int | None:
    """The one number for all of a row that a node stretches over it."""
    while new.nodes[index].op == "expand":
        index = new.nodes[index].args[0]
    one = (*of.shape[:-1], 1)
    return index if new.nodes[index].shape == one != of.shape else None


def _terms(new: Graph, index: int) -> list[_Term] | None:
    """What a node is the sum of, side by side or one upon the other, less what sums to 0."""
    found, pending = list[_Term](), [_Term(index)]
    while pending:
        term = pending.pop()
        node = new.nodes[term.row]
        parts = _parts(new, node, term)
        if parts:
            pending += reversed(parts)
        elif not _is_centred(new, node):
            found.append(term)
        if len(found) + len(pending) > _MOST:
            return None
    return found


def _parts(new: Graph, node: Node, term: _Term) -> list[_Term]:
    match node.op:
        case "neg":
            return [term._replace(row=node.args[0], negative=not term.negative)]
        case "add" | "sub" if all(_is_whole(new, arg, node) for arg in node.args):
            first, second = (term._replace(row=arg) for arg in node.args)
            other = term.negative != (node.op == "sub")
            return [first, second._replace(negative=other)]
        case "concat" if node.attr("axis") == -1:
            return [term._replace(row=arg) for arg in node.args]
        case "mul":
            return [term._replace(row=row, factors=(("mul", number), *term.factors))
                    for number, row in _scaled(new, term.row)]  # fmt: skip
        case "div" if _is_whole(new, node.args[0], node):
            number = _number(new, node.args[1], node)
            if number is not None:
                return [term._replace(row=node.args[0], factors=(("div", number), *term.factors))]
    return []


def _is_whole(new: Graph, index: int, of: Node) -> bool:
    """Whether a node is a row of its own, nothing that is stretched over one."""
    return new.nodes[index].shape == of.shape and new.nodes[index].op != "expand"


def _is_centred(new: Graph, node: Node) -> bool:
    """Whether a row is one less its own mean."""
    if node.op != "sub":
        return False
    mean = _number(new, node.args[1], node)
    if mean is None or new.nodes[mean].op != "div":
        return False
    total, count = (new.nodes[arg] for arg in new.nodes[mean].args)
    return (
        (total.op, total.args) == ("sum", node.args[:1])
        and count.op == "constant"
        and count.attr("value") == node.shape[-1]
    )


def _summed(new: Graph, terms: list[_Term], index: int) -> int:
    """The sum of all terms; those of the same factors first."""
    alike: dict[object, list[_Term]] = {}
    for term in terms:
        alike.setdefault((term.factors, term.negative), []).append(term)
    sums = []
    for group in alike.values():
        total = added(new, [new.add("sum", term.row) for term in group])
        for op, number in group[0].factors:
            total = new.add(op, total, number)
        sums.append(new.add("neg", total) if group[0].negative else total)
    if sums:
        return added(new, sums)
    shape = (*new.nodes[index].shape[:-1], 1)
    return new.add("expand", new.constant(0.0), shape=shape)
