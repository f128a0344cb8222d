"""`tbptt`: backpropagation through time, truncated."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from flexrnn.call.marks import check_lengths, check_reset, of_numpy
from flexrnn.call.stack import each


class Chunk(NamedTuple):
    """What `tbptt` yields."""

    output: Tensor  # of these steps, as the layer returns it
    state: Any  # after these steps, detached: the `hx` of what comes next
    time: slice  # these steps: `targets[chunk.time]`


def tbptt(
    layer: nn.Module,
    x: Tensor,
    steps: int,
    hx: Any = None,
    *,
    lengths: Any = None,
    reset: Any = None,
) -> Iterator[Chunk]:
    """Walk a long sequence in chunks, carrying the state from chunk to chunk without its gradient.

    Memory is that of one chunk, and a gradient reaches back no further than its beginning. A chunk
    is computed when it is asked for, so the weights may be changed between two of them.

    Source: Williams & Peng 1990 (BPTT(h; h') with both h as long as the chunk).

    Args:
        layer: a `FlexRNN` of one direction.
        x: `(T, B, I)`, `(B, T, I)` with `batch_first`, or `(T, I)`.
        steps: length of a chunk; the last may be shorter.
        hx: the initial state; the `state` of the last chunk goes on where that ended. A gradient
            that it asks for is computed in the first chunk.
        lengths: as the layer takes it, of the whole; a row that has ended keeps its state.
        reset: as the layer takes it, of the whole. Behind a cut the state is the initial one, also
            where that one is learned, and its gradient is computed in the chunk of the cut.

    Yields:
        A `Chunk(output, state, time)`; `time` is a slice of steps.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the layer has two directions,
            of which the second begins at the end.

    Example:
        >>> import torch, flexrnn
        >>> layer, x, target = flexrnn.GRU(3, 5), torch.randn(100, 2, 3), torch.randn(100, 2, 5)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> for chunk in flexrnn.tbptt(layer, x, steps=35):
        ...     loss = (chunk.output - target[chunk.time]).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> chunk.time
        slice(70, 100, None)
    """
    if not isinstance(layer, nn.Module) or not hasattr(layer, "bidirectional"):
        raise TypeError(f"layer: expected a FlexRNN, got {type(layer).__name__}")
    if layer.bidirectional:
        raise RuntimeError("layer: expected one direction; the second begins at the end")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps should be of type int, got: {type(steps).__name__}")
    if steps <= 0:
        raise ValueError(f"steps must be greater than zero, got {steps}")
    if isinstance(x, PackedSequence) or not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape (T, B, I) or (T, I), got {tuple(x.shape)}")
    axis = 1 if layer.batch_first and x.dim() == 3 else 0
    ordered = x.movedim(axis, 0)
    ends = check_lengths(lengths, ordered)
    ends = ends if ends is None else ends.view(ordered.shape[1:-1])
    reset = of_numpy(reset, x.device)
    check_reset(reset, ordered, batch_first=axis == 1)
    return _chunks(layer, x, steps, hx, ends, reset, axis)


def _chunks(
    layer: nn.Module,
    x: Tensor,
    steps: int,
    state: Any,
    ends: Tensor | None,
    reset: Tensor | None,
    axis: int,
) -> Iterator[Chunk]:
    for start in range(0, x.shape[axis], steps):
        stop = min(start + steps, x.shape[axis])
        options: dict[str, Any] = {}
        if ends is not None:
            options["lengths"] = (ends - start).clamp(0, stop - start)
        if reset is not None:
            options["reset"] = reset.narrow(axis, start, stop - start)
        output, state = layer(x.narrow(axis, start, stop - start), state, **options)
        state = _detached(state)
        yield Chunk(output, state, slice(start, stop))


def _detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else each(Tensor.detach, state)
