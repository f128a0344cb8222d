"""The reference engine: an eager loop over the step, by which every other is judged."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple[Tensor, ...])
Step = Callable[[tuple[Tensor, ...], State], State]


def run(
    step: Step[State],
    state: State,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
) -> tuple[tuple[Tensor, ...], State]:
    """Run `state = step(x_t, state)` for every t.

    Args:
        step: the composed step; takes the tuple of the inputs' rows at t, and the state.
        state: the state before the first step.
        xs: the inputs, each `(T, ...)`, T ≥ 1.
        reverse: from the last t to the first.
        keep: indices of the state's fields that are wanted at every step.

    Returns:
        The kept fields, each `(T, ...)` in the order of time, and the last state.
    """
    rows = list(zip(*(x.unbind(0) for x in xs), strict=True))
    history: list[list[Tensor]] = [[] for _ in keep]
    for x_t in reversed(rows) if reverse else rows:
        state = step(x_t, state)
        for kept, field in zip(history, keep, strict=True):
            kept.append(state[field])
    if reverse:
        for kept in history:
            kept.reverse()
    return tuple(torch.stack(kept) for kept in history), state
