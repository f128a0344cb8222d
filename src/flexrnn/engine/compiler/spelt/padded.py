"""Spellings: pads, of which torch asks for the batch size, whatever axis is padded."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.spelt.rows import is_of_rows


def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """`torch.nn.functional.pad`."""
    if mode in _ENDS and _fits(input, pad, mode):
        return _by_units(input, pad, mode)
    if mode != "constant" or any(pad[2 * input.dim() - 2 :]):
        return F.pad(input, pad, mode, value)
    x, end = input, value or 0.0
    if not x.is_floating_point():
        end = int(end)
    for k, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.dim() - 1 - k
        x = x.narrow(axis, max(0, -before), x.shape[axis] + min(0, before) + min(0, after))
        sizes = [[n if i == axis else size for i, size in enumerate(x.shape)]
                 for n in (before, after)]  # fmt: skip
        ends = [[x.new_full(size, end)] if size[axis] > 0 else [] for size in sizes]
        x = torch.cat([*ends[0], x, *ends[1]], axis)
    return x


def _fits(x: Tensor, pad: Any, mode: str) -> bool:
    """Whether torch pads these axes in this way, and there are as many units as it takes."""
    axes = len(pad) // 2
    if len(pad) % 2 or not (is_of_rows(x) and 0 < axes <= 3 and x.dim() - axes in (1, 2)):
        return False
    most = {"reflect": -1, "replicate": 1 << 62, "circular": 0}[mode]
    sizes = [x.shape[-1 - k // 2] for k in range(len(pad))]
    return all(0 <= n <= size + most for n, size in zip(pad, sizes, strict=True))


def _by_units(x: Tensor, pad: Any, mode: str) -> Tensor:
    """Units of the row at its ends, axis by axis."""
    for k, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.dim() - 1 - k
        left, right = _ENDS[mode](x, axis, before, after)
        x = torch.cat([*([left] if before else []), x, *([right] if after else [])], axis)
    return x


def _reflected(x: Tensor, axis: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    last = x.shape[axis] - 1
    parts = x.narrow(axis, 1, before), x.narrow(axis, last - after, after)
    return parts[0].flip(axis), parts[1].flip(axis)


def _replicated(x: Tensor, axis: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
    return first.repeat_interleave(before, axis), last.repeat_interleave(after, axis)


def _around(x: Tensor, axis: int, before: int, after: int) -> tuple[Tensor, Tensor]:
    return x.narrow(axis, x.shape[axis] - before, before), x.narrow(axis, 0, after)


_ENDS = {"reflect": _reflected, "replicate": _replicated, "circular": _around}
SPELT: dict[Any, Any] = {F.pad: pad}
