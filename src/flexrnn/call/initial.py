"""The state before the first step: the cell's, or one that is learned."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexrnn.cell import Cell, first_state
from flexrnn.dtypes import field_dtypes, first_weight
from flexrnn.engine.paired import real_of
from flexrnn.fields import field_names


def add_learned(layer: nn.Module, cell: Cell, suffix: str, start: Sequence[Tensor]) -> None:
    """Register `initial_{field}{suffix}` `(width,)`, which begins as the cell's own initial state.

    Raises:
        ValueError: the name is taken.
    """
    for field, value in zip(field_names(cell), start, strict=True):
        name = f"initial_{field}{suffix}"
        if hasattr(layer, name):
            raise ValueError(
                f"learn_initial_state: expected the name {name} to be free, got a "
                f"{type(cell).__name__} with a parameter initial_{field}"
            )
        layer.register_parameter(name, nn.Parameter(value.detach().clone()))


def unbatched(cell: Cell, dtype: torch.dtype | None = None) -> Sequence[Tensor]:
    """The cell's own initial state, each field `(width,)`, of its parameters' dtype and device."""
    weight = first_weight(cell)
    if weight is None:
        example = torch.empty(0, dtype=dtype)
        return first_state(cell, (), example.dtype, example.device)
    return first_state(cell, (), real_of(weight.dtype), weight.device)


def reset_learned(layer: nn.Module, cell: Cell, suffix: str) -> None:
    """Set the learned initial state back to the cell's own."""
    with torch.no_grad():
        for field, value in zip(field_names(cell), unbatched(cell), strict=True):
            getattr(layer, f"initial_{field}{suffix}").copy_(value)


def initial_state(
    layer: nn.Module,
    cells: Sequence[Cell],
    suffixes: Sequence[str],
    *,
    learned: bool,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """The fields of the state before the first step, each `(L·D, B, width)`."""
    if not learned:
        each = [first_state(cell, (batch,), dtype, device) for cell in cells]
        if len(each) == 1:
            return tuple(field[None] for field in each[0])
        return tuple(map(torch.stack, zip(*each, strict=True)))
    fields = []
    for field, own in zip(field_names(cells[0]), field_dtypes(cells[0], dtype), strict=True):
        rows = [getattr(layer, f"initial_{field}{suffix}") for suffix in suffixes]
        fields.append(torch.stack(rows).to(own)[:, None].expand(-1, batch, -1))
    return tuple(fields)
