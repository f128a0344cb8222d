# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# Torch's kernels have no public name but those of its layers.
"""The engine `torch`: steps that are those of an LSTM, GRU or RNN, by torch's own kernel.

On a card that is cuDNN's. It needs no program and generates nothing: the step says which kernel it
is, and which of its tensors are the weights.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor

from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import CannotRunError, ComposedStep, Native

_SCATTERED = "RNN module weights are not part of single contiguous chunk"
_KERNELS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def check(
    step: ComposedStep, state: Sequence[Tensor], xs: Sequence[Tensor], keep: Sequence[int] = (0,)
) -> Native:
    """The kernel that is a step.

    Args:
        step, state, xs, keep: as in `reference.run`.

    Raises:
        CannotRunError: there is none, or it does not do what is asked for.
    """
    native, tensors = step.native, (*xs, *state, *step.tensors.values())
    if isinstance(native, str):
        raise CannotRunError(native)
    if native.kernel not in _KERNELS:
        raise CannotRunError(f"torch has no kernel {native.kernel}")
    if kind(tensors) is Call.TRACED:
        raise CannotRunError(
            "torch's own kernels are not written down: no tracing, no fake tensors"
        )
    if tuple(keep) not in ((), (0,)):
        raise CannotRunError("torch's own kernels return no state of every step but the output")
    if torch.is_grad_enabled() and not native.training and any(t.requires_grad for t in tensors):
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
    if x.is_cuda:
        # Ours never lie side by side: a copy that does would not stay true. So cuDNN copies them
        # at every call and says so, to the module that calls: here, where nobody can change it.
        warnings.filterwarnings("ignore", _SCATTERED, module=re.escape(__name__))
    output, *final = getattr(_VF, native.kernel)(
        x,
        hx if native.kernel == "lstm" else hx[0],
        weights,
        "bias_ih" in native.weights,
        1,  # layer
        0.0,  # dropout, which is between layers
        native.training,
        False,  # one direction
        False,  # time first
    )
    output = output.flip(0) if reverse else output
    return (output,) * len(keep), tuple(field[0] for field in final)
