"""Autodiff: the backward step beside the forward step, in one graph.

The derivative of every elementwise operation stands in its row of `ops.OPS`, of the others below.
Nothing is computed for an input whose gradient is not wanted. Which part of the backward step
belongs into the loop is not decided here: it follows from what depends on what.
"""

from collections import Counter
from collections.abc import Callable, Collection

from flexrnn.engine.compiler import custom
from flexrnn.engine.compiler.cuts import added_up
from flexrnn.engine.compiler.graph import BATCH, Expr, Graph, Node, Shape, added, rewrite
from flexrnn.engine.compiler.matrices import times
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.refusal import NOWHERE, CannotCompileError
from flexrnn.engine.compiler.tidy import tidied


def differentiate(graph: Graph, wanted: Collection[str]) -> Graph:
    """Add the backward step to a forward step.

    Args:
        graph: outputs `state.FIELD`, the new state.
        wanted: names of inputs whose gradient is wanted. The old state's is computed wherever
            anything is wanted, because the step before needs it; but that of a state which no step
            changes only where it is wanted itself, for no other gradient passes through it.

    Returns:
        A graph with further inputs `cotangent.FIELD`, the derivative of the loss by the new state,
        and further outputs `grad.INPUT`, by that input; one that cannot influence the new state
        has none.
    """
    new = rewrite(graph, lambda *_: None)
    idle = new.constant_states() - set(wanted)
    states = [name for name in new.inputs if name.startswith("state.") and name not in idle]
    targets = {new.inputs[name] for name in (*wanted, *states)} if wanted else set()
    active = _descendants(new, targets)
    backward = _Backward(new, active)
    for name, index in list(new.outputs.items()):
        shape = new.nodes[index].shape
        cotangent = new.input(name.replace("state.", "cotangent."), shape)
        if index in active:
            backward.give(index, cotangent)
    for index in sorted(active, reverse=True):
        before = len(new.nodes)
        total = backward.total(index)
        if total is not None:
            backward.spread(index, total)
        if total is not None and index in new.called:
            new.called.setdefault(total, f"d{new.called[index]}")
        if index in new.sources:
            for made in range(before, len(new.nodes)):
                new.sources[made] = new.sources[index]
    for name in (*states, *wanted):
        total = backward.total(new.inputs[name])
        if total is not None:
            new.outputs[f"grad.{name}"] = total
    made = custom.plain(new)
    unknown = next((k for k, node in enumerate(made.nodes) if node.op == "cotangent"), None)
    if unknown is not None:
        raise CannotCompileError(
            "heaviside cannot be compiled: it has no derivative; in a Function's forward, "
            f"torch.no_grad(), or detached, it needs none, {made.sources.get(unknown, NOWHERE)}"
        )
    return tidied(made)


def _descendants(graph: Graph, roots: set[int]) -> set[int]:
    """The given nodes and all real-valued ones that are computed from them."""
    found = set()
    for index, node in enumerate(graph.nodes):
        if index in roots or (not node.boolean and any(a in found for a in node.args)):
            found.add(index)
    return found


class _Backward:
    """Contributions to the cotangent of every node, gathered until all of them are there."""

    def __init__(self, graph: Graph, active: set[int]):
        self.graph, self.active = graph, active
        self.whole: dict[int, list[int]] = {}
        self.parts: dict[int, list[tuple[int, int, int, int]]] = {}  # (axis, start, stop, node)

    def give(self, index: int, cotangent: int) -> None:
        """Add a contribution; summed to the node's shape where that was stretched."""
        if index in self.active:
            reduced = _reduce(self.graph, cotangent, self.graph.nodes[index].shape)
            self.whole.setdefault(index, []).append(reduced)

    def total(self, index: int) -> int | None:
        """The sum of all contributions, or None where there is none."""
        graph, terms = self.graph, list(self.whole.get(index, []))
        parts = self.parts.get(index, [])
        for axis in dict.fromkeys(part[0] for part in parts):
            terms += self._joined(index, axis, sorted(p[1:] for p in parts if p[0] == axis))
        if not terms:
            return None
        # Those of a square come twice, and together are the double of one.
        return added(graph, [added(graph, [t] * often) for t, often in Counter(terms).items()])

    def _joined(self, index: int, axis: int, parts: list[tuple[int, int, int]]) -> list[int]:
        """Cotangents of slices side by side, zeros in the gaps; more rows where they overlap."""
        graph, shape = self.graph, self.graph.nodes[index].shape
        rows: list[list[tuple[int, int, int]]] = []
        for part in parts:
            row = next((r for r in rows if r[-1][1] <= part[0]), None)
            if row is None:
                rows.append([part])
            else:
                row.append(part)
        joined = []
        for row in rows:
            pieces, position = [], 0
            for start, stop, cotangent in [*row, (int(shape[axis]), 0, -1)]:
                if start > position:
                    gap = (*shape[:axis], start - position, *shape[len(shape) + axis + 1 :])
                    pieces.append(graph.add("expand", graph.constant(0.0), shape=gap))
                if cotangent >= 0:
                    pieces.append(cotangent)
                position = stop
            whole = len(pieces) == 1
            joined.append(pieces[0] if whole else graph.add("concat", *pieces, axis=axis))
        return joined

    def spread(self, index: int, g: int) -> None:
        """Hand a node's cotangent on to its operands."""
        node = self.graph.nodes[index]
        if node.op in OPS:
            self._spread_elementwise(index, node, g)
        elif node.op == "slice":
            axis, start, stop = (node.attr(name) for name in ("axis", "start", "stop"))
            if node.args[0] in self.active:
                self.parts.setdefault(node.args[0], []).append((axis, start, stop, g))
        elif node.op in _RULES:
            _RULES[node.op](self, index, node, g)

    def _spread_elementwise(self, index: int, node: Node, g: int) -> None:
        vjp = OPS[node.op].vjp
        if vjp is None:
            return  # flat everywhere
        graph = self.graph
        operands = [Expr(graph, a) for a in node.args]
        cotangents = vjp(Expr(graph, g), Expr(graph, index), *operands, **dict(node.attrs))
        for arg, cotangent in zip(node.args, cotangents, strict=True):
            if cotangent is not None:
                self.give(arg, cotangent.index)


def _reduce(graph: Graph, g: int, shape: Shape) -> int:
    """Sum a cotangent over the axes along which its node was stretched."""
    have = graph.nodes[g].shape
    if have == shape:
        return g
    if BATCH not in shape:  # a parameter: over the batch, and over time when the loop is done
        return graph.add("batch_sum", g, shape=shape)
    for axis in range(1 - len(shape), 0):
        if have[axis] != shape[axis]:
            g = graph.add("sum", g) if axis == -1 else added_up(graph, g, axis)
    return g


def _product(b: _Backward, index: int, node: Node, g: int) -> None:
    a, w = node.args
    if a in b.active:
        b.give(a, b.graph.add("product", g, b.graph.add("transpose", w)))
    if w in b.active:
        batched = BATCH in b.graph.nodes[a].shape
        left = a if batched else b.graph.add("transpose", a)
        b.give(w, b.graph.add("outer" if batched else "product", left, g))


def _matmul(b: _Backward, index: int, node: Node, g: int) -> None:
    a, w = node.args
    b.give(a, times(b.graph, g, b.graph.add("transpose", w)))
    b.give(w, times(b.graph, b.graph.add("transpose", a), g))


def _concat(b: _Backward, index: int, node: Node, g: int) -> None:
    axis, start = node.attr("axis"), 0
    for arg in node.args:
        stop = start + int(b.graph.nodes[arg].shape[axis])
        b.give(arg, b.graph.add("slice", g, axis=axis, start=start, stop=stop))
        start = stop


def _amax(b: _Backward, index: int, node: Node, g: int) -> None:
    graph, (a,) = b.graph, node.args
    largest = Expr(graph, graph.add("eq", a, index))
    ones = largest.apply("where", largest, 1.0, 0.0)
    share = ones / Expr(graph, graph.add("sum", ones.index))  # ties share alike, as in autograd
    b.give(a, (Expr(graph, g) * share).index)


def _custom(b: _Backward, index: int, node: Node, g: int) -> None:
    for x, gradient in custom.gradients(b.graph, node, g):
        b.give(x, gradient)


_RULES: dict[str, Callable[[_Backward, int, Node, int], None]] = {
    "product": _product,
    "matmul": _matmul,
    "concat": _concat,
    "amax": _amax,
    "custom_vjp": _custom,
    "transpose": lambda b, index, node, g: b.give(node.args[0], b.graph.add("transpose", g)),
    "reshape": lambda b, index, node, g: b.give(
        node.args[0], b.graph.add("reshape", g, shape=b.graph.nodes[node.args[0]].shape)
    ),
    "expand": lambda b, index, node, g: b.give(node.args[0], g),
    "total": lambda b, index, node, g: b.give(
        node.args[0], b.graph.add("expand", g, shape=b.graph.nodes[node.args[0]].shape)
    ),
    "sum": lambda b, index, node, g: b.give(
        node.args[0], b.graph.add("expand", g, shape=b.graph.nodes[node.args[0]].shape)
    ),
}
