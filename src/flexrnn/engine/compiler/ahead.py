"""What torch computes of the parameters alone, for a program that has no operation for it.

What is the same at every step gains nothing by being fused: a triangle, a matrix exponential, a
decomposition. It becomes one more parameter of the program, and autograd differentiates how it is
made. Like a program, how it is made has a form as text, with which it travels.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from flexrnn.engine.step import CannotRunError

ITEM = "getitem"  # one of several that an operation has made
TENSOR = "tensor"  # one of numbers of Python's, a dtype and a device
WHOLE = "whole"  # a tensor of whole numbers as it is, where none is larger than a number


class Ref(NamedTuple):
    """A value by its number: those that are given come first, then what each call makes."""

    number: int


class Call(NamedTuple):
    """One operation: its name in `torch.ops.aten` with the overload, or above; arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, values: Sequence[Any]) -> Any:
        """What it makes, where references are to these values."""
        args, kwargs = _filled(self.args, values), _filled(self.kwargs, values)
        return _operation(self.name)(*args, **kwargs)


class Ahead(NamedTuple):
    """What is to be computed before a program runs."""

    names: tuple[str, ...]  # inputs of the graph that it makes: `param..NAME`, which is no path
    given: tuple[str, ...]  # inputs of the graph that it reads: `param.NAME`
    origins: tuple[tuple[str, ...], ...]  # of what it makes: those that it is made of
    calls: tuple[Call, ...]
    results: tuple[Ref, ...]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What it makes of what it reads."""
        values: list[Any] = list(tensors)
        for call in self.calls:
            values.append(call.run(values))
        return tuple(values[ref.number] for ref in self.results)

    def of(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What it makes, where a program's operands have names."""
        return self([tensors[name] for name in self.given])

    def without_derivative(self, tensors: Sequence[Tensor]) -> int | None:
        """The first call that autograd cannot differentiate, of these tensors."""
        with torch.enable_grad():
            values: list[Any] = list(tensors)
            for number, call in enumerate(self.calls):
                try:
                    values.append(call.run(values))
                except RuntimeError:  # of complex numbers torch says so at once
                    return number
                made = values[-1] if isinstance(values[-1], (list, tuple)) else values[-1:]
                nodes = [t.grad_fn for t in made if isinstance(t, Tensor)]
                if any(
                    node is not None and node.name().endswith("NotImplemented") for node in nodes
                ):
                    return number
        return None

    def learned(self, wanted: Collection[str]) -> tuple[str, ...]:
        """What of it has a gradient, where these inputs want one."""
        pairs = zip(self.names, self.origins, strict=True)
        return tuple(name for name, origins in pairs if not set(wanted).isdisjoint(origins))


@cache
def _operation(name: str) -> Callable[..., Any]:
    if name == ITEM:
        return getitem
    if name == TENSOR:
        return _tensor
    if name == WHOLE:
        return _whole
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _tensor(numbers: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def _whole(numbers: Tensor, most: int) -> Tensor:
    why = f"expected whole numbers from -{most} to {most} in a buffer that a step counts with"
    if type(numbers) in (Tensor, Parameter) and numbers.is_cpu and numbers.numel():
        least, largest = numbers.aminmax()
        if max(-int(least), int(largest)) > most:
            raise CannotRunError(f"{why}; got {int(least)} to {int(largest)}")
    elif numbers.numel():  # somebody writes down what is done, or it is not done yet
        torch.ops.aten._assert_async.msg((numbers.abs() <= most).all(), why)
    return numbers


def _filled(value: Any, values: Sequence[Any]) -> Any:
    """Arguments with values in the place of their numbers."""
    if isinstance(value, Ref):
        return values[value.number]
    if isinstance(value, (list, tuple)):
        return [_filled(part, values) for part in value]
    if isinstance(value, dict):
        return {name: _filled(part, values) for name, part in value.items()}
    return value


def dumps(ahead: Ahead) -> str:
    """It as text of one line."""
    return json.dumps(
        [ahead.names, ahead.given, ahead.origins, *_spelt([ahead.calls, ahead.results])]
    )


def loads(text: str) -> Ahead:
    """What a text says.

    Raises:
        ValueError: it is not one of `dumps`.
    """
    try:
        names, given, origins, calls, results = json.loads(text)
        made = Ahead(
            tuple(names),
            tuple(given),
            tuple(map(tuple, origins)),
            tuple(Call(name, tuple(_read(args)), _read(kwargs)) for name, args, kwargs in calls),
            tuple(_read(results)),
        )
        for call in made.calls:
            _operation(call.name)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"expected what is computed ahead of a program: {error}") from None
    return made


# What JSON has no form for, as an object of one name.
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def _spelt(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"%": value.number}
    if isinstance(value, dict):
        return {"kwargs": {name: _spelt(part) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_spelt(part) for part in value]
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    return value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((name, what),) = value.items()
    if name == "%":
        return Ref(what)
    if name == "kwargs":
        return {key: _read(part) for key, part in what.items()}
    if name == "complex":
        return complex(*what)
    return torch.device(what) if name == "device" else getattr(torch, what)
