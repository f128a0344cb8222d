# pyright: reportPrivateUsage=false
# Whether an operation of torch's writes stands in its schema, which has no public name.
"""What of a step depends on its parameters alone, where torch is to compute it ahead."""

from collections.abc import Collection
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from flexrnn.engine.compiler import ahead
from flexrnn.engine.compiler.aten import Builder, Ref, Unsupported


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
        self._constants: dict[fx.Node, Tensor] = {}
        self._origins: dict[fx.Node, frozenset[str]] = {}
        self._inputs: dict[fx.Node, Ref] = {}

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

    def has(self, node: fx.Node) -> bool:
        """Whether a node depends on nothing else, and may be computed once for all steps."""
        if node not in self._origins and _is_pure(node):
            inputs = node.all_input_nodes
            if all(arg in self._origins for arg in inputs):
                self._origins[node] = frozenset().union(*(self._origins[arg] for arg in inputs))
        return node in self._origins

    def input(self, builder: Builder, made: Made) -> Ref:
        """The input of the graph that stands for what is made ahead.

        Raises:
            Unsupported: it is of a dtype that would become the result's.
        """
        node, value = made.node, made.node.meta["val"]
        if node not in self._inputs:
            if value.dtype != torch.bool and not self._is_promoted(value):
                raise Unsupported(f"its operand is of {value.dtype}, the state of {self.dtype}")
            name = f"param..{node.name}"
            boolean = value.dtype == torch.bool
            self._inputs[node] = Ref(builder.graph.input(name, tuple(value.shape), boolean))
        return self._inputs[node]

    def _is_promoted(self, value: Tensor) -> bool:
        """Whether torch computes with it in the state's dtype."""
        if value.is_complex() or not value.dim():
            return not value.is_complex()
        return torch.promote_types(value.dtype, self.dtype) == self.dtype

    def ahead(self) -> ahead.Ahead | None:
        """What makes the inputs that were asked for."""
        if not self._inputs:
            return None
        needed = _ancestors(self._inputs)
        written = next(iter(needed)).graph.nodes
        given = [node for node in written if node in needed and node.op == "placeholder"]
        values: dict[fx.Node, Any] = {node: ahead.Ref(k) for k, node in enumerate(given)}
        calls: list[ahead.Call] = []
        known: dict[str, ahead.Ref] = {}

        def call(name: str, args: Any, kwargs: Any) -> ahead.Ref:
            made = ahead.Call(name, tuple(args), dict(kwargs))
            if repr(made) not in known:  # else the step says the same twice
                calls.append(made)
                known[repr(made)] = ahead.Ref(len(given) + len(calls) - 1)
            return known[repr(made)]

        for node in written:
            if node not in needed or node in values:
                continue
            if node.op == "get_attr":
                value = self._constants[node]
                values[node] = call(ahead.TENSOR, [value.tolist(), value.dtype, value.device], {})
                continue
            name = ahead.ITEM if node.target is getitem else str(node.target).removeprefix("aten.")
            args, kwargs = (fx.map_arg(a, values.__getitem__) for a in (node.args, node.kwargs))
            values[node] = call(name, args, kwargs)
        results: list[ahead.Ref] = []
        for node in self._inputs:
            value = node.meta["val"]
            dtype = torch.bool if value.dtype == torch.bool else self.dtype
            if (value.dtype, value.device) != (dtype, self.device):
                kind = {"dtype": dtype, "device": self.device}
                values[node] = call("_to_copy.default", [values[node]], kind)
            results.append(values[node])
        return ahead.Ahead(
            tuple(f"param..{node.name}" for node in self._inputs),
            tuple(name for node in given for name in self._origins[node]),
            tuple(tuple(sorted(self._origins[node])) for node in self._inputs),
            tuple(calls),
            tuple(results),
        )


def _is_pure(node: fx.Node) -> bool:
    """Whether a node makes tensors, always the same of the same."""
    if node.target is getitem:
        return True
    return (
        isinstance(node.target, OpOverload)
        and isinstance(node.meta.get("val"), (Tensor, list, tuple))
        and not node.target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )


def _ancestors(nodes: Collection[fx.Node]) -> set[Any]:
    found, pending = set[Any](), list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found
