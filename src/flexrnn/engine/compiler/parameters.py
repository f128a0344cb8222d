# pyright: reportPrivateUsage=false
# Whether an operation of torch's writes stands in its schema, which has no public name.
"""What of a step depends on its parameters alone, where torch is to compute it ahead."""

from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from flexrnn.engine.compiler import ahead
from flexrnn.engine.compiler.aten import Builder, Ref, Unsupported
from flexrnn.engine.compiler.called import place_of_node
from flexrnn.engine.compiler.ranges import KNOWN, is_whole, most, most_given


class Made(NamedTuple):
    """A value that torch computes ahead; or several, as a list."""

    node: fx.Node


class Parameters:
    """What of a step, as torch has written it down, depends on its parameters alone.

    Args:
        dtype, device: of the state.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.places: list[str] = []  # of every call of what is made ahead, the person's line
        self._constants: dict[fx.Node, Tensor] = {}
        self._origins: dict[fx.Node, frozenset[str]] = {}
        self._alike: dict[fx.Node, fx.Node] = {}  # the first that computes the same
        self._firsts: dict[str, fx.Node] = {}
        self._inputs: dict[fx.Node, Ref] = {}
        self._counted = set[fx.Node]()  # of whole numbers, those that count as such
        self._checks: list[fx.Node] = []

    def given(self, node: fx.Node, name: str) -> Made | None:
        """Note an input of the graph; what torch makes of it, if that is of another dtype."""
        if not name.startswith("param."):
            return None
        self._origins[node] = frozenset([name])
        return None if node.meta["val"].dtype in (self.dtype, torch.bool) else Made(node)

    def constant(self, node: fx.Node, value: Tensor) -> Made:
        """Note a tensor that the step makes of numbers."""
        self._constants[node] = node.meta["val"] = value
        self._origins[node] = frozenset()
        return Made(node)

    def note(self, node: fx.Node) -> None:
        """Note an operation, after those that it reads: what it depends on, and what it checks."""
        inputs = node.all_input_nodes
        if not is_pure(node) or not all(arg in self._origins for arg in inputs):
            return
        self._origins[node] = frozenset().union(*(self._origins[arg] for arg in inputs))
        if node.meta.get("val") is None:
            self._checks.append(node)

    def has(self, node: fx.Node) -> bool:
        """Whether a node depends on nothing else, and may be computed once for all steps."""
        return node in self._origins

    def made(self, node: fx.Node) -> Made:
        """Let torch compute a node, once for all that are alike."""
        args, kwargs = (fx.map_arg(part, self._first) for part in (node.args, node.kwargs))
        first = self._firsts.setdefault(repr((node.target, args, kwargs)), node)
        self._alike[node] = first
        return Made(first)

    def _first(self, node: fx.Node) -> fx.Node:
        return self._alike.get(node, node)

    def input(self, builder: Builder, made: Made, *, promotes: bool, counts: bool = False) -> Ref:
        """The input of the graph that stands for what is made ahead.

        Args:
            builder: of the graph.
            made: the value.
            promotes: whether it is for an operation on operands of several dtypes.
            counts: whether that computes with whole numbers; torch makes reals of them elsewhere.

        Raises:
            Unsupported: it is of a dtype that the operation does not take, or that would become the
                result's.
        """
        node, value = made.node, made.node.meta["val"]
        boolean = value.dtype == torch.bool
        if not boolean and value.dtype != self.dtype and not (promotes and self._yields(value)):
            raise Unsupported(f"its operand is of {value.dtype}, the state of {self.dtype}")
        if counts and is_whole(value):
            self._counted.add(node)
        if node not in self._inputs:
            name = f"param..{node.name}"
            self._inputs[node] = Ref(builder.graph.input(name, tuple(value.shape), boolean))
        return self._inputs[node]

    def _is_small(self, node: fx.Node) -> bool:
        """Whether whole numbers are of a size that is known before there are any."""
        given = any(name for name in self._origins[node])
        bound = None if given else most(node, self.dtype)
        return self.dtype not in KNOWN or (bound is not None and bound <= KNOWN[self.dtype])

    def _yields(self, value: Tensor) -> bool:
        """Whether torch computes with it in the state's dtype."""
        if value.is_complex() or not value.dim():
            return not value.is_complex()
        return torch.promote_types(value.dtype, self.dtype) == self.dtype

    def ahead(self) -> ahead.Ahead | None:
        """What makes the inputs that were asked for, and checks what the step checks of it."""
        needed = self._needed()
        if not needed:
            return None
        written = next(iter(needed)).graph.nodes
        given = [node for node in written if node in needed and node.op == "placeholder"]
        values: dict[fx.Node, Any] = {node: ahead.Ref(k) for k, node in enumerate(given)}
        calls: list[ahead.Call] = []

        def value_of(node: fx.Node) -> ahead.Ref:
            return values[self._first(node)]

        def call(node: fx.Node, name: str, *args: Any, **kwargs: Any) -> ahead.Ref:
            calls.append(ahead.Call(name, args, kwargs))
            self.places.append(place_of_node(node))
            return ahead.Ref(len(given) + len(calls) - 1)

        for node in written:
            if node not in needed or node in values:
                continue
            args, kwargs = (fx.map_arg(part, value_of) for part in (node.args, node.kwargs))
            if node.op == "get_attr":
                value = self._constants[node]
                made = call(node, ahead.TENSOR, value.tolist(), value.dtype, value.device)
            elif node.target is torch.ops.aten.copy.default:  # which has no derivative
                value = node.meta["val"]
                made = call(node, "expand.default", args[1], list(value.shape))
                kind = {"dtype": value.dtype, "device": value.device}
                made = call(node, "_to_copy.default", made, **kind)
            else:
                name = str(node.target).removeprefix("aten.")
                name = ahead.ITEM if node.target is getitem else name
                made = call(node, name, *args, **kwargs)
            values[node] = made
        results: list[ahead.Ref] = []
        for node in self._inputs:
            value = node.meta["val"]
            dtype = torch.bool if value.dtype == torch.bool else self.dtype
            if (value.dtype, value.device) != (dtype, self.device):
                kind = {"dtype": dtype, "device": self.device}
                if node in self._counted and not self._is_small(node):
                    most_known = most_given(self.dtype, value.dtype)
                    values[node] = call(node, ahead.WHOLE, values[node], most_known)
                values[node] = call(node, "_to_copy.default", values[node], **kind)
            results.append(values[node])
        return ahead.Ahead(
            tuple(f"param..{node.name}" for node in self._inputs),
            tuple(name for node in given for name in self._origins[node]),
            tuple(tuple(sorted(self._origins[node])) for node in self._inputs),
            tuple(calls),
            tuple(results),
        )

    def _needed(self) -> set[fx.Node]:
        """What is computed ahead: what makes the inputs, and what is checked."""
        found, pending = set[fx.Node](), [*self._inputs, *self._checks]
        while pending:
            node = self._first(pending.pop())
            if node not in found:
                found.add(node)
                pending.extend(node.all_input_nodes)
        return found


def is_pure(node: fx.Node) -> bool:
    """Whether a node makes tensors, always the same of the same, or checks some."""
    if node.target is getitem:
        return _has_sizes(node.meta.get("val"))
    operation = node.target
    return (
        isinstance(operation, OpOverload)
        and operation.namespace == "aten"
        and not operation._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in operation.tags
        and (not operation._schema.returns or _has_sizes(node.meta.get("val")))
    )


def _has_sizes(value: Any) -> bool:
    """Whether this is a tensor, or several, whose sizes depend on no numbers."""
    if isinstance(value, (list, tuple)):
        return all(map(_has_sizes, value))
    return isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)
