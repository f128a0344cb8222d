# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# Torch has no public name for whether a transform of torch.func is at work.
"""`checkpoint_every`: time in segments, whose inside is computed anew in the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flexrnn.compose import CellStep
from flexrnn.engine import scan

Result = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def run(
    step: CellStep,
    state: tuple[Tensor, ...],
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
    backend: str,
    every: int | None,
    batch_sizes: Tensor | None = None,
) -> Result:
    """Run a composed step over time; operands as in `engine.scan.run`.

    Source: Chen, Xu, Zhang & Guestrin 2016. Between forward and backward pass there are the state
    at every segment's beginning and what the segments return; in the backward pass one segment
    after another is there in full.

    Args:
        step, state, xs, reverse, keep, backend, batch_sizes: as in `engine.scan.run`.
        every: length of a segment, or None for everything at once. So it is, too, where nothing
            is kept for a backward pass anyway, under the transforms of `torch.func` and under
            `torch.compile`, which decide themselves what is kept; and with `batch_sizes`.
    """
    if every is None or batch_sizes is not None or not torch.is_grad_enabled() or _others_decide():
        return scan.run(
            step, state, xs, reverse=reverse, keep=keep, backend=backend, batch_sizes=batch_sizes
        )
    engine, fields = scan.in_force(backend), len(state)
    rebuild = type(state)._make if hasattr(state, "_fields") else tuple

    # Autograd holds this function. It must not hold a state: those come to be what autograd made,
    # and would stay alive in a circle that nobody sees.
    def segment(*tensors: Tensor) -> tuple[Tensor, ...]:
        begin, rows = tensors[:fields], tensors[fields:]
        with scan.backend(engine):  # in the backward pass as well
            history, final = scan.run(step, rebuild(begin), rows, reverse=reverse, keep=keep)
        return (*history, *final)

    # Masks and what the layer has drawn for a step are inputs; what it draws itself is to be the
    # same once more, but while a graph is recorded nobody may ask a generator.
    draws = not (state[0].is_cuda and torch.cuda.is_current_stream_capturing())
    pieces = list(zip(*(x.split(every) for x in xs), strict=True))
    histories: list[tuple[Tensor, ...]] = []
    for piece in reversed(pieces) if reverse else pieces:
        done: Any = checkpoint(
            segment, *state, *piece, use_reentrant=False, preserve_rng_state=draws
        )
        histories.append(done[: len(keep)])
        state = done[len(keep) :]
    if reverse:
        histories.reverse()
    return tuple(map(torch.cat, zip(*histories, strict=True))), state


def _others_decide() -> bool:
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
