# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# Torch has no public name for an assertion on the device, or for whether vmap is at work.
"""`lengths` and `reset`: where sequences end, and where they begin anew."""

from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.call.ragged import Layout, of_lengths


class Marks(NamedTuple):
    """Truth values `(T, B, 1)`, or None where nothing is marked; or where rows lie.

    Ends of sequences are marked by `valid`, and the input has rows behind them; or nothing is
    there behind them, and `layout` says where the others lie.
    """

    valid: Tensor | None = None  # step t belongs to row b's sequence
    reset: Tensor | None = None  # row b is cut between steps t - 1 and t
    layout: Layout | None = None

    def of(self, *, reverse: bool) -> "Marks":
        """The marks as one direction meets them.

        Who comes from the end crosses the cut between t − 1 and t on the way to t − 1.
        """
        if self.reset is None or not reverse:
            return self
        return self._replace(reset=torch.cat([self.reset[1:], torch.zeros_like(self.reset[:1])]))

    @property
    def batch(self) -> int | None:
        """B, where the input does not show it."""
        return None if self.layout is None else self.layout.batch

    def enter(self, x: Tensor) -> Tensor:
        """The input `(T, B, I)` as it lies: `(N, I)` where there is a layout."""
        return x if self.layout is None else self.layout.gather(x)

    def fill(self, x: Tensor) -> Tensor:
        """The input `(T, B, I)` with something of each row's behind its end; else as it is.

        What is marked is computed and thrown away, and nothing of padding may be in it. But if the
        step is not finite there, NaN times the zero that its gradient is given reaches the weights.
        Zeros would make it so with `x / x.norm()` or `x.log()`; the last input, with a step that
        divides by its distance to an earlier one that a state keeps. Three quarters of the last
        input are neither, and what is between 0 and an input is in most domains that it is in.
        Zeros stand only where a row has no step at all: no row meets another's.
        """
        if self.valid is None:
            return x
        last = (self.valid.sum(0, keepdim=True) - 1).clamp(min=0).expand(1, -1, x.shape[-1])
        row = x.detach().gather(0, last)
        row = 0.75 * row if row.is_floating_point() or row.is_complex() else row
        return torch.where(self.valid, x, torch.where(self.valid[0], row, 0))

    def leave(self, output: Tensor) -> Tensor:
        """What came out at every step, `(T, B, ...)`, zero behind the ends."""
        if self.layout is not None:
            return self.layout.spread(output)
        return output if self.valid is None else torch.where(self.valid, output, 0)

    def leave_each(self, states: Tensor) -> Tensor:
        """The same of every layer and direction, `(L·D, T, B, ...)`."""
        if self.layout is None:
            return self.leave(states)
        return torch.stack([self.layout.spread(state) for state in states])

    def sorted(self, states: Tensor) -> Tensor:
        """States `(L·D, B, width)` in the order in which sequences lie."""
        return states if self.layout is None else self.layout.sorted(states, 1)

    def unsorted(self, states: Tensor) -> Tensor:
        """The reverse of `sorted`."""
        return states if self.layout is None else self.layout.unsorted(states, 1)


def marks(
    lengths: Tensor | None, reset: Tensor | None, steps: int, device: Any, *, compact: bool = False
) -> Marks:
    """Marks of `lengths` `(B,)` and `reset` `(T, B)`; behind a sequence's end nothing is reset.

    With `compact` there is a layout for lengths, or nothing where all are T.
    """
    valid = layout = None
    if compact and lengths is not None and bool((lengths == steps).all()):
        lengths = None
    if lengths is not None and compact:
        layout = of_lengths(lengths, steps, device)
    if lengths is not None and (layout is None or reset is not None):
        t = torch.arange(steps, device=device)
        valid = (t[:, None] < lengths.to(device)).unsqueeze(-1)
    if reset is not None:
        reset = reset.unsqueeze(-1) if valid is None else reset.unsqueeze(-1) & valid
    return Marks(valid if layout is None else None, reset, layout)


def check_lengths(lengths: Any, x: Tensor) -> Tensor | None:
    """`lengths` as a tensor `(B,)`, checked against `x` `(T, B, I)` or `(T, I)`.

    Raises:
        TypeError, ValueError: it is not one integer from 0 to T for each sequence. On a device
            other than the CPU a value out of range fails there, as an assertion: a look at it
            would stop the queue.
    """
    if lengths is None:
        return None
    if isinstance(lengths, (list, tuple)):
        if not all(isinstance(n, Integral) and not isinstance(n, bool) for n in lengths):
            raise TypeError(f"lengths: expected integers, got {lengths!r}")
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if isinstance(lengths, int) and not isinstance(lengths, bool):
        lengths = torch.tensor(lengths)
    lengths = of_numpy(lengths, "cpu")
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a tensor of integers, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    shape = tuple(x.shape[1:-1])
    if lengths.shape != shape:
        raise ValueError(
            f"lengths: expected shape {shape}, one for each sequence, got {tuple(lengths.shape)}"
        )
    lengths = lengths.long()  # nothing is known of some of torch's whole numbers
    _check_values(lengths, x.shape[0])
    return lengths.reshape(-1)


def of_numpy(marks: Any, device: Any) -> Any:
    """An array of numbers of NumPy's as a tensor of its own, anything else as it is."""
    if type(marks).__module__ != "numpy":
        return marks
    if not torch.compiler.is_compiling() and marks.dtype.kind not in "biufc":
        return marks
    own = marks.copy()  # the person's may lie backwards, or be read-only
    return torch.as_tensor(own, device=device)


def _check_values(lengths: Tensor, steps: int) -> None:
    fitting = ((lengths >= 0) & (lengths <= steps)).all()
    message = f"lengths: expected numbers from 0 to {steps}, the number of time steps"
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or type(lengths) is not Tensor:
        if lengths.device.type != "meta":
            torch._assert_async(fitting, message)
    elif not torch._C._functorch.is_functorch_wrapped_tensor(lengths) and not bool(fitting):
        raise ValueError(f"{message}, got {lengths.tolist()}")


def check_reset(reset: Any, x: Tensor, *, batch_first: bool) -> Tensor | None:
    """`reset` as `(T, B)`, checked against `x` `(T, B, I)` or `(T, I)`.

    Args:
        reset: `(T, B)`, or `(B, T)` with `batch_first`; `(T,)` without a batch.
        x: the input, time first.
        batch_first: the person's tensors have the batch first.

    Raises:
        TypeError, ValueError, RuntimeError: it is no tensor of truth values of that shape on the
            input's device.
    """
    if reset is None:
        return None
    reset = of_numpy(reset, x.device)
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset: expected a tensor of torch.bool, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset: expected torch.bool, got {reset.dtype}")
    shape, name = tuple(x.shape[:-1]), "(T, B)"
    if x.dim() == 2:
        name = "(T,)"
    elif batch_first:
        shape, name = (shape[1], shape[0]), "(B, T)"
    if reset.shape != shape:
        raise ValueError(f"reset: expected shape {name} = {shape}, got {tuple(reset.shape)}")
    if reset.device != x.device:
        raise RuntimeError(
            f"reset: expected it on the input's device {x.device}, got {reset.device}"
        )
    if x.dim() == 2:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if batch_first else reset


def check_alone(**given: Any) -> None:
    """Refuse arguments that a `PackedSequence` does not take."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{name}: expected none with a PackedSequence, which has lengths of its own; give "
                "a padded tensor and its lengths"
            )
