"""A step run by its program, outside of Dynamo."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flexrnn.engine import differentiable, operator, reference
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program, dumps
from flexrnn.engine.engines import ENGINES
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import ComposedStep, wanted_of

_texts: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()


def run(
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
    engine: str,
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step by the named engine; operands as in `reference.run`.

    Calls whose derivatives only ordinary operations have are run by the reference.

    Raises:
        CannotCompileError: the step is not a program.
        CannotRunError: the engine cannot run it here.
    """
    row = (*xs, *state, *step.tensors.values())
    call = kind(row)
    if call is Call.REFERENCE:
        return reference.run(step, state, xs, reverse=reverse, keep=keep)
    wanted = wanted_of(step, tuple(state), xs) if torch.is_grad_enabled() else ()
    program = compile_step(step, xs, tuple(state), wanted)
    fields = tuple(step.fields[k] for k in keep)
    if call is Call.EAGER:
        results = differentiable.apply(ENGINES[engine], program, row, fields, reverse)
    else:
        ends = len(fields) + len(state)
        results = tuple(operator.scan(_text(program), engine, reverse, fields, row)[:ends])
    history, final = results[: len(fields)], results[len(fields) :]
    return history, type(state)(*final) if hasattr(state, "_fields") else final


def _text(program: Program) -> str:
    if program.graph not in _texts:
        _texts[program.graph] = dumps(program)
    return _texts[program.graph]
