"""Sequences that end at different steps, without anything behind their ends.

The rows of all steps lie one after another, `(N, ...)`, those of a step with the longest sequence
first, as in a `PackedSequence`: what is not there is not computed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from flexrnn.engine import batches, engines, scan
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.paired import real_of
from flexrnn.engine.step import CannotRunError
from flexrnn.record import is_recorded
from flexrnn.regularize import drop

_ENGINES = ("cpu", "cuda")  # that gain by it


class Layout:
    """Where the rows of `(T, B, ...)` lie in `(N, ...)`.

    Args:
        batch_sizes: how many sequences have each step, `(T,)` or fewer; on the CPU.
        order: the sequences, the longest first, `(B,)`; None where they are in this order.
        steps: T.
        batch: B.
        device: of the rows.
    """

    def __init__(
        self, batch_sizes: Tensor, order: Tensor | None, steps: int, batch: int, device: Any
    ):
        self.batch_sizes, self.steps, self.batch, self.device = batch_sizes, steps, batch, device
        self.order = None if order is None else order.to(device)
        self._places: tuple[Tensor, Tensor] | None = None

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """The step and the sequence of every row, each `(N,)`."""
        if self._places is None:
            step, sequence = (at.to(self.device) for at in batches.places(self.batch_sizes))
            self._places = step, sequence if self.order is None else self.order[sequence]
        return self._places

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows `(N, ...)` of `(T, B, ...)`."""
        return _Gather.apply(tensor, *self.places)

    def spread(self, rows: Tensor) -> Tensor:
        """The rows in their places in `(T, B, ...)`, and zeros."""
        return _Spread.apply(rows, *self.places, self.steps, self.batch)

    def sorted(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What there is of each sequence, the longest first."""
        return tensor if self.order is None else tensor.index_select(dim, self.order)

    def unsorted(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What there is of each sequence, in the order in which they came."""
        return tensor if self.order is None else tensor.index_select(dim, self.order.argsort())

    def drop(self, rows: Tensor, p: float) -> Tensor:
        """Dropout on rows, by the numbers that are drawn where they lie otherwise."""
        if self.order is None:
            return drop(rows, p)
        size = (self.steps, self.batch, *rows.shape[1:])
        return rows * self.gather(dropout(rows.new_ones(size, dtype=real_of(rows.dtype)), p))


def of_lengths(lengths: Tensor, steps: int, device: Any) -> Layout | None:
    """The layout of sequences of these lengths `(B,)`; None where nothing is there at all."""
    decreasing, order = lengths.sort(descending=True, stable=True)
    longest = int(decreasing[0])
    if not longest:
        return None
    batch_sizes = (torch.arange(longest)[:, None] < decreasing).sum(1)
    return Layout(batch_sizes, order, steps, lengths.shape[0], device)


def of_packed(batch_sizes: Tensor, device: Any) -> Layout:
    """The layout of a `PackedSequence`."""
    return Layout(batch_sizes, None, batch_sizes.shape[0], int(batch_sizes[0]), device)


def serves(layer: Any, x: Tensor, sizes: Tensor, state: Any) -> bool:
    """Whether rows are to be laid out so: where the engine that is in force gains by it.

    The others get everything padded and marked, and so do those who write down or transform what
    is done: how many rows there are would be for them another thing at every call. Lengths that
    are on another device stay there: a look at them would stop its queue.

    Args:
        layer: a `FlexRNN`.
        x: the input.
        sizes: lengths or batch sizes.
        state: one that was given, or None.
    """
    if (
        is_recorded(layer)
        or torch.compiler.is_compiling()
        or sizes.device.type != "cpu"
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())  # copies from the CPU
    ):
        return False
    engine = engines.chain(scan.in_force(layer.backend), x)[0]
    if engine not in _ENGINES or (engine == "cpu" and engines.not_served(engine, x)):
        return False
    try:
        eager = kind((x, sizes, *(state or ()))) is Call.EAGER
    except CannotRunError:
        return False
    return eager and (layer.checkpoint_every is None or not torch.is_grad_enabled())


class _Gather(torch.autograd.Function):
    # By itself torch would add up what several places of a result might have read. The backward
    # passes are ordinary operations, so that `vmap` has rules for them.
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, step: Tensor, sequence: Tensor) -> Tensor:
        ctx.places, ctx.size = (step, sequence), tensor.shape[:2]
        return tensor[step, sequence]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return _spread(gradient, *ctx.places, *ctx.size), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, step: Tensor, sequence: Tensor, steps: int, batch: int
    ) -> Tensor:
        ctx.places = step, sequence
        return _spread(rows, step, sequence, steps, batch)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient[ctx.places], None, None, None, None


def _spread(rows: Tensor, step: Tensor, sequence: Tensor, steps: int, batch: int) -> Tensor:
    return rows.new_zeros(steps, batch, *rows.shape[1:]).index_put_((step, sequence), rows)
