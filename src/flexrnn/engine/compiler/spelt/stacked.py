"""Spellings: rows that are repeated in front of the batch.

A program keeps the batch first, and so do these, until the axis that is put in front of it is seen.
They lie as torch's would, for whoever views them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.spelt.rows import has_rows, is_behind, is_of_rows


def _expand(x: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """`(B, ...)`, or `(1, B, ...)`, as often as one wants in front of the batch."""
    wanted = _sizes(sizes, named)
    behind = _in_front(x, len(wanted))
    new = len(wanted) > x.dim()  # so that torch takes no -1 for it
    if len(wanted) > 1 and behind is None and isinstance(wanted[1], torch.SymInt):
        behind = _once(x, len(wanted))
    if behind is None or not isinstance(wanted[0], int) or (new and wanted[0] < 0):
        return x.expand(*sizes, **named)
    return behind.expand(wanted[1], wanted[0], *wanted[2:]).transpose(0, 1)


def _once(x: Tensor, axes: int) -> Tensor | None:
    """What is the same for all rows, with an axis for them in front of all others."""
    if has_rows(x) or x.dim() > axes:
        return None
    return x.view(*(1 for _ in range(axes - x.dim())), *x.shape).transpose(0, 1)


def _in_front(x: Tensor, axes: int) -> Tensor | None:
    """Rows, in front of whose batch is an axis of size one, with that axis behind the batch."""
    if is_of_rows(x) and axes == x.dim() + 1:
        return x.unsqueeze(1)
    return x.transpose(0, 1) if axes == x.dim() and is_behind(x) and x.shape[0] == 1 else None


def _layer_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not is_behind(input):
        return F.layer_norm(input, *args, **kwargs)
    return F.layer_norm(input.transpose(0, 1), *args, **kwargs).transpose(0, 1).contiguous()


def _repeat(x: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """Torch's wants to know how many copies it makes: of a parameter for every row."""
    times = _sizes(sizes, named)
    behind = _in_front(x, len(times))
    if behind is not None and times[1] == 1 and isinstance(times[0], int):
        return behind.repeat(1, times[0], *times[2:]).transpose(0, 1).contiguous()
    if is_of_rows(x) or not times or not isinstance(times[0], torch.SymInt):
        return x.repeat(*times)
    if len(times) > x.dim():
        x = x.reshape(*(1 for _ in range(len(times) - x.dim())), *x.shape)
    if x.shape[0] != 1:
        return x.repeat(*times)
    once = x.repeat(1, *times[1:])
    return once.expand(times[0], *once.shape[1:]).clone()


def _sizes(sizes: Sequence[Any], named: dict[str, Any]) -> Sequence[Any]:
    """Sizes, which may come one by one, or all as one, or by name."""
    sizes = sizes or (*named.values(),)
    return sizes[0] if len(sizes) == 1 and not _is_size(sizes[0]) else sizes


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt))


SPELT: dict[Any, Any] = {Tensor.repeat: _repeat, Tensor.expand: _expand, F.layer_norm: _layer_norm}
