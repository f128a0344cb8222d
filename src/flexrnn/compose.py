"""From a step to a composed step: what a layer adds to the equations, by selection only.

Engines see the composed step and nothing of what it is made of. Selection is `where`, never a
product with a mask: 0 · inf is NaN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexrnn.cell import Cell, checked_step

ComposedStep = Callable[[tuple[Tensor, ...], Any], Any]


def compose(cell: Cell, *, ragged: bool = False) -> ComposedStep:
    """The step that an engine runs: `(inputs_t, state) -> state`.

    Args:
        cell: bound to its parameters.
        ragged: sequences have lengths of their own; `inputs_t` is then `(x_t, valid_t)` with
            `valid_t` `(B, 1)`, false where row b's sequence has ended. There the state stays what
            it was, and nothing of `x_t`, not even its derivative, is touched.
    """
    if not ragged:
        return lambda inputs, state: checked_step(cell, inputs[0], state)

    def held(inputs: tuple[Tensor, ...], state: Any) -> Any:
        x, valid = inputs
        new = checked_step(cell, torch.where(valid, x, 0), state)
        return cell.State(*(torch.where(valid, n, o) for n, o in zip(new, state, strict=True)))

    return held
