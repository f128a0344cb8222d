"""`record`: what goes on inside a layer, gate by gate and step by step."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Here(threading.local):
    def __init__(self) -> None:
        # In every thread; an attribute of the class has no guard of Dynamo's.
        self.active: tuple[tuple[nn.Module, dict[str, Tensor]], ...] = ()


_here = _Here()


@contextmanager
def record(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record what the cells of a layer name by `tap`, gates above all.

    Inside the block the layer runs by the reference engine. Only calls from the same thread are
    recorded; of several calls the last is kept. Blocks may be nested, for one layer or several.

    Args:
        layer: a `FlexRNN` or a drop-in.

    Yields:
        A dictionary that each call fills: `{"l0.i": (T, B, H), "l1_reverse.f": ...}`, in the order
        of time and of the batch as it was given, whatever `batch_first` says; `(T, H)` without a
        batch. Tensors are detached; behind the end of a sequence they are zero.

    Raises:
        TypeError: `layer` is none of ours.
        RuntimeError: by the call, where a cell does not tap a name once at every step.

    Example:
        >>> import torch, flexrnn
        >>> layer = flexrnn.LSTM(3, 5, num_layers=2)
        >>> with flexrnn.record(layer) as taps:
        ...     output, state = layer(torch.randn(7, 2, 3))
        >>> list(taps)
        ['l0.i', 'l0.f', 'l0.g', 'l0.o', 'l1.i', 'l1.f', 'l1.g', 'l1.o']
        >>> taps["l1.f"].shape
        torch.Size([7, 2, 5])
    """
    if not isinstance(layer, nn.Module) or not hasattr(layer, "num_directions"):
        raise TypeError(f"layer: expected a FlexRNN, got {type(layer).__name__}")
    layer = getattr(layer, "_orig_mod", layer)  # of what torch.compile returns
    before, taps = _here.active, dict[str, Tensor]()
    _here.active = (*before, (layer, taps))
    try:
        yield taps
    finally:
        _here.active = before


def is_recorded(layer: nn.Module) -> bool:
    """Whether somebody records the layer here and now."""
    active = _here.active
    return bool(active) and any(recorded is layer for recorded, _ in active)


def publish(
    layer: nn.Module, found: dict[str, Tensor], arrange: Callable[[Tensor], Tensor]
) -> None:
    """Give what one call has found, `arrange(tensor)` of each `(T, B, ...)`, to who records it."""
    for recorded, taps in _here.active:
        if recorded is layer:
            taps.clear()
            taps.update({name: arrange(tensor) for name, tensor in found.items()})


class Taps:
    """Stands in for a cell's `tap` during one run over time."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = {}
        self.open = True

    def __call__(self, **tensors: Tensor) -> None:
        """Note some tensors of one step."""
        if self.open:  # a checkpointed segment runs again in the backward pass
            for name, tensor in tensors.items():
                self.rows.setdefault(name, []).append(tensor.detach())

    def close(
        self, cell: str, steps: int, valid: Tensor | None, *, reverse: bool
    ) -> dict[str, Tensor]:
        """What was noted, each tensor `(T, B, ...)`, zero where `valid` `(T, B, 1)` is false.

        Args:
            cell: name of its class, for messages.
            steps: T.
            valid: where sequences have not ended, or None.
            reverse: the steps came from the last to the first.
        """
        self.open = False
        found: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            if len(rows) != steps:
                raise RuntimeError(
                    f"{cell}.step: expected the tap {name!r} once at every step, got it "
                    f"{len(rows)} times in {steps} steps"
                )
            stacked = torch.stack(rows[::-1] if reverse else rows)
            if valid is not None:
                if stacked.dim() != 3 or stacked.shape[1] != valid.shape[1]:
                    raise RuntimeError(
                        f"{cell}.step: expected the tap {name!r} of shape "
                        f"({valid.shape[1]}, width) with lengths, got {tuple(rows[0].shape)}"
                    )
                stacked = torch.where(valid, stacked, 0)
            found[name] = stacked
        return found
