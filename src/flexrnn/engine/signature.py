"""The operands of a program in one row, as an operator of torch's takes them."""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program

Operands = tuple[Sequence[Tensor], Sequence[Tensor], dict[str, Tensor]]


class Signature(NamedTuple):
    """Inputs, state and the other tensors, in this order."""

    names: tuple[str, ...]  # `x0`, `state.FIELD`, `param.NAME`
    inputs: int
    states: int
    params: tuple[str, ...]  # NAME alone
    gradients: tuple[str, ...]  # the operands whose gradient the program computes, in this order
    flat: tuple[int, ...]  # places of the tensors by name whose gradient it does not compute

    def parts(self, row: Sequence[Tensor]) -> Operands:
        """Inputs, state, and the other tensors by name, as engines take them."""
        end = self.inputs + self.states
        params = dict(zip(self.params, row[end:], strict=True))
        return row[: self.inputs], row[self.inputs : end], params


_known: WeakKeyDictionary[Graph, Signature] = WeakKeyDictionary()


def signature(program: Program) -> Signature:
    """A program's signature."""
    graph = program.graph
    if (known := _known.get(graph)) is None:
        names = tuple(name for name in graph.inputs if not name.startswith("cotangent."))
        states = sum(name.startswith("state.") for name in names)
        params = tuple(name[len("param.") :] for name in names if name.startswith("param."))
        gradients = tuple(name for name in names if f"grad.{name}" in graph.outputs)
        flat = tuple(
            k for k, name in enumerate(names) if name.startswith("param.") and name not in gradients
        )
        known = Signature(names, len(names) - states - len(params), states, params, gradients, flat)
        _known[graph] = known
    return known
