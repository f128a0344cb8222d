"""The reference engine: an eager loop over the step, by which every other is judged."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from flexrnn.engine.batches import Time

State = TypeVar("State", bound=tuple[Tensor, ...])
Step = Callable[[tuple[Tensor, ...], State], State]


def run(
    step: Step[State],
    state: State,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
    batch_sizes: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], State]:
    """Run `state = step(x_t, state)` for every t.

    Args:
        step: the composed step; takes the tuple of the inputs' rows at t, and the state.
        state: the state before the first step.
        xs: the inputs, each `(T, ...)`, T ≥ 1.
        reverse: from the last t to the first.
        keep: indices of the state's fields that are wanted at every step.
        batch_sizes: `(T,)`, where sequences end at different steps; see `engine.batches`. Then the
            inputs, and what is kept, are `(N, ...)`.

    Returns:
        The kept fields, each `(T, ...)` in the order of time, and the last state.
    """
    if batch_sizes is not None:
        return _ragged(step, state, xs, Time(xs[0], batch_sizes), reverse, keep)
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


def _ragged(
    step: Any, state: Any, xs: tuple[Tensor, ...], time: Time, reverse: bool, keep: Sequence[int]
) -> Any:
    """The same for the rows that run at each step alone; the others keep their state."""
    rebuild = type(state)._make if hasattr(state, "_fields") else tuple
    history: list[list[Tensor]] = [[] for _ in keep]
    for t in time.steps(reverse):
        running = rebuild(time.running(field, t) for field in state)
        new = step(tuple(time.at(x, t) for x in xs), running)
        state = rebuild(map(time.put, new, state))
        for kept, field in zip(history, keep, strict=True):
            kept.append(new[field])
    return tuple(time.join(kept[::-1] if reverse else kept) for kept in history), state
