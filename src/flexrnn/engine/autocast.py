"""Autocast: whether it is on, and what it would make of a step.

A program has one dtype. Engines run under autocast all the same, as torch's own recurrent kernels
do: inputs, state and parameters are cast before the program, which is made and run with autocast
off. Gradients come back through the casts. What an engine cannot compute in is cast likewise.
"""

import threading
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.step import ComposedStep, Native, State

HALF = (torch.bfloat16, torch.float16)
_NOTHING = nullcontext()
_here = threading.local()


def is_on(like: Tensor) -> bool:
    """Whether autocast is choosing dtypes now on this tensor's device; some, as meta, have none."""
    kind = like.device.type
    if kind in ("cpu", "cuda"):  # which have it; Dynamo of torch 2.11 cannot ask
        return torch.is_autocast_enabled(kind)
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def is_cast(dtype: torch.dtype) -> bool:
    """Whether autocast makes another dtype of this one: of floating-point ones but float64."""
    return dtype.is_floating_point and dtype != torch.float64


def off(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on a tensor's device: what runs inside has chosen its dtypes."""
    return torch.autocast(like.device.type, enabled=False) if is_on(like) else _NOTHING


def dtype_for(like: Tensor) -> torch.dtype | None:
    """Autocast's dtype on a state's device, if it is on and this state is one that it casts."""
    if is_on(like) and is_cast(like.dtype):
        return torch.get_autocast_dtype(like.device.type)
    return None


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as autocast hands it to a product; as it is where there is no dtype."""
    return tensor if dtype is None or not is_cast(tensor.dtype) else tensor.to(dtype)


def is_being_cast() -> bool:
    """Whether what runs here is a step whose tensors are cast."""
    return getattr(_here, "casts", False)


class CastStep:
    """A composed step whose tensors are cast.

    Args:
        step: the step.
        dtype: to which they are.
        narrow: products may round what they multiply to bfloat16; see `Graph.narrow`.
    """

    def __init__(self, step: ComposedStep, dtype: torch.dtype, *, narrow: bool = False):
        self.step, self.dtype, self.narrow = step, dtype, narrow
        self.tensors: Mapping[str, Tensor] = {
            name: cast(tensor, dtype) for name, tensor in step.tensors.items()
        }

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's fields."""
        return self.step.fields

    @property
    def holder(self) -> Any:
        """That of the step."""
        return self.step.holder

    @property
    def native(self) -> Native | str:
        """That of the step."""
        return self.step.native

    def __call__(self, inputs: tuple[Tensor, ...], state: Any) -> Any:
        """The new state's tensors."""
        return self.pure(inputs, tuple(state), self.tensors)

    def pure(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> State:
        """The same call with other tensors."""
        before, _here.casts = is_being_cast(), True
        try:
            return self.step.pure(inputs, state, tensors)
        finally:
            _here.casts = before

    def rehearse(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> Any:
        """That of the step."""
        return self.step.rehearse(inputs, state, tensors)

    def key(self) -> Hashable:
        """Another than that of the step, which may have tensors of this dtype that nobody cast."""
        return (CastStep, self.narrow, self.step.key())

    def recipe(self) -> tuple[Any, ...]:
        """That of the step, for tensors of whatever dtype."""
        return self.step.recipe()
