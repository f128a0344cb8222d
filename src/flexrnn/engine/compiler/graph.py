"""The graph that every pass of the compiler turns into another: single assignment, pure, shaped.

A node is an operation on earlier nodes. Elementwise operations are the rows of `ops.OPS`; the few
others stand in `SHAPES`, each with the rule for its shape. A shape names the batch "B"; time is no
axis of it, for a graph says what happens at one step.

Adding a node that exists returns the one that exists: common subexpressions are never computed
twice, and no pass has to look for them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flexrnn.engine.compiler.ops import OPS, Expression

if TYPE_CHECKING:
    from flexrnn.engine.compiler.ahead import Ahead

Shape = tuple[int | str, ...]
BATCH = "B"


class Node(NamedTuple):
    """One operation on earlier nodes."""

    op: str
    args: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]
    shape: Shape
    boolean: bool

    def attr(self, name: str) -> Any:
        """The value of an attribute."""
        return dict(self.attrs)[name]


_ALONG = ("sum", "amax")
_SHAPED = slice(3, 5)  # shape and kind of a node, on which those of its users depend


class Graph:
    """Nodes in an order in which they can be computed; names of inputs and of what is wanted."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.sources: dict[int, str] = {}  # node -> file:line of the user's code, where known
        self.called: dict[int, str] = {}  # node -> the person's name for it, where known
        self.ahead: Ahead | None = None  # what makes those of its inputs that nobody gives
        # Whether products may round what they multiply to bfloat16: the call is in that type, and
        # its tensors are given in float32 to an engine that computes all else in it.
        self.narrow = False
        self._index: dict[tuple[Any, ...], int] = {}

    def input(self, name: str, shape: Shape, boolean: bool = False) -> int:
        """A new input."""
        node = Node("input", (), (("name", name),), shape, boolean)
        self.inputs[name] = self._append(node, _key(*node[:3]))
        return self.inputs[name]

    def add(self, op: str, *args: int, **attrs: Any) -> int:
        """The index of the node `op(*args)`, which is made where it does not exist.

        Raises:
            ValueError: the operands do not fit the operation.
        """
        attributes = tuple(sorted(attrs.items()))
        key = _key(op, args, attributes)
        if key in self._index:
            return self._index[key]
        shapes = tuple(self.nodes[a].shape for a in args)
        _check_signature(op, shapes, attrs)
        if op in _ALONG and shapes[0][-1:] == (1,):  # of one number it is that
            return args[0]
        shape = SHAPES[op].rule(shapes, attrs) if op in SHAPES else broadcast(op, shapes)
        boolean = OPS[op].boolean if op in OPS else any(self.nodes[a].boolean for a in args)
        return self._append(Node(op, args, attributes, shape, boolean), key)

    def copy(self, other: "Graph", node: Node, args: tuple[int, ...]) -> int:
        """The index of a node of another graph here, where its operands are `args`."""
        for here, there in zip(args, node.args, strict=True):
            if self.nodes[here][_SHAPED] != other.nodes[there][_SHAPED]:
                return self.add(node.op, *args, **dict(node.attrs))
        key = _key(node.op, args, node.attrs)
        found = self._index.get(key)
        if found is not None:
            return found
        return self._append(node if args == node.args else Node(node.op, args, *node[2:]), key)

    def constant(self, value: float) -> int:
        """A number."""
        return self.add("constant", value=float(value))

    def _append(self, node: Node, key: tuple[Any, ...]) -> int:
        self.nodes.append(node)
        self._index[key] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def users(self) -> list[list[int]]:
        """Of every node, the nodes that read it."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for arg in dict.fromkeys(node.args):
                users[arg].append(index)
        return users

    def constant_states(self) -> set[str]:
        """Names of the states that a step returns as it was given them: the same at every step."""
        return {
            name
            for name, index in self.inputs.items()
            if name.startswith("state.") and self.outputs.get(name) == index
        }

    def has_empty(self) -> bool:
        """Whether an output comes from a tensor without a number; one that nobody reads may be."""
        needed = self.ancestors([*self.outputs.values()])
        return any(0 in self.nodes[index].shape for index in needed)

    def ancestors(self, roots: "set[int] | list[int]") -> set[int]:
        """The given nodes and everything that they are computed from."""
        found, pending = set(), list(roots)
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending.extend(self.nodes[index].args)
        return found

    def call_as(self, graph: "Graph", where: Mapping[int, int]) -> None:
        """Give nodes the names of those of another graph that they stand for."""
        for index, name in graph.called.items():
            if index in where:
                self.called.setdefault(where[index], name)


def _key(op: str, args: tuple[int, ...], attrs: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """What makes two nodes one. Numbers count by what they are, for -0.0 == 0.0 and nan != nan."""
    if not attrs or op in _WITHOUT_NUMBERS:
        return op, args, attrs
    return op, args, tuple((k, v.hex() if isinstance(v, float) else v) for k, v in attrs)


_WITHOUT_NUMBERS = {"slice", "concat", "reshape", "expand", "batch_sum"}  # but places and sizes

Rule = Callable[[Graph, Node, tuple[int, ...], int], int | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """A new graph in which `rule(new, node, new_args, old_index)` says what becomes of each node.

    The rule returns a node of the new graph, or `None` for a copy. What no output needs is left
    out; inputs stay, for they are the graph's signature, and come first: a rule may need any.
    """
    new, where = Graph(), dict[int, int]()
    for name, index in graph.inputs.items():
        where[index] = new.input(name, graph.nodes[index].shape, graph.nodes[index].boolean)
    alive = graph.ancestors(list(graph.outputs.values()))
    for index, node in enumerate(graph.nodes):
        if index in alive and node.op != "input":
            args = tuple(where[a] for a in node.args)
            first_new = len(new.nodes)
            made = rule(new, node, args, index)
            where[index] = new.copy(graph, node, args) if made is None else made
            if index in graph.sources:
                for added in range(first_new, len(new.nodes)):
                    new.sources.setdefault(added, graph.sources[index])
    new.outputs = {name: where[index] for name, index in graph.outputs.items()}
    new.call_as(graph, where)
    return new


def swept(graph: Graph) -> Graph:
    """A graph without what no output needs, with its inputs first: the same one, if it is so."""
    alive, first = graph.ancestors(list(graph.outputs.values())), len(graph.inputs)
    if [*graph.inputs.values()] == [*range(first)] and alive.issuperset(
        range(first, len(graph.nodes))
    ):
        return graph
    return rewrite(graph, lambda *_: None)


def added(graph: Graph, terms: Sequence[int]) -> int:
    """The sum of some nodes, one added to another."""
    total, *others = terms
    for term in others:
        total = graph.add("add", total, term)
    return total


def broadcast(op: str, shapes: tuple[Shape, ...]) -> Shape:
    """The shape of an elementwise operation: axes are aligned at the end, 1 stretches."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            raise ValueError(f"{op}: expected shapes that broadcast, got {shapes}")
        result.append(wide.pop() if wide else 1)
    if BATCH in result[1:]:
        raise ValueError(f"{op}: expected the batch to stay the first axis, got {shapes}")
    return tuple(result)


def _product(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    a, w = shapes  # (..., K) · (K, N), or head by head (B, G, K) · (G, K, N)
    if BATCH in w or not a or a[-1] != w[-2] or w[:-2] != a[1 : len(w) - 1]:
        raise ValueError(f"product: expected (B, K) and (K, N), got {a} and {w}")
    return (*a[:-1], w[-1])


def _matmul(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    a, w = shapes  # matrices of every row, and head by head: (B, ..., M, K) · (B, ..., K, N)
    if BATCH not in a[:-2] or a[:-2] != w[:-2] or a[-1] != w[-2]:
        raise ValueError(f"matmul: expected (B, M, K) and (B, K, N), got {a} and {w}")
    return (*a[:-1], w[-1])


def _outer(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    a, g = shapes  # Σ over batch (and time) of aᵀ g: the gradient of a product's weight
    if BATCH not in a or a[:-1] != g[:-1]:
        raise ValueError(f"outer: expected (B, K) and (B, N), got {a} and {g}")
    return (*a[1:-1], a[-1], g[-1])


def _last_axis(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (shape,) = shapes
    if not shape or shape[-1] == BATCH:
        raise ValueError(f"expected an axis that is not the batch, got {shape}")
    return (*shape[:-1], 1)


def _total(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (shape,), axis = shapes, attrs["axis"]
    if _size(shape, axis) and axis == -1:
        raise ValueError("total: expected an axis before the last, along which a sum is a `sum`")
    return (*shape[:axis], 1, *shape[len(shape) + axis + 1 :])


def _moment(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    row, total = shapes
    if _last_axis((row,), attrs) != total:
        raise ValueError(f"moment: expected a row and its sum, got {row} and {total}")
    return total


def _transpose(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (shape,) = shapes
    if len(shape) < 2 or BATCH in shape[-2:]:
        raise ValueError(f"transpose: expected two axes beside the batch, got {shape}")
    return (*shape[:-2], shape[-1], shape[-2])


def _slice(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (shape,), axis, start, stop = shapes, attrs["axis"], attrs["start"], attrs["stop"]
    size = _size(shape, axis)
    if not 0 <= start < stop <= size:
        raise ValueError(f"slice: expected a part of {size}, got {start} to {stop}")
    return (*shape[:axis], stop - start, *shape[len(shape) + axis + 1 :])


def _concat(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    axis = attrs["axis"]
    size = sum(_size(shape, axis) for shape in shapes)
    rest = {(*s[:axis], *s[len(s) + axis + 1 :]) for s in shapes}
    if len(rest) != 1:
        raise ValueError(f"concat: expected shapes that differ along axis {axis}, got {shapes}")
    first = shapes[0]
    return (*first[:axis], size, *first[len(first) + axis + 1 :])


def _size(shape: Shape, axis: int) -> int:
    if not -len(shape) <= axis < 0 or shape[axis] == BATCH:
        raise ValueError(f"expected an axis from the end and not the batch, got {axis} of {shape}")
    return int(shape[axis])


def _reshape(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (old,), new = shapes, attrs["shape"]
    if old[:1] == (BATCH,):
        same = new[:1] == (BATCH,) and _count(old[1:]) == _count(new[1:])
    else:
        same = BATCH not in new and _count(old) == _count(new)
    if not same:
        raise ValueError(f"reshape: expected as many numbers as in {old}, got {new}")
    return new


def _count(shape: Shape) -> int:
    return math.prod(map(int, shape))


def _expand(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (old,), new = shapes, attrs["shape"]
    if len(old) > len(new) or broadcast("add", (old, new)) != new:
        raise ValueError(f"expand: expected a shape that {old} stretches to, got {new}")
    return new


def _batch_sum(shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> Shape:
    (old,), new = shapes, attrs["shape"]
    if BATCH in new or len(old) < len(new) or broadcast("add", (old, new)) != old:
        raise ValueError(f"batch_sum: expected a shape that stretches to {old}, got {new}")
    return new


class Structure(NamedTuple):
    """An operation that is not elementwise: the rule for its shape, and what it takes."""

    rule: Callable[[tuple[Shape, ...], dict[str, Any]], Shape]
    operands: int  # of `concat` any number above 0, of `custom_vjp` pairs besides
    attributes: tuple[str, ...] = ()


SHAPES: dict[str, Structure] = {
    "constant": Structure(lambda shapes, attrs: (), 0, ("value",)),
    "product": Structure(_product, 2),
    "matmul": Structure(_matmul, 2),
    "outer": Structure(_outer, 2),
    "transpose": Structure(_transpose, 1),
    "slice": Structure(_slice, 1, ("axis", "start", "stop")),
    "concat": Structure(_concat, 0, ("axis",)),
    "reshape": Structure(_reshape, 1, ("shape",)),
    "expand": Structure(_expand, 1, ("shape",)),
    "detach": Structure(lambda shapes, attrs: shapes[0], 1),  # the value without its derivative
    "opaque": Structure(lambda shapes, attrs: shapes[0], 1),  # what autograd need not look into
    "custom_vjp": Structure(lambda shapes, attrs: shapes[0], 2),  # `custom.py`
    "cotangent": Structure(lambda shapes, attrs: attrs["shape"], 0, ("shape", "number")),
    "sum": Structure(_last_axis, 1),
    "amax": Structure(_last_axis, 1),
    "total": Structure(_total, 1, ("axis",)),  # a sum along another axis than the last
    "moment": Structure(_moment, 2),  # of a row and its sum, Σ (x - Σ x / n)²: `moments.py`
    "batch_sum": Structure(_batch_sum, 1, ("shape",)),  # over batch, time, and what was stretched
}
_KINDS = {"axis": int, "start": int, "stop": int, "shape": tuple}  # the others are numbers


def _check_signature(op: str, shapes: tuple[Shape, ...], attrs: dict[str, Any]) -> None:
    if op in SHAPES:
        _, operands, names = SHAPES[op]
        several = {"concat": len(shapes) > 0, "custom_vjp": len(shapes) % 2 == 0}
        fits = several.get(op, len(shapes) == operands)
    elif op in OPS:
        names = tuple(name for name, _ in OPS[op].attributes)
        fits = len(shapes) == len(OPS[op].domain)
    else:
        raise ValueError(f"expected a known operation, got {op!r}")
    if not fits or set(attrs) != set(names):
        raise ValueError(f"{op}: got {len(shapes)} operands and the attributes {sorted(attrs)}")
    for name, value in attrs.items():
        if type(value) is not _KINDS.get(name, float):
            raise ValueError(f"{op}: expected another {name} than {value!r}")


class Expr(Expression):
    """A node with the arithmetic of a tensor, in which derivatives are written."""

    def __init__(self, graph: Graph, index: int):
        self.graph, self.index = graph, index

    def apply(self, name: str, *operands: Any, **attributes: float) -> "Expr":
        """The expression `name(*operands)`; some operands may be numbers."""
        args = (o.index if isinstance(o, Expr) else self.graph.constant(o) for o in operands)
        return Expr(self.graph, self.graph.add(name, *args, **attributes))

    def __add__(self, other: Any) -> "Expr":
        return self.apply("add", self, other)

    def __sub__(self, other: Any) -> "Expr":
        return self.apply("sub", self, other)

    def __rsub__(self, other: Any) -> "Expr":
        return self.apply("sub", other, self)

    def __mul__(self, other: Any) -> "Expr":
        return self.apply("mul", self, other)

    def __truediv__(self, other: Any) -> "Expr":
        return self.apply("div", self, other)

    def __neg__(self) -> "Expr":
        return self.apply("neg", self)
