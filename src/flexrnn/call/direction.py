"""One layer in one direction: its step composed, its masks drawn, an engine run."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from torch import Tensor

from flexrnn.call import segments
from flexrnn.call.marks import Marks
from flexrnn.cell import Cell
from flexrnn.compose import CellStep
from flexrnn.engine import scan
from flexrnn.record import Taps
from flexrnn.regularize import recurrent_masks, zoneout_masks
from flexrnn.trials import draws_of


class Options(NamedTuple):
    """What a layer asks for in every direction."""

    zoneout: tuple[float, ...]  # of each field
    recurrent_dropout: float
    training: bool
    checkpoint_every: int | None
    backend: str


def run(
    cell: Cell,
    origin: Cell,
    x: Tensor,
    state: tuple[Tensor, ...],
    start: tuple[Tensor, ...],
    marks: Marks,
    options: Options,
    *,
    reverse: bool,
    keep: Sequence[int],
    taps: dict[str, Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run over `x` `(T, B, I)`, or `(N, I)` where the marks have a `layout`.

    Args:
        cell: bound to its parameters.
        origin: the layer's cell, of which `cell` is a copy.
        x: the input.
        state: the state before the first step, each field `(B, width)`.
        start: the state to which a reset returns.
        marks: of the sequences, whatever the direction.
        options: the layer's.
        reverse: from the last step to the first.
        keep: indices of the fields that are wanted at every step.
        taps: filled with what the cell taps, each `(T, B, ...)`, if somebody records it.

    Returns:
        The kept fields, each `(T, B, width)`, and the last state.
    """
    valid, reset, layout = marks.of(reverse=reverse)
    masks: tuple[Tensor, ...] = ()
    if options.training and options.recurrent_dropout:
        first = x[0, :1] if layout is None else x[:1]
        masks = recurrent_masks(cell, options.recurrent_dropout, first, state)
    zoned: tuple[Tensor, ...] = ()
    steps, batch = (x.shape[0] if layout is None else layout.steps), state[0].shape[0]
    if options.training and any(options.zoneout):
        zoned = zoneout_masks(options.zoneout, steps, state)
    draws = draws_of(cell, origin, x, state)
    numbers = tuple(draw.sequence(steps, batch, x.device) for draw in draws)
    if layout is not None:  # drawn for all, so that the numbers are the same either way
        masks = tuple(map(layout.sorted, masks))
        zoned, numbers = tuple(map(layout.gather, zoned)), tuple(map(layout.gather, numbers))
        reset = None if reset is None else layout.gather(reset)
    tap = Taps()
    if taps is not None:
        cell.__dict__["tap"] = tap  # the cell is a copy for this call
    step = CellStep(
        cell,
        ragged=valid is not None,
        reset=reset is not None,
        zoned=tuple(map(bool, options.zoneout)) if zoned else (),
        expected=options.zoneout if not options.training and any(options.zoneout) else (),
        masks=len(masks),
        draws=draws,
        origin=origin,
    )
    inputs = [x, *(mark for mark in (valid, reset) if mark is not None), *zoned, *numbers]
    whole = cell.State(*state)
    if reset is not None or masks:
        whole = (*state, *(start if reset is not None else ()), *masks)
    # Python has to be there at every step where somebody listens.
    with scan.backend("reference") if taps is not None else nullcontext():
        history, final = segments.run(
            step,
            whole,
            tuple(inputs),
            reverse=reverse,
            keep=keep,
            backend=options.backend,
            every=options.checkpoint_every,
            batch_sizes=None if layout is None else layout.batch_sizes,
        )
    if taps is not None:
        name = type(cell).__name__
        taps.update(tap.close(name, x.shape[0], valid, reverse=reverse))
    return history, tuple(final[: len(state)])
