"""A `PackedSequence` as a layer runs over it, and what comes out packed again."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flexrnn.call.marks import Marks, marks
from flexrnn.call.ragged import of_packed


def unpack(packed: PackedSequence, *, compact: bool) -> tuple[Tensor, Marks, Tensor | None]:
    """The input, its marks, and the lengths where it had to be padded.

    Args:
        packed: the input; the order of its sequences is another's business.
        compact: rows are left as they lie; `(T, B, I)` all the same where each step has as many.
    """
    data, batch_sizes = packed.data, packed.batch_sizes
    if compact and batch_sizes[-1] == batch_sizes[0]:
        return data.unflatten(0, (batch_sizes.shape[0], -1)), Marks(), None
    if compact:
        return data, Marks(layout=of_packed(batch_sizes, data.device)), None
    x, lengths = padded(data, batch_sizes)  # longest sequence first
    return x, marks(lengths, None, x.shape[0], x.device), lengths


def pack(output: Tensor, where: Marks, lengths: Tensor | None) -> Tensor:
    """The data of the output, from what a layer made of the input: `(N, ...)`."""
    if lengths is not None:
        return rows_of(output, lengths)[0]
    return output if where.layout is not None else output.flatten(0, 1)


# Of complex numbers torch's functions have no derivative.


def rows_of(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What there is of sequences `(T, B, ...)`, the longest first, as `(N, ...)`; batch sizes."""
    data, sizes, *_ = pack_padded_sequence(_real(x), lengths)
    return torch.view_as_complex(data) if x.is_complex() else data, sizes


def padded(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The reverse: sequences `(T, B, ...)`, and their lengths."""
    pad: Callable[[PackedSequence], tuple[Tensor, Tensor]] = pad_packed_sequence
    if torch.compiler.is_dynamo_compiling():  # that of torch 2.11 fails where later ones break off
        pad = torch.compiler.disable(pad_packed_sequence)  # pyright: ignore[reportAssignmentType]
    x, lengths = pad(PackedSequence(_real(data), batch_sizes))
    return torch.view_as_complex(x) if data.is_complex() else x, lengths


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
