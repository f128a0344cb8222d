"""One layer in one direction: its step composed, its masks drawn, an engine run."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from flexrnn.call.marks import Marks
from flexrnn.cell import Cell
from flexrnn.compose import CellStep
from flexrnn.engine import scan
from flexrnn.regularize import recurrent_masks, zoneout_masks


class Options(NamedTuple):
    """What a layer asks for in every direction."""

    zoneout: tuple[float, ...]  # of each field
    recurrent_dropout: float
    training: bool
    backend: str


def run(
    cell: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    start: tuple[Tensor, ...],
    marks: Marks,
    options: Options,
    *,
    reverse: bool,
    keep: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run over `x` `(T, B, I)`.

    Args:
        cell: bound to its parameters.
        x: the input.
        state: the state before the first step, each field `(B, width)`.
        start: the state to which a reset returns.
        marks: of the sequences, whatever the direction.
        options: the layer's.
        reverse: from the last step to the first.
        keep: indices of the fields that are wanted at every step.

    Returns:
        The kept fields, each `(T, B, width)`, and the last state.
    """
    valid, reset = marks.of(reverse=reverse)
    masks: tuple[Tensor, ...] = ()
    if options.training and options.recurrent_dropout:
        masks = recurrent_masks(cell, options.recurrent_dropout, x, state)
    zoned: tuple[Tensor, ...] = ()
    if options.training and any(options.zoneout):
        zoned = zoneout_masks(options.zoneout, x.shape[0], state)
    step = CellStep(
        cell,
        ragged=valid is not None,
        reset=reset is not None,
        zoned=tuple(map(bool, options.zoneout)) if zoned else (),
        expected=() if options.training else options.zoneout,
        masks=len(masks),
    )
    inputs = [x, *(mark for mark in (valid, reset) if mark is not None), *zoned]
    whole = cell.State(*state)
    if reset is not None or masks:
        whole = (*state, *(start if reset is not None else ()), *masks)
    history, final = scan.run(
        step, whole, tuple(inputs), reverse=reverse, keep=keep, backend=options.backend
    )
    return history, tuple(final[: len(state)])
