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
from torch import Tensor

from flexrnn.engine import autocast
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import CannotRunError, ComposedStep, Native

# Our weights never lie side by side: a copy that does would not stay true. So cuDNN copies them at
# every call and says so, to the module that calls: this one, where nobody can change it.
warnings.filterwarnings(
    "ignore",
    "RNN module weights are not part of single contiguous chunk",
    module=re.escape(__name__),
)
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


def is_faster(
    step: ComposedStep, state: Sequence[Tensor], xs: Sequence[Tensor], keep: Sequence[int] = (0,)
) -> bool:
    """Whether torch's kernel runs a call, and is measured to be faster than generated ones.

    It is where it keeps its weights on the chip, too: cuDNN does so for float16 at some sizes.
    """
    like = state[0]
    if not like.is_cuda or isinstance(step.native, str) or len(xs[0]) == 1:
        return False
    if torch.version.hip is not None or not torch.backends.cudnn.is_acceptable(xs[0]):
        return False
    dtype = autocast.dtype_for(like) or like.dtype
    sizes = (like.shape[0], xs[0].shape[-1], like.shape[-1])
    projected = "weight_hr" in step.native.weights
    if dtype != torch.float16 or projected or not is_persistent(*sizes, step.native.kernel):
        return False
    card = torch.cuda.get_device_properties(like.device)
    if card.major < 8 or card.minor == 6 or card.multi_processor_count < 98:
        return False
    try:
        check(step, state, xs, keep)
    except CannotRunError:
        return False
    return True


def is_persistent(batch: int, inputs: int, hidden: int, kernel: str) -> bool:
    """Whether torch asks cuDNN for a kernel that keeps its weights, on a card that has them.

    So says its source (`use_persist_common_heuristics` and what follows it, in `cudnn/RNN.cpp`).
    """
    whole = inputs % 128 == 0 and hidden % 128 == 0 and hidden <= 1024
    return whole and batch % 8 == 0 and batch <= 128 and kernel == "lstm"


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
    output, *final = getattr(torch, native.kernel)(
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
