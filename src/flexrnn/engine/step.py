# pyright: reportPrivateUsage=false
# torch has no public name for making a NamedTuple class known to `torch.export.save`.
"""What engines know of a step: how to call it, which tensors it uses, when it is another one."""

import ctypes
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, MappingView
from contextlib import suppress
from functools import lru_cache
from random import Random
from types import FunctionType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Protocol, cast
from weakref import ReferenceType

import torch
from torch import Tensor
from torch.utils import _pytree

State = tuple[Tensor, ...]


class CannotRunError(RuntimeError):
    """An engine cannot run here; the message says what is missing and what would help."""


class NotAgainError(CannotRunError):
    """Nor can it later in this process: what has failed is not tried again."""


class Native(NamedTuple):
    """A kernel of torch's own that computes a step, and its weights."""

    kernel: str  # `lstm`, `gru`, `rnn_tanh`, `rnn_relu`
    weights: tuple[str, ...]  # by name, in torch's order
    training: bool


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

    @property
    def holder(self) -> Any:
        """What leads to all that a step keeps: the layer's cell, or the function."""
        ...

    @property
    def native(self) -> Native | str:
        """The kernel of torch's own that is exactly this step, or why there is none."""
        ...

    def pure(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> State:
        """The same call with other tensors in the place of the step's own."""
        ...

    def rehearse(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> Any:
        """What `pure` does, for what it keeps outside of itself; nobody reads the result."""
        ...

    def key(self) -> Hashable:
        """Equal for steps that do the same with the same tensors."""
        ...

    def recipe(self) -> tuple[Any, ...]:
        """A function and arguments for it, with which `function(tensors, *arguments)` is this step.

        Arguments are constants, such as the ids of objects that were there before Dynamo began to
        follow the call; the tensors, by name as in `tensors`, have only shape, dtype and device.
        """
        ...


def make_exportable(state: type) -> None:
    """Let `torch.export.save` and `torch.load` know a NamedTuple class by its name.

    `torch.load` takes tensors in plain tuples unasked; a state is one, and runs no code either.
    """
    if state.__bases__ == (tuple,):
        torch.serialization.add_safe_globals([state])
    known = getattr(_pytree, "SUPPORTED_NODES", {})
    register = getattr(_pytree, "_register_namedtuple", None)
    if register is not None and state not in known:
        register(state, serialized_type_name=f"{state.__module__}.{state.__qualname__}")


def wanted_of(step: ComposedStep, state: State, xs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names of the tensors of a call that require a gradient, as programs name their inputs.

    What is exported may get other tensors later: there every one counts.
    """
    exported = is_exporting()
    named = {f"x{k}": x for k, x in enumerate(xs)}
    named |= {f"state.{field}": value for field, value in zip(step.fields, state, strict=True)}
    named |= {f"param.{name}": tensor for name, tensor in step.tensors.items()}
    return tuple(name for name, tensor in named.items()
                 if tensor.requires_grad or (exported and tensor.is_floating_point()))  # fmt: skip


def object_at(address: int) -> Any:
    """The object of an `id`, as which Dynamo hands it over, and guards it; it must be alive."""
    return ctypes.cast(address, ctypes.py_object).value


def is_exporting() -> bool:
    """`torch.compiler.is_exporting`, which is always true where Dynamo of torch 2.11 meets it."""
    return torch.compiler._is_exporting_flag


def frozen(value: Any, within: tuple[int, ...] = ()) -> Hashable:
    """A value that is equal where the given one is; a tensor counts by its place alone.

    An object is what it is, what it holds and what its class holds; so is a function. An iterator
    is like nothing, itself included, for a step that asks it has moved it on.

    Args:
        value: anything that a step can reach by an attribute.
        within: ids of the objects that hold it, for one may hold itself.
    """
    kind = type(value)
    if kind in _PLAIN:
        return (kind, value)
    if kind in _CONTAINERS and not value:
        return kind
    if kind is OrderedDict and not (value or value.__dict__):  # a table of hooks of a module
        return kind
    if isinstance(value, Tensor) or id(value) in within:
        return kind
    if kind in OF_TRACES:  # which a step that was traced has left; a comparison would be a question
        return (kind, str(value))
    within = (*within, id(value))
    if kind is FunctionType:
        held = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
        return (value, *(frozen(h, within) for h in held)) if any(held) else value
    if isinstance(value, (type, ModuleType)):
        return value
    content = _content(value, within)
    return (kind, content) if kind in EXACT else (kind, content, *_own(value, within))


def _content(value: Any, within: tuple[int, ...]) -> Hashable:
    """What an object is beside its own attributes; Python's containers are what they hold.

    A class of somebody's may count, iterate and compare in its own way: that is its class's and its
    attributes', which count as well.
    """
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__repr__(value)  # -0.0 is not 0.0, and nan is nan
    if isinstance(value, complex):
        return complex.__repr__(value)
    if isinstance(value, dict):
        table: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        return tuple((frozen(k, within), frozen(v, within)) for k, v in table.items(value))
    for base, made in _ROWS.items():
        if isinstance(value, base):
            return made(frozen(v, within) for v in base.__iter__(value))
    if isinstance(value, Iterator):
        return object()
    return _itself(value) if _is_pythons(type(value)) else _kept_in_c(value, within)


def _kept_in_c(value: Any, within: tuple[int, ...]) -> Hashable:
    """What an object keeps where Python has no names for it."""
    if isinstance(value, Mapping):
        return tuple((frozen(k, within), frozen(v, within)) for k, v in value.items())
    if isinstance(value, MappingView):
        return tuple(frozen(v, within) for v in cast(Iterable[Any], value))
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # an array of NumPy's
        if value.dtype.hasobject:  # its bytes are addresses
            return (value.shape, frozen(value.tolist(), within))
        return (value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, Random):
        return value.getstate()
    for name in ("bit_generator", "_bit_generator"):  # of NumPy's generators, new and old
        if hasattr(value, name):
            return frozen(getattr(value, name).state, within)
    if isinstance(value, ReferenceType):
        return frozen(value(), within)
    if isinstance(value, SimpleNamespace):
        return ()
    found = _itself(value)
    if found is not None:
        return found
    with suppress(TypeError, ValueError, BufferError), memoryview(value) as view:
        return (view.format, view.tobytes())
    if isinstance(value, Collection):
        return tuple(frozen(v, within) for v in cast(Iterable[Any], value))
    try:
        return repr(value)
    except Exception:  # nobody knows what it is, so it is like nothing
        return object()


def _itself(value: Any) -> Hashable:
    """An object that can be hashed; None where it cannot, for then it is what it holds."""
    try:
        hash(value)
    except TypeError:  # also of what says that it is hashable and holds what is not
        return None
    return value


def _own(value: Any, within: tuple[int, ...]) -> tuple[Hashable, ...]:
    """The attributes that an object has of its own, and those of its class."""
    kind = type(value)
    named = ("__dict__",) if _is_pythons(kind) else _HOLDERS
    held: list[tuple[Any, Any]] = [(name, _held(value, name)) for name in named]
    held += [(slot, _held(value, slot)) for slot in slots(kind)]
    parts = ((name, frozen(part, within)) for name, part in held if part is not None)
    return (members(kind, within), *parts)


@lru_cache(512)
def slots(cls: type) -> list[Any]:
    """The places that `__slots__` of a class and of its bases have made; these stay as they are."""
    return [
        slot
        for c in cls.__mro__
        if "__slots__" in vars(c)
        for slot in vars(c).values()
        if type(slot) is MemberDescriptorType
    ]


@lru_cache(512)
def _is_pythons(cls: type) -> bool:
    """Whether instances hold nothing but their `__dict__` and slots, as those of `class` do."""
    most = _Plain.__basicsize__ + tuple.__itemsize__ * len(slots(cls))
    return cls.__basicsize__ <= most and all(c.__flags__ & _MADE for c in cls.__mro__[:-1])


def _held(value: Any, place: Any) -> Any:
    """What an object holds under a name, or in a slot; a subclass may have hidden this."""
    try:
        return getattr(value, place, None) if isinstance(place, str) else place.__get__(value)
    except (AttributeError, ValueError):  # a slot, or a variable of a closure, without a value
        return None


def is_settled(cls: type) -> bool:
    """Whether a class is one of torch's or of Python's, which do not change."""
    return cls.__module__.partition(".")[0] in _SETTLED


def members(cls: type, within: tuple[int, ...] = ()) -> Hashable:
    """What a class and its bases hold, as `frozen`; those of torch and of Python do not change."""
    if id(cls) in within:
        return cls
    own = [c for c in cls.__mro__ if not is_settled(c)]
    if not own:
        return ()
    within = (*within, id(cls))
    return tuple(
        (name, frozen(value, within))
        for c in own
        for name, value in vars(c).items()
        if name not in OF_NO_EFFECT
    )


class _Plain:
    pass


_MADE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that was made at run time
_PLAIN = {type(None), bool, int, str}
_ROWS: dict[Any, Callable[[Iterable[Hashable]], Hashable]] = {
    list: tuple, tuple: tuple, deque: tuple, set: frozenset, frozenset: frozenset
}  # fmt: skip
_CONTAINERS = {dict, list, tuple, set}
OF_TRACES = {torch.SymInt, torch.SymFloat, torch.SymBool}
EXACT = {int, float, complex, str, bytes, bytearray, dict, list, tuple, set, frozenset}
_SETTLED = sys.stdlib_module_names | {"torch", "numpy"}
OF_NO_EFFECT = {"__dict__", "__doc__", "__weakref__", "__annotations__", "__module__",
                "__qualname__", "__slots__", "__orig_bases__", "__parameters__",
                "_abc_impl"}  # fmt: skip

# Where objects, closures, what `functools.partial` makes, methods, properties and containers keep
# what they hold.
_HOLDERS = ("__dict__", "cell_contents", "func", "args", "keywords", "__func__", "__self__", "fget",
            "default_factory", "maxlen")  # fmt: skip
