"""The fields of a cell's state: their names, their widths, and what a person gives for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def field_sizes(cell: Any) -> tuple[int, ...]:
    """Widths of the fields of a cell's state, in order; TypeError unless they are numbers."""
    what = type(cell).__name__
    if not hasattr(cell, "hidden_size"):
        raise TypeError(f"{what}.__init__: expected super().__init__(input_size, hidden_size)")
    declared = type(cell).state_sizes
    try:
        if isinstance(declared, property) and not torch.compiler.is_dynamo_compiling():
            special = declared.__get__(cell)
        else:
            special = cell.state_sizes
    except AttributeError as error:  # of a property, nn.Module would say that there is none
        raise TypeError(f"{what}.state_sizes: {error}") from error
    fields = field_names(cell)
    if not isinstance(special, Mapping):
        why = "; put @property in front of the method" if callable(special) else ""
        raise TypeError(
            f"{what}.state_sizes: expected a property that is a mapping, got "
            f"{type(special).__name__}{why}"
        )
    if unknown := [field for field in special if field not in fields]:
        raise TypeError(
            f"{what}.state_sizes: expected names of State's fields ({', '.join(fields)}), "
            f"got {unknown[0]!r}"
        )
    for field, size in special.items():
        if not hasattr(size, "__index__"):
            raise TypeError(
                f"{what}.state_sizes: expected the width of {field} as an int, "
                f"got {size!r}; a matrix is kept flat, and viewed as one in step"
            )
    return tuple(special.get(field, cell.hidden_size) for field in fields)


def field_names(cell: Any) -> tuple[str, ...]:
    """Names of the fields of the state of a cell, or of a class of cells, in order."""
    return cell.State._fields


def complex_fields(cell: Any) -> tuple[str, ...]:
    """Names of the fields that hold complex numbers; TypeError unless they are names of fields."""
    declared, what = cell.complex_fields, type(cell).__name__
    if declared == ():
        return ()
    if not isinstance(declared, tuple):
        raise TypeError(
            f"{what}.complex_fields: expected a tuple of names, got {type(declared).__name__}"
        )
    fields = field_names(cell)
    if unknown := [name for name in declared if name not in fields]:
        raise TypeError(
            f"{what}.complex_fields: expected names of State's fields ({', '.join(fields)}), "
            f"got {unknown[0]!r}"
        )
    return declared


def unwrap(state: Any) -> Any:
    """What a person sees of a state: the tensor itself where there is one field."""
    return state[0] if len(state) == 1 else state


def wrap(cell: Any, hx: Any, argument: str = "hx") -> tuple[Tensor, ...]:
    """The fields of a state that a person gave; TypeError unless the structure is the cell's."""
    fields = field_names(cell)
    if len(fields) == 1 and isinstance(hx, Tensor):
        return (hx,)
    expected = "a tensor" if len(fields) == 1 else f"a tuple ({', '.join(fields)})"
    if isinstance(hx, Tensor):
        raise TypeError(f"{argument}: expected {expected}, got a tensor of shape {tuple(hx.shape)}")
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{argument}: expected {expected}, got {type(hx).__name__}")
    if len(hx) != len(fields):
        raise TypeError(f"{argument}: expected {expected}, got {described(hx)}")
    for field, value in zip(fields, hx, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{argument}: expected {field} to be a tensor, got {type(value).__name__}"
            )
    return tuple(hx)


def spelled(kind: Any) -> str:
    """How a state of a class is written in a step, for messages: `LSTMState(h, c)`."""
    return f"{kind.__name__}({', '.join(kind._fields)})"


def described(value: Any) -> str:
    """A value's type, and its length where it has one, for messages."""
    name = type(value).__name__
    return f"{name} of length {len(value)}" if isinstance(value, (tuple, list)) else name
