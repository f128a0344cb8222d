"""States and inputs of complex numbers: to engines that run programs, two real tensors each.

A program has one dtype, a real one. So a complex tensor is taken apart before a loop and put
together behind it, by torch, and in the step the other way round, where the compiler sees pairs
anyway (`compiler.complexes`). Autograd differentiates both, with torch's conjugates.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.step import ComposedStep, Native, State


def are_complex(tensors: Iterable[Tensor]) -> bool:
    """Whether there are complex ones among them."""
    return any(tensor.is_complex() for tensor in tensors)


def real_part(tensor: Tensor) -> Tensor:
    """A tensor of the dtype and device in which an engine gets one like this."""
    return tensor.real if tensor.is_complex() else tensor


def real_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the parts of complex numbers: `dtype.to_real()`, which Dynamo does not know."""
    if dtype == torch.complex64:
        return torch.float32
    if dtype == torch.complex128:
        return torch.float64
    return torch.float16 if dtype == torch.complex32 else dtype


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of complex numbers beside real ones; half types have none of their own."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


class PairedStep:
    """A composed step with two real numbers in the place of every complex one.

    Args:
        step: the composed step.
        states: which fields of its state are complex.
        inputs: which of its inputs are.
    """

    def __init__(self, step: ComposedStep, states: tuple[bool, ...], inputs: tuple[bool, ...]):
        self.step, self.states, self.inputs = step, states, inputs

    def __call__(self, inputs: tuple[Tensor, ...], state: Any) -> Any:
        """The new state's tensors."""
        new = self.step(joined(inputs, self.inputs), joined(state, self.states))
        return parts(new, self.states)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the step, complex ones as they are."""
        return self.step.tensors

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's fields: `z.real` and `z.imag`."""
        names: list[str] = []
        for name, is_complex in zip(self.step.fields, self.states, strict=True):
            names += (f"{name}.real", f"{name}.imag") if is_complex else (name,)
        return tuple(names)

    @property
    def holder(self) -> Any:
        """That of the step."""
        return self.step.holder

    @property
    def native(self) -> Native | str:
        """None: torch's own kernels are of real numbers."""
        return "torch's own kernels have no complex states and inputs"

    def pure(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> State:
        """The same call with other tensors."""
        given = joined(inputs, self.inputs), joined(state, self.states)
        return parts(self.step.pure(*given, tensors), self.states)

    def rehearse(
        self, inputs: tuple[Tensor, ...], state: State, tensors: Mapping[str, Tensor]
    ) -> Any:
        """That of the step."""
        given = joined(inputs, self.inputs), joined(state, self.states)
        return self.step.rehearse(*given, tensors)

    def key(self) -> Hashable:
        """That of the step, and what of it is complex."""
        return (PairedStep, self.states, self.inputs, self.step.key())

    def recipe(self) -> tuple[Any, ...]:
        """How it is made from the parts of the step's own recipe."""
        return (_from_recipe, self.states, self.inputs, *self.step.recipe())


def _from_recipe(
    tensors: Mapping[str, Tensor],
    states: tuple[bool, ...],
    inputs: tuple[bool, ...],
    rebuild: Callable[..., ComposedStep],
    *rest: Any,
) -> PairedStep:
    return PairedStep(rebuild(tensors, *rest), states, inputs)


class Paired:
    """A call in real numbers, and the way back; operands as in `reference.run`.

    Args:
        step: the composed step.
        state: the state before the first step, its fields complex or real.
        xs: the inputs, likewise.
        keep: indices of the fields that are wanted at every step.
    """

    def __init__(self, step: ComposedStep, state: Any, xs: tuple[Tensor, ...], keep: Sequence[int]):
        states = tuple(field.is_complex() for field in state)
        inputs = tuple(x.is_complex() for x in xs)
        self.step = PairedStep(step, states, inputs)
        self.state, self.xs = parts(state, states), parts(xs, inputs)
        places: list[tuple[int, ...]] = []
        for is_complex in states:
            first = places[-1][-1] + 1 if places else 0
            places.append((first, first + 1) if is_complex else (first,))
        self.keep = tuple(place for k in keep for place in places[k])
        self._like, self._kept = state, tuple(keep)

    def leave(
        self, history: Sequence[Tensor], final: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], Any]:
        """What a call returns, from what the one in real numbers has."""
        states = self.step.states
        kept = tuple(states[k] for k in self._kept)
        # An engine that casts leaves what is kept in another dtype, for which there may be none.
        like = tuple(self._like[k] for k in self._kept)
        last = joined(final, states)
        last = type(self._like)(*last) if hasattr(self._like, "_fields") else last
        return joined(_as(history, kept, like), kept), last


class PairedReady(NamedTuple):
    """What is ready to run in real numbers, as a call with complex ones."""

    ready: Any  # a `differentiable.Ready` of the call in real numbers
    states: tuple[bool, ...]  # which fields of the state are complex
    kept: tuple[bool, ...]  # which of those that are wanted at every step

    def __call__(self, row: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it on an input, the state and the parameters; the histories, and the last state."""
        first = 1 + len(self.states)
        are = (row[0].is_complex(), *self.states)
        results = self.ready((*parts(row[:first], are), *row[first:]))
        ends = len(self.kept) + sum(self.kept)
        return *joined(results[:ends], self.kept), *joined(results[ends:], self.states)

    @property
    def about(self) -> Any:
        """The program's signature."""
        return self.ready.about

    def straight(self, row: Sequence[Tensor]) -> None:
        """None: what is taken apart has no address of its own."""


def joined(tensors: Iterable[Tensor], are: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Complex tensors, which these `are`, of two parts each; and others as they are."""
    left = iter(tensors)
    return tuple(torch.complex(next(left), next(left)) if z else next(left) for z in are)


def parts(tensors: Iterable[Tensor], are: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """The reverse of `joined`; of a conjugate, a part may be a negative by a mark."""
    found: list[Tensor] = []
    for tensor, is_complex in zip(tensors, are, strict=True):
        found += (tensor.real, tensor.imag) if is_complex else (tensor,)
    return tuple(found)


def _as(
    given: Iterable[Tensor], are: tuple[bool, ...], like: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The parts of complex tensors in the dtypes of these, and others as they are."""
    left = iter(given)
    found: list[Tensor] = []
    for is_complex, one in zip(are, like, strict=True):
        found.append(next(left))
        if is_complex:
            dtype = real_of(one.dtype)
            found[-1:] = found[-1].to(dtype), next(left).to(dtype)
    return tuple(found)
