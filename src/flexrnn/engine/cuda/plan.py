"""A program, divided and written as kernels for one dtype."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cuda import kernels
from flexrnn.engine.cuda.emit import WIDTHS, Source, source
from flexrnn.engine.lowering.extract import Extract, extract
from flexrnn.engine.lowering.stages import Loop, lower
from flexrnn.engine.step import CannotRunError

REAL = {  # of every dtype, what numbers in registers are
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


class Kernels:
    """One loop, lowered, and written as often as there are widths of tiles.

    Args:
        stages: of the loop.
        dtype: of inputs, parameters and states.
        backward: it runs from the last step to the first.
    """

    def __init__(self, stages: Loop, dtype: torch.dtype, *, backward: bool):
        self.stages, self.backward = stages, backward
        self.real, self.operand = (str(d).replace("torch.", "tl.") for d in (REAL[dtype], dtype))
        self.chosen: dict[Hashable, Any] = {}  # what `tiers` has found out, by what it depends on
        self._sources: dict[Hashable, Source] = {}

    def source(self, widest: int = WIDTHS[-1], *, even: bool = False) -> Source:
        """The source with tiles of so many units at most; `even`: see `emit.source`."""
        key = widest, even
        if key not in self._sources:
            self._sources[key] = source(
                self.stages,
                backward=self.backward,
                real=self.real,
                operand=self.operand,
                widest=widest,
                even=even,
                whole=self.real != "tl.float64" or kernels.keeps_doubles(),
            )
        return self._sources[key]


class Plan(NamedTuple):
    """A program in both directions of time."""

    parts: Extract
    forward: Kernels
    backward: Kernels | None


_plans: WeakKeyDictionary[Graph, dict[Hashable, Plan]] = WeakKeyDictionary()


def plan_of(program: Program, keep: Sequence[str], dtype: torch.dtype) -> Plan:
    """Write the kernels of a program, or find them written.

    Args:
        program: the program.
        keep: fields of the state that are wanted at every step.
        dtype: of inputs, parameters and states.

    Raises:
        CannotRunError: the program holds what no kernel does.
    """
    plans = _plans.setdefault(program.graph, {})
    key = (tuple(keep), dtype)
    if key not in plans:
        plans[key] = _made(program, tuple(keep), dtype)
    return plans[key]


def _made(program: Program, keep: tuple[str, ...], dtype: torch.dtype) -> Plan:
    if any(0 in node.shape for node in program.graph.nodes):
        raise CannotRunError("the cuda engine wants every tensor to have a number in a row")
    # The input's product is one large one for all steps, and so are sums over batch and time.
    parts = extract(program, hoist=True, keep=keep, sum_inside=False)
    outputs = parts.forward.graph.outputs
    if not outputs:
        raise CannotRunError("the step returns its old state: there is nothing to run")
    for field in program.fields:
        if field not in parts.constant and (field in keep or field in parts.recorded):
            outputs[f"history.{field}"] = outputs[f"after.{field}"]
    backward = None
    if parts.backward is not None:
        backward = _kernels(parts.backward.graph, dtype, backward=True)
    return Plan(parts, _kernels(parts.forward.graph, dtype, backward=False), backward)


def _kernels(graph: Graph, dtype: torch.dtype, *, backward: bool) -> Kernels:
    loop = Kernels(lower(graph), dtype, backward=backward)
    loop.source()  # refuses what no kernel does
    return loop
