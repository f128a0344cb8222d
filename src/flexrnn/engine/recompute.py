"""Gradients that no kernel has: the program once more, node by node, by ordinary operations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.signature import signature


def gradients(
    program: Program,
    row: Sequence[Tensor],
    keep: Sequence[str],
    cotangents: Sequence[Tensor],
    *,
    reverse: bool,
    batch_sizes: Tensor | None = None,
) -> dict[str, Tensor | None]:
    """What an engine's `backward` computes: of a batch of cotangents, or to be differentiated.

    Where gradients are enabled (`create_graph=True`) it is a differentiable function of all that it
    reads, which autograd records; else it is the program's own backward pass.

    Args:
        program, keep, reverse, batch_sizes: as in the forward pass.
        row: the operands as `signature` orders them, as autograd saved them.
        cotangents: the loss's derivative by each kept field's history, then by the last state.

    Returns:
        The gradients by the name of the operand, of those that require one.
    """
    about = signature(program)
    times: Any = {"reverse": reverse, "batch_sizes": batch_sizes}
    if not torch.is_grad_enabled():
        parts = about.parts(row)
        saved = interpreter.forward(program, *parts, keep, **times).saved
        history = dict(zip(keep, cotangents, strict=False))
        final = cotangents[len(keep) :]
        return dict(interpreter.backward(program, *parts, saved, history, final, **times))
    with torch.enable_grad():
        # Views, so that the derivative stops here while what it is made of goes on.
        again = tuple(t.view_as(t) if t.requires_grad else t for t in row)
        ran = interpreter.forward(program, *about.parts(again), keep, **times)
        results = [(o, g) for o, g in zip((*ran.history.values(), *ran.final), cotangents,
                                          strict=True) if o.requires_grad]  # fmt: skip
        learned = {name: t for name, t in zip(about.names, again, strict=True) if t.requires_grad}
        found = torch.autograd.grad(
            [o for o, _ in results],
            list(learned.values()),
            [g for _, g in results],
            create_graph=True,
            allow_unused=True,
        )
    return dict(zip(learned, found, strict=True))
