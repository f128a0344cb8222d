"""A program as one operation of autograd, for eager calls."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine import autocast, recompute
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.engines import Engine
from flexrnn.engine.signature import Signature, signature


class _Call(NamedTuple):
    engine: Engine
    program: Program
    about: Signature
    keep: tuple[str, ...]
    times: dict[str, Any]  # the order of the steps, and how many rows each has


def apply(
    engine: Engine,
    program: Program,
    row: tuple[Tensor, ...],
    keep: tuple[str, ...],
    reverse: bool,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a program.

    Args:
        engine: what runs it.
        program: what to run.
        row: its operands, as `signature` orders them.
        keep: fields of the state that are wanted at every step.
        reverse: from the last step to the first.
        batch_sizes: where sequences end at different steps; see `engine.batches`.

    Returns:
        The kept fields' histories, then the last state.
    """
    about = signature(program)
    call = _Call(engine, program, about, keep, {"reverse": reverse, "batch_sizes": batch_sizes})
    if about.gradients and torch.is_grad_enabled():
        return _Scan.apply(call, *row)
    ran = engine.forward(program, *about.parts(row), keep, **call.times)
    return (*ran.history.values(), *ran.final)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *row: Tensor) -> tuple[Tensor, ...]:
        engine, program, about, keep, times = ctx.call = call
        ran = engine.forward(program, *about.parts(row), keep, **times)
        ctx.save_for_backward(*row, *ran.saved)
        return (*ran.history.values(), *ran.final)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        engine, program, about, keep, times = ctx.call
        tensors = ctx.saved_tensors  # looked at once: under a checkpoint a look computes them anew
        row, saved = tensors[: len(about.names)], tensors[len(about.names) :]
        with autocast.off(row[0]):
            if torch.is_grad_enabled():  # create_graph=True
                found = recompute.gradients(program, row, keep, cotangents, **times)
            else:
                history = dict(zip(keep, cotangents, strict=False))
                final = cotangents[len(keep) :]
                found = engine.backward(program, *about.parts(row), saved, history, final, **times)
        return None, *(found.get(name) for name in about.names)
