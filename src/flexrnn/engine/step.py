"""What engines know of a step: how to call it, which tensors it uses, when it is another one."""

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from torch import Tensor

State = tuple[Tensor, ...]


class ComposedStep(Protocol):
    """A step with everything that a layer adds to it."""

    def __call__(self, inputs: tuple[Tensor, ...], state: Any) -> Any:
        """The new state, from the rows of the inputs at one time step and the old state."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters, buffers and other tensors that the step uses, by name."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's fields."""
        ...

    def pure(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> State:
        """The same call with other tensors in the place of the step's own."""
        ...

    def key(self) -> Hashable:
        """Equal for steps that do the same with the same tensors."""
        ...


def wanted_of(step: ComposedStep, state: State, xs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names of the tensors of a call that require a gradient, as programs name their inputs."""
    named = {f"x{k}": x for k, x in enumerate(xs)}
    named |= {f"state.{field}": value for field, value in zip(step.fields, state, strict=True)}
    named |= {f"param.{name}": tensor for name, tensor in step.tensors.items()}
    return tuple(name for name, tensor in named.items() if tensor.requires_grad)


def frozen(value: Any) -> Hashable:
    """A value that is equal where the given one is; a tensor counts by its place alone."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, Mapping):
        return tuple((frozen(k), frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(frozen, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(frozen, value))
    return (type(value), value) if isinstance(value, Hashable) else (type(value), repr(value))
