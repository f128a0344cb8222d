# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# Torch's kernels have no public name but those of its layers.
"""The engine `torch`: steps that are those of an LSTM, GRU or RNN, by torch's own kernel.

On a card that is cuDNN's. It needs no program and generates nothing: the step says which kernel it
is, and which of its tensors are the weights.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import _VF, Tensor

from flexrnn.engine.step import CannotRunError, ComposedStep, Native


def check(
    step: ComposedStep, state: Sequence[Tensor], xs: Sequence[Tensor], keep: Sequence[int] = (0,)
) -> Native:
    """The kernel that is a step.

    Args:
        step, state, xs, keep: as in `reference.run`.

    Raises:
        CannotRunError: there is none, or it does not do what is asked for.
    """
    native = step.native
    if native is None:
        raise CannotRunError(
            "torch has kernels of its own for the steps of LSTM, GRU and RNN alone, without "
            "lengths, resets, zoneout and recurrent dropout"
        )
    if tuple(keep) not in ((), (0,)):
        raise CannotRunError("torch's own kernel returns no state of every step but the output")
    learns = any(t.requires_grad for t in (*xs, *state, *step.tensors.values()))
    if learns and torch.is_grad_enabled() and not native.training:
        raise CannotRunError(
            "torch's own kernels have no gradients in evaluation mode: call train(), or the layer "
            "under torch.no_grad()"
        )
    return native


def run(
    step: ComposedStep,
    state: Sequence[Tensor],
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a step over time; operands as in `reference.run`.

    Raises:
        CannotRunError: as `check` does.
    """
    native = check(step, state, xs, keep)
    (x,) = xs
    x = x.flip(0) if reverse else x.contiguous()
    hx: Any = tuple(field[None].contiguous() for field in state)
    weights = [step.tensors[name] for name in native.weights]
    bias = any(name.startswith("bias") for name in native.weights)
    with _quiet():
        output, *final = getattr(_VF, native.kernel)(
            x,
            hx if native.kernel == "lstm" else hx[0],
            weights,
            bias,
            1,  # layer
            0.0,  # dropout, which is between layers
            native.training,
            False,  # one direction
            False,  # time first
        )
    output = output.flip(0) if reverse else output
    return (output,) * len(keep), tuple(field[0] for field in final)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that weights do not lie side by side: a copy would not stay true."""
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        yield
