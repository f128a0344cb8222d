"""Spellings: convolutions, which are a product, or a few sums.

A product with the kernel are those that leave one place, as of the last inputs that a state keeps,
and those whose kernel has one, over few. Sums are those of every channel by itself along one axis.
Every other one, if it is small, is a product with a matrix, which torch makes ahead: what it makes
of each unit by itself. A large one would take longer by such a product than torch does.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.matrices import linear
from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows, is_of_rows

_PLACES = 16  # that one product goes over
_MATRIX = 1 << 17  # numbers of what a small convolution is as a matrix, most of them 0
_WHY = (
    "a program has no convolutions, but those of a row's own numbers by a kernel that is the same "
    f"for all rows; and of many places only what a matrix of {_MATRIX} numbers can be"
)


def _convolution(original: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """`torch.conv1d`, `conv2d` or `conv3d`, along so many axes."""

    def spelt(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not _have_rows(input, weight, bias):
            return original(input, weight, bias, stride, padding, dilation, groups)
        sizes, kernel = input.shape[2:], weight.shape[2:]
        known = is_of_rows(input) and not has_rows(weight) and input.dim() == axes + 2
        fits = known and weight.dim() == axes + 2 and input.shape[1] == weight.shape[1] * groups
        if not fits or input.dtype != weight.dtype or weight.shape[0] % groups:
            raise refused(original.__name__, _WHY)
        step, apart = _of_axes(stride, axes), _of_axes(dilation, axes)
        edges = _edges(padding, kernel, apart, step)
        spans = [1 + d * (k - 1) for k, d in zip(kernel, apart, strict=True)]
        left = [(n + a + b - span) // s + 1
                for n, (a, b), span, s in zip(sizes, edges, spans, step, strict=True)]  # fmt: skip
        bare = not any(map(sum, edges))
        if min(left) < 1:
            raise refused(original.__name__, "its kernel is wider than what it goes over")
        if bare and math.prod(left) == 1 and max(apart) == 1 and [*kernel] == [*sizes]:
            y = _whole(input, weight, groups)
        elif bare and math.prod(kernel) == 1 and max(step) == 1 and math.prod(left) <= _PLACES:
            y = _of_one_place(input, weight, groups)
        elif axes == 1 and groups == input.shape[1] == weight.shape[0] and kernel[0] <= MOST:
            before, behind = (input.new_zeros(*input.shape[:2], n) for n in edges[0])
            x = input if bare else torch.cat([before, input, behind], -1)
            y = _sums(x, weight, step[0], apart[0], left[0])
        else:
            y = _by_matrix(original, input, weight, None, stride, padding, dilation, groups)
        return _with_bias(y, bias)

    return as_torch(original, spelt)


def _transposed(original: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """`torch.conv_transpose1d`, `2d` or `3d`, along so many axes."""

    def spelt(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        options = (stride, padding, output_padding, groups, dilation)
        if not _have_rows(input, weight, bias):
            return original(input, weight, bias, *options)
        known = is_of_rows(input) and not has_rows(weight) and input.dtype == weight.dtype
        if not known or not input.dim() == weight.dim() == axes + 2:
            raise refused(original.__name__, _WHY)
        return _with_bias(_by_matrix(original, input, weight, None, *options), bias)

    return as_torch(original, spelt)


def _have_rows(*operands: Any) -> bool:
    """Whether any of them is a tensor of rows of the batch."""
    return any(isinstance(x, Tensor) and has_rows(x) for x in operands)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.view(-1, *(1 for _ in y.shape[2:]))


def _by_matrix(original: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """`(B, C, ...)` times what it makes of every unit of a row by itself."""
    sizes = x.shape[1:]
    units = torch.eye(math.prod(sizes), dtype=x.dtype, device=x.device)
    made = original(units.view(-1, *sizes), *args)
    if made.numel() > _MATRIX:
        raise refused(original.__name__, _WHY)
    return (x.flatten(1) @ made.flatten(1)).unflatten(1, made.shape[1:])


def _of_axes(size: Any, axes: int) -> list[int]:
    """A size of every axis, where torch takes one for all, too."""
    sizes = [size] if isinstance(size, int) else [*size]
    return sizes * axes if len(sizes) == 1 else sizes


def _edges(padding: Any, kernel: Any, apart: list[int], step: list[int]) -> list[tuple[int, int]]:
    """How many zeros are put before and behind every axis."""
    if padding == "same" and max(step) == 1:
        more = [d * (k - 1) for k, d in zip(kernel, apart, strict=True)]
        return [(n // 2, n - n // 2) for n in more]
    if isinstance(padding, str):
        return [(0, 0 if padding == "valid" else 1) for _ in kernel]  # torch refuses any other
    return [(n, n) for n in _of_axes(padding, len(kernel))]


def _whole(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`(B, C, ...)` of which one place is left: a product, or one for every group."""
    if groups == 1:
        y = linear(x.flatten(1), weight.flatten(1))
    elif groups == weight.shape[0] == x.shape[1]:
        y = (x * weight.squeeze(1)).flatten(2).sum(-1)
    else:
        rows = x.flatten(1).unflatten(1, (groups, -1))  # (B, G, C/G · ...)
        y = torch.einsum("bgk,gok->bgo", rows, weight.flatten(1).unflatten(0, (groups, -1)))
        y = y.flatten(1)
    return y.view(*y.shape, *(1 for _ in weight.shape[2:]))


def _of_one_place(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`(B, C, ...)` place by place: the same product for all."""
    sizes, rows = x.shape[2:], x.flatten(2).transpose(1, 2)  # (B, P, C)
    if groups > 1:
        parts = zip(rows.chunk(groups, -1), weight.flatten(1).chunk(groups), strict=True)
        y = torch.cat([linear(part, w) for part, w in parts], -1)
    else:
        y = linear(rows, weight.flatten(1))
    return y.transpose(1, 2).contiguous().unflatten(2, sizes)


def _sums(x: Tensor, weight: Tensor, step: int, apart: int, count: int) -> Tensor:
    """`(B, C, L)` channel by channel."""
    last = (count - 1) * step + 1
    parts = [x[:, :, k * apart : k * apart + last : step] * weight[:, :, k]
             for k in range(weight.shape[2])]  # fmt: skip
    return sum(parts[1:], parts[0])


def _other(original: Any) -> Any:
    """Torch's asks for the batch size in some dtypes."""

    def spelt(*args: Any, **kwargs: Any) -> Any:
        if _have_rows(*args, *kwargs.values()):
            raise refused(original.__name__, _WHY)
        return original(*args, **kwargs)

    return spelt


SPELT: dict[Any, Any] = {
    torch.conv1d: _convolution(torch.conv1d, 1),
    torch.conv2d: _convolution(torch.conv2d, 2),
    torch.conv3d: _convolution(torch.conv3d, 3),
    torch.conv_transpose1d: _transposed(torch.conv_transpose1d, 1),
    torch.conv_transpose2d: _transposed(torch.conv_transpose2d, 2),
    torch.conv_transpose3d: _transposed(torch.conv_transpose3d, 3),
} | {original: _other(original) for original in (torch.conv_tbc, torch.convolution)}
