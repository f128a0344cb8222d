"""Spellings: rows that are stacked or repeated in front of the batch.

A program keeps the batch first, and so do these, until the axis that is put in front of it is seen.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt.rows import as_torch, is_of_rows


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    if dim in (0, -1 - tensors[0].dim()) and all(map(is_of_rows, tensors)):
        return torch.stack([*tensors], 1).transpose(0, 1)
    return torch.stack([*tensors], dim)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    if dim in (0, -tensors[0].dim()) and all(map(_is_behind, tensors)):
        return torch.cat([tensor.transpose(0, 1) for tensor in tensors], 1).transpose(0, 1)
    return torch.cat([*tensors], dim)


def _is_behind(x: Tensor) -> bool:
    """Whether the batch is the second axis."""
    return x.dim() > 1 and not is_of_rows(x) and is_of_rows(x[0])


def _repeat(x: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """Torch's wants to know how many copies it makes: of a parameter for every row."""
    sizes = sizes or (*named.values(),)
    times: Sequence[Any] = sizes[0] if len(sizes) == 1 and not _is_size(sizes[0]) else sizes
    if is_of_rows(x) or not times or not isinstance(times[0], torch.SymInt):
        return x.repeat(*times)
    if len(times) > x.dim():
        x = x.reshape(*(1 for _ in range(len(times) - x.dim())), *x.shape)
    if x.shape[0] != 1:
        return x.repeat(*times)
    once = x.repeat(1, *times[1:])
    return once.expand(times[0], *once.shape[1:]).clone()


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt))


SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_stack, (torch.stack,)),
        (_cat, (torch.cat, torch.concat, torch.concatenate)),
    )
    for original in originals
} | {Tensor.repeat: _repeat}
