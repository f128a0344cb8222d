"""A program, divided and written as kernels for one dtype."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cuda.written import Written
from flexrnn.engine.lowering.extract import Extract, extract
from flexrnn.engine.lowering.matrices import number_by_number
from flexrnn.engine.lowering.stages import lower
from flexrnn.engine.step import CannotRunError


class Plan(NamedTuple):
    """A program in both directions of time."""

    parts: Extract
    forward: Written
    backward: Written | None


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


def plan_with_lines(program: Program, dtype: torch.dtype) -> Plan:
    """The same, to be read by a person: formulas name the lines that they are from."""
    return _made(program, program.fields[:1], dtype, lines=True)


def _made(
    program: Program, keep: tuple[str, ...], dtype: torch.dtype, *, lines: bool = False
) -> Plan:
    if program.graph.has_empty():
        raise CannotRunError("the cuda engine wants every tensor to have a number in a row")
    # The input's product is one large one for all steps, and so are sums over batch and time.
    parts = extract(program, hoist=True, keep=keep, sum_inside=False, lines=lines)
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


def _kernels(graph: Graph, dtype: torch.dtype, *, backward: bool) -> Written:
    lowered = lower(number_by_number(graph), again=False)
    loop = Written(lowered, dtype, backward=backward)
    loop.source()  # refuses what no kernel does
    return loop
