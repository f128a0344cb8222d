# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# What functionalisation notes of writes has no public name.
"""What spellings share: whether rows come first, and how a spelling stands in torch's place."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import refused

WHOLE = (torch.int64, torch.int32)


def is_of_rows(x: Tensor) -> bool:
    """Whether the first axis is the batch."""
    return x.dim() > 0 and isinstance(x.shape[0], torch.SymInt)


def has_rows(x: Tensor) -> bool:
    """Whether any axis is the batch."""
    return any(isinstance(size, torch.SymInt) for size in x.shape)


def writes_to(x: Tensor) -> int:
    """How often somebody has written to the memory of a tensor of the step's own."""
    return torch._functionalize_mutation_counter(x)


def is_behind(x: Tensor) -> bool:
    """Whether the second axis is the batch."""
    return x.dim() > 1 and isinstance(x.shape[1], torch.SymInt) and not is_of_rows(x)


def is_behind_batch(x: Tensor, dim: int) -> bool:
    """Whether this is an axis behind the batch."""
    return is_of_rows(x) and -x.dim() <= dim < x.dim() and dim % x.dim() != 0


def has_real_units(x: Tensor, dim: int) -> bool:
    """Whether this is an axis behind the batch, of real numbers."""
    return x.is_floating_point() and is_behind_batch(x, dim)


def has_numeric_units(x: Tensor, dim: int) -> bool:
    """Whether this is an axis behind the batch, of real or complex numbers."""
    return (x.is_floating_point() or x.is_complex()) and is_behind_batch(x, dim)


def batch_first(
    labels: Sequence[str], operands: Sequence[Any], result: str
) -> tuple[list[str], tuple[Any, ...]]:
    """Of an einsum: rows that were stacked in front of the batch lie behind it."""
    names, turned = [*labels], [*operands]
    for k, (own, x) in enumerate(zip(labels, operands, strict=True)):
        stacked = isinstance(x, Tensor) and is_behind(x) and len(own) == x.dim()
        if stacked and own[1] == result[:1] != own[0]:
            names[k], turned[k] = own[1] + own[0] + own[2:], x.transpose(0, 1)
    return names, (*turned,)


def as_torch(original: Callable[..., Any], spelling: Callable[..., Any]) -> Callable[..., Any]:
    """A spelling for calls that it has the arguments of; others are torch's own."""
    signature = inspect.signature(spelling)

    def spelt(*args: Any, **kwargs: Any) -> Any:
        if "axis" in kwargs:  # torch takes it for `dim`
            kwargs["dim"] = kwargs.pop("axis")
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        return spelling(*args, **kwargs)

    return spelt


def along_rows_behind(spelling: Callable[..., Any]) -> Callable[..., Any]:
    """A spelling along an axis, where rows are stacked in front of the batch, too."""
    signature = inspect.signature(spelling)

    @wraps(spelling)
    def spelt(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        x, dim = given.arguments["input"], given.arguments["dim"]
        if not is_behind(x) or type(dim) is not int or not -x.dim() <= dim < x.dim():
            return spelling(*args, **kwargs)
        axis = dim % x.dim()
        given.arguments |= {"input": x.transpose(0, 1), "dim": {0: 1, 1: 0}.get(axis, axis)}

        def back(y: Tensor) -> Tensor:
            return y.transpose(0, 1) if y.dim() == x.dim() or axis > 1 else y

        found = spelling(*given.args, **given.kwargs)
        return back(found) if isinstance(found, Tensor) else type(found)(map(back, found))

    return spelt


def in_place(spelling: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What writes its result into its first operand; torch has no such form of it here."""

    @wraps(spelling)
    def spelt(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(spelling(x, *args, **kwargs))

    return spelt


def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """A number would come as a tensor from nowhere."""
    values = [value for value in (input, other) if value is not None]
    if len(values) != 2:
        return torch.where(condition, *values)
    dtype = torch.result_type(*values)
    return torch.where(
        condition,
        *(v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype) for v in values),
    )


def drawn(name: str) -> Any:
    """Refuse what draws random numbers."""
    raise refused(name, "it draws random numbers")
