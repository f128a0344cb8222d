"""Dtypes: in which a cell computes, which tensors meet those, and which are left as they are."""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine import autocast
from flexrnn.engine.paired import complex_of, real_of
from flexrnn.fields import complex_fields, field_names


def loop_dtypes(cell: Any, x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Dtype in which states travel, and dtype of what is returned; of complex fields neither.

    They differ only under autocast: states travel in the parameters' dtype, so that a sum over many
    steps keeps its accuracy, and come out in autocast's.
    """
    weight = first_weight(cell)
    dtype = x.dtype if weight is None else weight.dtype
    if dtype.is_complex and not (x.is_complex() and not complex_fields(cell)):
        dtype = real_of(dtype)  # else everything is complex, and nobody has to say so
    if autocast.is_on(x) and autocast.is_cast(dtype):
        return dtype, torch.get_autocast_dtype(x.device.type)
    return dtype, dtype


def first_weight(cell: Any) -> Tensor | None:
    """A parameter whose dtype and device the cell computes with; None where it has none.

    Beside real ones complex ones do not count. Of a complex one the real counterpart is meant.
    """
    found: Tensor | None = None
    for parameters in (
        vars(cell)["_parameters"].values(),
        cell.parameters(),
    ):  # the first is faster
        for p in parameters:
            if p is not None and p.is_floating_point():
                return p
            if p is not None and p.is_complex() and found is None:
                found = p
    return found


def field_dtypes(cell: Any, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtype of every field of a cell's state, in order, where real ones are of `dtype`."""
    fields, complexes = field_names(cell), complex_fields(cell)
    if not complexes:
        return (dtype,) * len(fields)
    real = real_of(dtype)
    return tuple(complex_of(real) if field in complexes else real for field in fields)


def real_to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A field in another dtype, unless it is complex: one dtype has one of complex numbers."""
    return tensor if tensor.dtype is dtype or tensor.is_complex() else tensor.to(dtype)


def may_meet(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor fits others of `dtype`, being of it or made so by autocast."""
    if x.dtype == dtype:
        return True
    return autocast.is_cast(x.dtype) and autocast.is_cast(dtype) and autocast.is_on(x)


def may_enter(cell: Any, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether an input fits a cell that computes in `dtype`.

    Complex ones do where the state has complex fields, and where there are no real parameters.
    """
    if may_meet(x, dtype) or x.dtype != complex_of(dtype):
        return may_meet(x, dtype)
    weight = first_weight(cell)
    return bool(complex_fields(cell)) or (weight is not None and weight.is_complex())


def check_state_kind(cell: Any, state: tuple[Tensor, ...], x: Tensor) -> None:
    """Refuse a state on another device than the input, or (but for autocast) of another dtype."""
    dtypes = field_dtypes(cell, x.dtype)
    for field, value, dtype in zip(field_names(cell), state, dtypes, strict=True):
        if value.device != x.device:
            raise RuntimeError(
                f"hx: expected {field} on the input's device {x.device}, got {value.device}"
            )
        if not may_meet(value, dtype):
            whose = "the input's dtype " if dtype == x.dtype else ""
            raise RuntimeError(f"hx: expected {field} of {whose}{dtype}, got {value.dtype}")
