"""A graph under construction, and what stands for its nodes meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

from flexrnn.engine.compiler.graph import BATCH, Graph, Shape
from flexrnn.engine.compiler.ops import OPS

Value = Any  # a `Ref`, a `View`, a number, or a list of them


TO_THE_END = 2**63 - 1  # torch's for a slice without a stop


class Ref(int):
    """The index of a node, which is thereby told from a number."""


class Unsupported(Exception):  # noqa: N818  # caught by the tracer, which adds the place
    """This use of an operation has no form in the graph."""


class Builder:
    """A graph under construction, with what handlers need of it."""

    def __init__(self) -> None:
        self.graph = Graph()

    def shape(self, a: Ref) -> Shape:
        """The shape of a node."""
        return self.graph.nodes[a].shape

    def op(self, name: str, *operands: Any, **attrs: Any) -> Ref:
        """A node; operands that are numbers become constants.

        Truth values and numbers are two kinds: an operand of the other kind is converted.
        """
        args = [o if isinstance(o, Ref) else Ref(self.graph.constant(o)) for o in operands]
        if name in ("and", "or", "not"):
            args = [self.truth(a) for a in args]
        elif name in OPS or name in ("product", "sum", "amax"):
            first = 1 if name == "where" else 0
            args = [*map(self.truth, args[:first]), *map(self.real, args[first:])]
        elif name == "concat" and not all(self.graph.nodes[a].boolean for a in args):
            args = [self.real(a) for a in args]
        return Ref(self.graph.add(name, *args, **attrs))

    def real(self, a: Ref) -> Ref:
        """A truth value as 1 or 0; a number as it is."""
        return self.op("where", a, 1.0, 0.0) if self.graph.nodes[a].boolean else a

    def truth(self, a: Ref) -> Ref:
        """Whether a number is other than 0; a truth value as it is."""
        return a if self.graph.nodes[a].boolean else self.op("ne", a, 0.0)

    def axis(self, a: Ref, dim: int) -> int:
        """A dimension counted from the end; the batch's is refused."""
        shape = self.shape(a)
        axis = dim if dim < 0 else dim - len(shape)
        if not shape:  # torch takes a number for one that has an axis
            raise Unsupported("it works along an axis of a single number")
        if shape[axis] == BATCH:
            raise Unsupported("it works across the batch")
        return axis

    def slice(self, a: Ref, axis: int, start: int, stop: int) -> Ref:
        """A part of a node along an axis."""
        whole = (start, stop) == (0, self.shape(a)[axis])
        return a if whole else self.op("slice", a, axis=axis, start=start, stop=stop)

    def concat(self, parts: Sequence[Ref], axis: int) -> Ref:
        """Nodes side by side along an axis; a single one as it is."""
        return parts[0] if len(parts) == 1 else self.op("concat", *parts, axis=axis)

    def grouped(self, a: Ref, axis: int, size: int) -> Ref:
        """An axis as two: which group, and which of its so many places, where the axis was."""
        shape = self.shape(a)
        before, behind = shape[:axis], shape[len(shape) + axis + 1 :]
        return self.reshape(a, (*before, int(shape[axis]) // size, size, *behind))

    def ungrouped(self, a: Ref, axis: int) -> Ref:
        """An axis and the one before it as one."""
        shape = self.shape(a)
        before, behind = shape[: axis - 1], shape[len(shape) + axis + 1 :]
        return self.reshape(a, (*before, int(shape[axis - 1]) * int(shape[axis]), *behind))

    def reshape(self, a: Ref, shape: Shape) -> Ref:
        """A node in another shape; the batch stays the first axis."""
        return Ref(reshape(self.graph, a, shape))


def reshape(graph: Graph, index: int, shape: Shape) -> int:
    """A node in another shape; the batch stays the first axis."""
    old = graph.nodes[index].shape
    if (BATCH in old) != (BATCH in shape) or (BATCH in shape and shape[0] != BATCH):
        raise Unsupported("it moves the batch")
    return index if old == shape else graph.add("reshape", index, shape=tuple(shape))


def number(value: Any) -> float:
    """A number of Python's."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    if value == BATCH:
        raise Unsupported("it depends on the batch size")
    raise Unsupported("it takes something that is neither a tensor nor a number")


def without(shape: Shape, axis: int) -> Shape:
    """A shape less an axis, which is counted from the end."""
    return (*shape[:axis], *shape[len(shape) + axis + 1 :])


Handler = Callable[..., Value]  # (builder, *args, **kwargs), as the aten operation takes them
Handlers = dict[str, Handler]


def handles(table: Handlers, *names: str) -> Callable[[Handler], Handler]:
    """Put a handler into a table as that of the aten operations of these names."""

    def register(handler: Handler) -> Handler:
        table.update(dict.fromkeys(names, handler))
        return handler

    return register
