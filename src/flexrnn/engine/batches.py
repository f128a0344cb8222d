"""Batches whose sequences end at different steps, the longest first: rows of all steps in one.

As in a `PackedSequence`, `batch_sizes` `(T,)` says how many sequences there are at each step, never
more than at the one before, and what there is at every step is `(N, ...)`, N rows in all.
"""

import itertools

import torch
from torch import Tensor


class Time:
    """Steps one after another, of a tensor `(T, B, ...)` or, with `batch_sizes`, `(N, ...)`."""

    def __init__(self, x: Tensor, batch_sizes: Tensor | None = None):
        self.batch_sizes = batch_sizes
        self.lead = tuple(x.shape[: 2 if batch_sizes is None else 1])
        self.sizes = [] if batch_sizes is None else batch_sizes.tolist()
        self.starts = [0, *itertools.accumulate(self.sizes)]
        self.count = len(self.sizes) or x.shape[0]

    def steps(self, backwards: bool) -> range:
        """The numbers of the steps, from the last to the first or from the first to the last."""
        return range(self.count - 1, -1, -1) if backwards else range(self.count)

    def at(self, tensor: Tensor, t: int) -> Tensor:
        """The rows of a step."""
        return tensor[self.starts[t] : self.starts[t + 1]] if self.sizes else tensor[t]

    def running(self, state: Tensor, t: int) -> Tensor:
        """The rows of a state `(B, ...)` whose sequences have this step."""
        return state[: self.sizes[t]] if self.sizes else state

    def put(self, new: Tensor, old: Tensor) -> Tensor:
        """The state after a step that has run for some of its rows."""
        return new if len(new) == len(old) else torch.cat([new, old[len(new) :]])

    def everywhere(self, state: Tensor) -> Tensor:
        """What is the same at every step `(B, ...)`, at all of them."""
        if self.batch_sizes is None:
            return state.expand(self.count, *state.shape)
        return everywhere(state, self.batch_sizes)

    def join(self, rows: list[Tensor]) -> Tensor:
        """What all steps have given, in the order of time."""
        return torch.cat(rows) if self.sizes else torch.stack(rows)

    def before(self, after: Tensor, first: Tensor, *, reverse: bool) -> Tensor:
        """The states before every step, from those after and the first `(B, ...)`."""
        if self.batch_sizes is not None:
            return before(after, first, self.batch_sizes, reverse=reverse)
        return torch.cat((after[1:], first[None]) if reverse else (first[None], after[:-1]))


def places(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The step and the sequence of every row, each `(N,)`."""
    starts = batch_sizes.cumsum(0) - batch_sizes
    step = torch.repeat_interleave(batch_sizes)
    return step, torch.arange(step.shape[0]) - starts[step]


def everywhere(state: Tensor, batch_sizes: Tensor) -> Tensor:
    """What is the same at every step `(B, ...)`, at all of them `(N, ...)`."""
    _, sequence = places(batch_sizes)
    return state.index_select(0, sequence.to(state.device))


def before(after: Tensor, first: Tensor, batch_sizes: Tensor, *, reverse: bool) -> Tensor:
    """The states before every step `(N, ...)`.

    Args:
        after: those after every step.
        first: those before the first `(B, ...)`.
        batch_sizes: of the steps.
        reverse: from the last step to the first.
    """
    step, sequence = places(batch_sizes)
    past = step + 1 if reverse else step - 1
    starts = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    sizes = torch.nn.functional.pad(
        batch_sizes, (0, 1)
    )  # behind the last step, and before the first
    goes_on = sequence < sizes[past]
    place = torch.where(goes_on, starts[past] + sequence, 0)
    begins = (~goes_on).nonzero().squeeze(1)
    device = after.device  # where no number of these is looked at
    found = after.index_select(0, place.to(device))
    initial = first.index_select(0, sequence[begins].to(device))
    return found.index_copy(0, begins.to(device), initial)


def of_one_step(x: Tensor, batch: int) -> Tensor:
    """What an input `(N, ...)` would be of one step at which all sequences are there."""
    return x[None, :1].expand(1, batch, *x.shape[1:])
