"""Write operations into a step that torch has written down, in front of the one they stand for."""

from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from flexrnn.engine.compiler.called import place_of_node
from flexrnn.engine.compiler.refusal import CannotCompileError

aten: Any = torch.ops.aten
Part = Any  # a node; or a number of Python's that every one of them is


class Pair(NamedTuple):
    """A complex tensor, or several, by its real and its imaginary part."""

    real: Part
    imag: Part


class Writer:
    """Writes real operations for one node after another.

    Args:
        graph: of the step.
    """

    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.node: fx.Node = next(iter(graph.nodes))
        self._batch: fx.Node | None = None

    def __call__(self, target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        """One operation of aten's."""
        value = target(*fx.map_arg(args, _value), **fx.map_arg(kwargs, _value))
        return self._written(target, args, kwargs, value)

    def item(self, several: Part, number: int) -> Part:
        """One of several results."""
        if not isinstance(several, fx.Node):
            return several
        value = several.meta["val"][number]
        return self._written(getitem, (several, number), {}, value)

    def _written(self, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        made.meta = {**self.node.meta, "val": value}
        return made

    def fitted(self, pair: Pair, value: Tensor) -> Pair:
        """Parts that are as large as a complex tensor, and as exact; a number may be 0."""
        like = next((part for part in pair if isinstance(part, fx.Node)), None)
        if like is None:
            real = self.filled(value, pair.real)
            return Pair(real, self.filled(value, pair.imag) if pair.imag else 0)
        real, imag = (self._fitted(p, value) if p or isinstance(p, fx.Node) else 0 for p in pair)
        return Pair(real, imag)

    def _fitted(self, part: Part, value: Tensor) -> fx.Node:
        if not isinstance(part, fx.Node):
            return self.filled(value, part)
        dtype, own = value.dtype.to_real(), part.meta["val"]
        if own.dtype != dtype:
            part = self(aten._to_copy.default, part, dtype=dtype)
        if not _alike(own.shape, value.shape):
            part = self(aten.expand.default, part, self._sizes(value))
        return part

    def filled(self, value: Tensor, number: float) -> fx.Node:
        """A real tensor as large as another, of one number."""
        kind = {"dtype": value.dtype.to_real(), "device": value.device}
        return self(aten.full.default, self._sizes(value), number, **kind)

    def whole(self, pair: Pair) -> tuple[fx.Node, fx.Node]:
        """Both parts as nodes."""
        like = next(part for part in pair if isinstance(part, fx.Node)).meta["val"]
        real, imag = (p if isinstance(p, fx.Node) else self.filled(like, p) for p in pair)
        return real, imag

    def _sizes(self, value: Tensor) -> list[Any]:
        return [size if isinstance(size, int) else self._size(size) for size in value.shape]

    def _size(self, size: torch.SymInt) -> fx.Node:
        """The batch, which the graph's first input of rows has as its first size."""
        if self._batch is None:
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            rows = next(node for node in inputs if not isinstance(_first_size(node), int))
            with self.graph.inserting_after(inputs[-1]):
                self._batch = self.graph.call_function(aten.sym_size.int, (rows, 0))
            self._batch.meta["val"] = _first_size(rows)
        if str(size) != str(self._batch.meta["val"]):
            raise self.refused("it makes one axis of rows and others")
        return self._batch

    def refused(self, why: str) -> CannotCompileError:
        """That the operation cannot be compiled, at the person's line."""
        return CannotCompileError(
            f"{self.node.target} cannot be compiled: {why}, {place_of_node(self.node)}"
        )


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _first_size(node: fx.Node) -> Any:
    return next(iter(node.meta["val"].shape), 1)


def _alike(a: Any, b: Any) -> bool:
    """Whether two shapes are one; to compare a size with the batch would be a question."""
    return [*map(str, a)] == [*map(str, b)]
