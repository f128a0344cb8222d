"""A plain function as a composed step, for `scan`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.standins import alike, kinds
from flexrnn.engine.step import frozen, object_at


class FunctionStep:
    """`step(x, state, *params)` with the structures of its state and inputs put aside."""

    def __init__(self, step: Callable[..., Any], state: Any, xs: Any, params: Sequence[Tensor]):
        self.step, self.state, self.xs, self.params = step, state, xs, params

    def __call__(self, inputs: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> Any:
        """The new state's tensors."""
        return self.pure(inputs, state, self.tensors)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters by their number."""
        return {str(k): param for k, param in enumerate(self.params)}

    @property
    def fields(self) -> tuple[str, ...]:
        """The state's fields: their names, or their numbers."""
        count = 1 if isinstance(self.state, Tensor) else len(self.state)
        return getattr(self.state, "_fields", tuple(map(str, range(count))))

    @property
    def holder(self) -> Callable[..., Any]:
        """The function."""
        return self.step

    @property
    def native(self) -> str:
        """Why no kernel of torch's own is this step: nobody knows what it computes."""
        return "a function of `scan` is none of torch's LSTM, GRU and RNN"

    def pure(
        self,
        inputs: tuple[Tensor, ...],
        state: tuple[Tensor, ...],
        tensors: Mapping[str, Tensor],
    ) -> tuple[Tensor, ...]:
        """The same call with other parameters."""
        row, tensors = rebuild(self.xs, inputs), alike(tensors, self.tensors)
        result = self.step(row, rebuild(self.state, state), *tensors.values())
        return _same_structure(self.state, state, result)

    rehearse = pure

    def key(self) -> Hashable:
        """The function, what it has closed over, and the structure of its operands."""
        of_params = kinds(self.tensors.values())
        return (frozen(self.step), type(self.xs), type(self.state), self.fields, of_params)

    def recipe(self) -> tuple[Any, ...]:
        """The function, the id of whom it is a method of, and the structures of its operands."""
        step, owner = self.step, None
        if isinstance(step, MethodType):
            step, owner = step.__func__, id(step.__self__)
        elif not isinstance(step, (FunctionType, BuiltinFunctionType, partial)):
            step, owner = None, id(step)  # an object that is called
        return (_from_parts, step, owner, type(self.state), len(self.fields), type(self.xs))


def _from_parts(
    tensors: Mapping[str, Tensor],
    function: Callable[..., Any] | None,
    owner: int | None,
    state: type,
    fields: int,
    xs: type,
) -> FunctionStep:
    step: Any = function
    if owner is not None:
        step = object_at(owner) if function is None else MethodType(function, object_at(owner))
    return FunctionStep(step, _sample(state, fields), _sample(xs, 1), tuple(tensors.values()))


def _sample(kind: type, fields: int) -> Any:
    """Something of which `rebuild` sees the structure."""
    if issubclass(kind, Tensor):
        return torch.empty(())
    return kind(*[None] * fields) if hasattr(kind, "_fields") else (None,) * fields


def tensors_in(argument: str, value: Any, *, empty: bool = False) -> tuple[Tensor, ...]:
    """The tensors of an argument that is one, or a tuple of some; TypeError for anything else."""
    tensors = (value,) if isinstance(value, Tensor) else value
    if not isinstance(tensors, tuple) or not (tensors or empty):
        raise TypeError(
            f"{argument}: expected a tensor or a tuple of tensors, got {type(value).__name__}"
        )
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{argument}: expected tensors only, got {argument}[{k}] {type(tensor).__name__}"
            )
    return tensors


def rebuild(like: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Give tensors the structure of `like`: a tensor, a tuple or a NamedTuple."""
    if isinstance(like, Tensor):
        return tensors[0]
    return type(like)(*tensors) if hasattr(like, "_fields") else tuple(tensors)


def _same_structure(state: Any, old: tuple[Tensor, ...], result: Any) -> tuple[Tensor, ...]:
    other = hasattr(state, "_fields") and not isinstance(result, type(state))
    if other or isinstance(result, Tensor) != isinstance(state, Tensor):
        raise TypeError(f"step: expected a {type(state).__name__}, got {type(result).__name__}")
    new = tensors_in("step", result)
    if len(new) != len(old):
        raise TypeError(f"step: expected a state of {len(old)} tensors, got {len(new)}")
    for k, (before, after) in enumerate(zip(old, new, strict=True)):
        if after.shape != before.shape or after.dtype != before.dtype:
            raise RuntimeError(
                f"step: expected tensor {k} of the state to stay {tuple(before.shape)} "
                f"{before.dtype}, got {tuple(after.shape)} {after.dtype}"
            )
        if after.device != before.device:
            raise RuntimeError(
                f"step: expected tensor {k} of the state to stay on {before.device}, "
                f"got {after.device}"
            )
    return new
