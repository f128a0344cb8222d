# pyright: reportPrivateUsage=false
# torch has no public name for making a NamedTuple class known to `torch.export.save`.
"""What engines know of a step: how to call it, which tensors it uses, when it is another one."""

from collections.abc import Hashable, Mapping
from types import ModuleType
from typing import Any, Protocol

from torch import Generator, Tensor
from torch.utils import _pytree

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

    def recipe(self) -> tuple[Any, ...]:
        """A function and arguments for it, with which `function(tensors, *arguments)` is this step.

        Arguments are objects that were there before Dynamo began to follow the call, or constants;
        the tensors, by name as in `tensors`, have only shape, dtype and device.
        """
        ...


def make_exportable(state: type) -> None:
    """Let `torch.export.save` write down a NamedTuple class, by its name."""
    if state not in _pytree.SUPPORTED_NODES:
        name = f"{state.__module__}.{state.__qualname__}"
        _pytree._register_namedtuple(state, serialized_type_name=name)


def wanted_of(step: ComposedStep, state: State, xs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names of the tensors of a call that require a gradient, as programs name their inputs."""
    named = {f"x{k}": x for k, x in enumerate(xs)}
    named |= {f"state.{field}": value for field, value in zip(step.fields, state, strict=True)}
    named |= {f"param.{name}": tensor for name, tensor in step.tensors.items()}
    return tuple(name for name, tensor in named.items() if tensor.requires_grad)


def frozen(value: Any, within: tuple[int, ...] = ()) -> Hashable:
    """A value that is equal where the given one is; a tensor counts by its place alone.

    An object of a class, or a function, is what it is and what it holds.

    Args:
        value: anything that a step can reach by an attribute.
        within: ids of the objects that hold it, for one may hold itself.
    """
    if isinstance(value, Tensor) or id(value) in within:
        return type(value)
    if isinstance(value, (type, ModuleType, Generator)):
        return value
    if value is None or isinstance(value, (int, str)):
        return (type(value), value)
    if isinstance(value, float):
        return repr(value)  # -0.0 is not 0.0, and nan is nan
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return tuple((frozen(k, within), frozen(v, within)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *(frozen(v, within) for v in value))
    if isinstance(value, (set, frozenset)):
        return frozenset(frozen(v, within) for v in value)
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array of NumPy's
        return (type(value), value.shape, str(value.dtype), value.tobytes())
    itself = value if isinstance(value, Hashable) else repr(value)
    held = (_held(value, name) for name in _HOLDERS)
    return (type(value), itself, *(frozen(h, within) for h in held if h is not None))


# Where objects, functions, what `functools.partial` makes and bound methods keep what they hold.
_HOLDERS = ("__dict__", "__closure__", "cell_contents", "__defaults__", "__kwdefaults__", "func",
            "args", "keywords", "__func__", "__self__")  # fmt: skip


def _held(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except ValueError:  # a variable of a closure that has no value yet
        return None
