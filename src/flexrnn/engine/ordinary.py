# pyright: reportPrivateUsage=false
# Whether a transform of torch's is at work has no public name.
"""What kind of call this is: before an engine runs or an operator is called, and going back."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from flexrnn.engine.compiler.ranges import KNOWN, most_given
from flexrnn.engine.step import CannotRunError

_functorch: Any = getattr(torch._C, "_functorch", None)
_is_batched = getattr(_functorch, "is_legacy_batchedtensor", lambda _: False)
_PLAIN = (Tensor, nn.Parameter)
_TRACED = (FakeTensor, FunctionalTensor)


class Call(Enum):
    """How an engine may be called."""

    EAGER = 0  # plain tensors: directly
    TRACED = 1  # somebody writes down, or has to see, what is done: as an operator
    REFERENCE = 2  # not at all: derivatives that only ordinary operations have


def kind(tensors: Iterable[Tensor]) -> Call:
    """The kind of a call with these tensors.

    Raises:
        CannotRunError: one of them is of a subclass, of which no engine knows what it holds.
    """
    if (
        torch._C._are_functorch_transforms_active()  # vmap, grad, jvp
        or forward_ad._current_level >= 0  # an operator would silently drop tangents
        or torch._C._is_tracing()  # torch.jit, which does not see an operator
    ):
        return Call.REFERENCE
    call = Call.TRACED if torch._C._len_torch_dispatch_stack() else Call.EAGER
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            if not isinstance(tensor, _TRACED):
                raise CannotRunError(
                    f"expected plain tensors, got a {type(tensor).__module__}."
                    f"{type(tensor).__qualname__}"
                )
            call = Call.TRACED
    return call


def check_whole(tensors: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Refuse whole numbers beyond those of which a program in this dtype knows what is made.

    Args:
        tensors: of whole numbers; behind a program they are of its dtype.
        dtype: the program's.

    Raises:
        CannotRunError: there are some.
    """
    if dtype not in KNOWN:
        return
    for tensor in tensors:
        if tensor.numel():
            most = most_given(dtype, tensor.dtype)
            least, largest = tensor.aminmax()
            if max(-int(least), int(largest)) > most:
                raise CannotRunError(
                    f"expected whole numbers of {tensor.dtype} from -{most} to {most} beside "
                    f"{dtype}, which does not know all that a step may make of others; got "
                    f"{int(least)} to {int(largest)}"
                )


def for_ordinary_operations(cotangents: Iterable[Tensor]) -> bool:
    """Whether a backward pass is for ordinary operations: `create_graph=True`, or a batch of them.

    A batch comes by `is_grads_batched=True`, as vectorized Jacobians have it, which is another
    `vmap` than torch.func's, or by that around `torch.autograd.grad`.
    """
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or any(map(_is_batched, cotangents))
    )
