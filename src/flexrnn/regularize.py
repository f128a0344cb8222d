"""Zoneout, recurrent dropout and weight drop: what they draw, and how a cell meets it.

A layer draws every mask before an engine runs, from torch's generator: the numbers are the same
whatever the engine, and a seed repeats them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from flexrnn.bind import Slot, tensors_of, with_tensors
from flexrnn.cell import Cell, first_state
from flexrnn.dtypes import first_weight
from flexrnn.engine.paired import real_of
from flexrnn.fields import field_names


class Drop:
    """Stands in for a cell's `drop_recurrent` in one step: its k-th call gets the k-th mask.

    Args:
        name: the cell's class, for messages.
        masks: each `(B, width)`: 0 where a number is dropped, 1/(1 − p) elsewhere.
    """

    def __init__(self, name: str, masks: tuple[Tensor, ...]):
        self.name, self.masks, self.used = name, masks, 0

    def __call__(self, h: Tensor) -> Tensor:
        """`h` with some of its numbers dropped, the same at every step."""
        self.used += 1
        if self.used > len(self.masks):
            self.finish()
        mask = self.masks[self.used - 1]
        if h.shape[-1:] != mask.shape[-1:]:
            raise RuntimeError(
                f"{self.name}.step: expected drop_recurrent of width {mask.shape[-1]}, as when it "
                f"was first called, got shape {tuple(h.shape)}"
            )
        return torch.where(mask != 0, h * mask, 0)

    def finish(self) -> None:
        """Refuse a step that does not call as often as the one for which masks were drawn."""
        if self.used != len(self.masks):
            raise RuntimeError(
                f"{self.name}.step: expected {len(self.masks)} calls of drop_recurrent at every "
                f"step, as at the first, got {self.used}"
            )


class _Asked:
    """Stands in for `drop_recurrent` to see what it is called with."""

    def __init__(self) -> None:
        self.widths: list[int] = []

    def __call__(self, h: Tensor) -> Tensor:
        self.widths.append(h.shape[-1])
        return h


def dropped_widths(cell: Cell, x: Tensor, state: Any) -> tuple[int, ...]:
    """Widths of what a step passes through `drop_recurrent`; found by running one.

    Args:
        cell: bound to its parameters; a buffer that its step updates is not.
        x: `(B, I)`, of whatever numbers.
        state: each field `(B, width)`.

    Raises:
        ValueError: the step never calls `drop_recurrent`.
    """
    parameters = dict(cell.named_parameters(remove_duplicate=False))
    others = {name: t.clone() for name, t in tensors_of(cell).items() if name not in parameters}
    copy, asked = with_tensors(cell, others), _Asked()
    copy.__dict__["drop_recurrent"] = asked
    with torch.no_grad():
        copy.step(x, cell.State(*state))
    if not asked.widths:
        raise ValueError(
            f"recurrent_dropout: expected a cell whose step calls self.drop_recurrent, got "
            f"{type(cell).__name__}"
        )
    return tuple(asked.widths)


def drop(x: Tensor, p: float) -> Tensor:
    """`dropout`, of complex numbers too, for which torch has none: of each, both parts."""
    return x * dropout(torch.ones_like(x.real), p) if x.is_complex() else dropout(x, p)


def recurrent_masks(cell: Cell, p: float, x: Tensor, state: Any) -> tuple[Tensor, ...]:
    """Draw the masks of recurrent dropout for sequences of rows like `x` `(1, I)`."""
    widths = dropped_widths(cell, x, [field[:1] for field in state])
    real = real_of(state[0].dtype)
    return tuple(
        dropout(state[0].new_ones(len(state[0]), width, dtype=real), p) for width in widths
    )


def zoneout_masks(ps: tuple[float, ...], steps: int, state: Any) -> tuple[Tensor, ...]:
    """Draw where each field with p > 0 keeps its old value, `(T, B, width)`."""
    return tuple(
        torch.empty(steps, *field.shape, dtype=torch.bool, device=field.device).bernoulli_(p)
        for p, field in zip(ps, state, strict=True)
        if p
    )


def zoneout_of(cell: Cell, zoneout: float | Mapping[str, float]) -> tuple[float, ...]:
    """The probability of every field of the state; one number is for all."""
    if isinstance(zoneout, Mapping):
        return tuple(float(zoneout.get(field, 0)) for field in field_names(cell))
    return (float(zoneout),) * len(field_names(cell))


def drop_weights(cell: Cell, slots: tuple[Slot, ...], p: float) -> None:
    """Drop elements of every `weight_hh*` of a copy of a cell, which is made for one call."""
    drawn: dict[str, Tensor] = {}
    for slot in slots:
        if is_recurrent(slot):
            held = cell.get_submodule(slot.module)._parameters  # pyright: ignore[reportPrivateUsage]
            weight = held[slot.name]
            if weight is not None:
                drawn.setdefault(slot.flat, drop(weight, p))
                held[slot.name] = drawn[slot.flat]  # pyright: ignore[reportArgumentType]


def check_regularizers(
    cell: Cell, slots: tuple[Slot, ...], recurrent_dropout: float, weight_drop: float
) -> None:
    """Refuse what a cell has no place for.

    Args:
        cell: bound to its parameters.
        slots: of those parameters.
        recurrent_dropout: its step must call `drop_recurrent`.
        weight_drop: it must have a parameter `weight_hh*`.
    """
    if weight_drop and not any(map(is_recurrent, slots)):
        names = ", ".join(dict.fromkeys(slot.name for slot in slots))
        raise ValueError(
            f"weight_drop: expected a cell with parameters weight_hh*, got {type(cell).__name__} "
            f"with {names or 'none'}"
        )
    if recurrent_dropout:
        weight = first_weight(cell)
        like = torch.empty(0) if weight is None else weight
        x = like.new_zeros(1, cell.input_size, dtype=real_of(like.dtype))
        dropped_widths(cell, x, first_state(cell, (1,), x.dtype, x.device))


def is_recurrent(slot: Slot) -> bool:
    """Whether weight drop is meant for a parameter."""
    return slot.name.startswith("weight_hh")
