"""Layers on top of one another, in one direction or two."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flexrnn.call import direction
from flexrnn.call.marks import Marks
from flexrnn.call.packing import padded, rows_of
from flexrnn.cell import Cell
from flexrnn.dtypes import loop_dtypes, real_to
from flexrnn.regularize import drop


def run(
    cells: Sequence[Cell],
    origins: Sequence[Cell],
    x: Tensor,
    state: tuple[Tensor, ...],
    start: tuple[Tensor, ...] | None,
    where: Marks,
    options: direction.Options,
    *,
    bidirectional: bool,
    dropout: float,
    packed: Tensor | None,
    every_state: bool,
    taps: dict[str, Tensor] | None,
) -> tuple[Tensor, Any, Any]:
    """Run all layers and directions over `x` `(T, B, I)`, or `(N, I)` where `where` has a layout.

    Args:
        cells: of every layer and direction, bound to their parameters.
        origins: the layer's cells, of which those are copies.
        x: the input.
        state: the initial state, each field `(L·D, B, width)`.
        start: the state to which a reset returns, likewise; None where there are no resets.
        where: sequences end and begin anew.
        options: of every direction.
        bidirectional: two cells a layer, the second from the end.
        dropout: between the layers, while training.
        packed: lengths `(B,)`, decreasing, where the input was a packed sequence and is padded.
        every_state: return the states at every step, too.
        taps: filled with what the cells tap, if somebody records it: `l0.i`, `l1_reverse.f`.

    Returns:
        The last layer's output `(T, B, D·width)`, the final state, a `State` of `(L·D, B, width)`,
        and a `State` of `(L·D, T, B, width)` or None; `(N, ·)` in the place of `(T, B, ·)` as in x.
    """
    _, out_dtype = loop_dtypes(cells[0], x)
    ways = ("", "_reverse") if bidirectional else ("",)
    keep = range(len(state)) if every_state else (0,)
    finals, histories = [], []
    for k in range(len(cells) // len(ways)):
        if k and dropout and options.training:
            x = (
                _dropped(x, dropout, packed)
                if where.layout is None
                else where.layout.drop(x, dropout)
            )
        outputs, filled = [], where.fill(x)
        for way in ways:
            index = len(finals)
            tapped: dict[str, Tensor] | None = None if taps is None else {}
            history, final = direction.run(
                cells[index],
                origins[index],
                filled,
                tuple(field[index] for field in state),
                tuple(field[index] for field in start or ()),
                where,
                options,
                reverse=way != "",
                keep=keep,
                taps=tapped,
            )
            if taps is not None and tapped is not None:
                taps |= {f"l{k}{way}.{name}": tensor for name, tensor in tapped.items()}
            outputs.append(real_to(history[0], out_dtype))
            finals.append(final)
            histories.append(history)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

    kind = cells[0].State
    states = stacked(kind, histories, out_dtype, view=True) if every_state else None
    return x, stacked(kind, finals, out_dtype), states


def stacked(
    state: Any, rows: Sequence[tuple[Tensor, ...]], dtype: torch.dtype, *, view: bool = False
) -> Any:
    """A state of a class whose fields have an axis more, of layers and directions.

    Where a view will do, that of one layer and direction is one. Who detaches a state in place, to
    cut backpropagation off, may not be given one.
    """
    one = view and len(rows) == 1
    fields = [f[0][None] if one else torch.stack(f) for f in zip(*rows, strict=True)]
    return state(*(f if f.dtype is dtype else real_to(f, dtype) for f in fields))


def each(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state of the same class with `fn` applied to every field; None stays None."""
    if hasattr(state, "_fields"):
        return type(state)(*map(fn, state))
    return None if state is None else tuple(map(fn, state))


def _dropped(x: Tensor, p: float, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return drop(x, p)
    # Drawn for the rows that exist and for no padding: the numbers that torch draws.
    data, batch_sizes = rows_of(x, lengths)
    return padded(drop(data, p), batch_sizes)[0]
