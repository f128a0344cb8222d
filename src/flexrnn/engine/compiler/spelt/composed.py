# pyright: reportPrivateUsage=false
# What distributions ask of their arguments is private.
"""Spellings: functions that torch has as a whole, in ways of which nothing can be written down."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.refusal import ACROSS, refused
from flexrnn.engine.compiler.spelt.rows import (
    as_torch,
    drawn,
    in_place,
    is_behind_batch,
    is_of_rows,
    where,
)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    y = input * (input.square().mean(axes, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    a, b = torch.broadcast_tensors(x1, x2)  # `dim` may be an axis that one of them has not
    norms = [x.norm(dim=dim, keepdim=True).clamp(min=eps) for x in (a, b)]
    return (a / norms[0] * (b / norms[1])).sum(dim)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Torch's is one operation, whether it is elementwise, as in `eval`, or not."""
    if training or running_mean is None or running_var is None:
        raise refused("batch_norm", ACROSS)
    if not input.shape[1:2] == running_mean.shape == running_var.shape:
        return F.batch_norm(  # which says what is wrong
            input, running_mean, running_var, weight, bias, eps=eps
        )
    wide = (-1, *(1 for _ in input.shape[2:]))
    y = (input - running_mean.view(wide)) * (running_var + eps).rsqrt().view(wide)
    y = y if weight is None else y * weight.view(wide)
    return y if bias is None else y + bias.view(wide)


def _nan_to_num(
    input: Tensor,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Tensor:
    """Torch fills in the largest numbers of the dtype where nobody sees it."""
    if not input.is_floating_point():
        return input
    limits = torch.finfo(input.dtype)
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf
    return torch.nan_to_num(input, nan or 0.0, high, low)


def _diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Torch writes into zeros."""
    if (offset, dim1, dim2) != (0, -2, -1):
        return torch.diag_embed(input, offset, dim1, dim2)
    here = torch.eye(input.shape[-1], dtype=torch.bool, device=input.device)
    return where(here, input.unsqueeze(-1), 0.0)


def _triangle(original: Any) -> Any:
    """`torch.triu` or `torch.tril`."""

    def spelt(input: Tensor, diagonal: int = 0) -> Tensor:
        if not is_of_rows(input) or input.dim() < 3:
            return original(input, diagonal)
        ones = torch.ones(input.shape[-2:], dtype=torch.bool, device=input.device)
        zero = 0.0 if input.is_floating_point() else input.dtype != torch.bool and 0
        return where(original(ones, diagonal), input, zero)

    return spelt


def _trace(input: Tensor) -> Tensor:
    """Torch's, of rows, ends in a trace of C++."""
    if is_of_rows(input):
        raise refused("trace", "it works across the batch")
    return torch.trace(input)


def _round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """To so many digits behind the point; torch's is an operation of its own."""
    if not decimals or not input.is_floating_point():
        return torch.round(input) if not decimals else torch.round(input, decimals=decimals)
    ten = 10.0 ** abs(decimals)
    return torch.round(input * ten) / ten if decimals > 0 else torch.round(input / ten) * ten


def _isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    if not input.is_floating_point() or input.dtype != other.dtype or min(rtol, atol) < 0:
        return torch.isclose(input, other, rtol, atol, equal_nan)
    distance = (input - other).abs()
    near = (distance <= atol + (rtol * other).abs()) & (distance < math.inf)
    near = near | (input == other)
    return near | ((input != input) & (other != other)) if equal_nan else near


def _nanmean(input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    number = input == input
    return where(number, input, 0.0).sum(dim, keepdim) / number.sum(dim, keepdim)


def _pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return (x1 - x2 + eps).norm(p, -1, keepdim)


def _cross(input: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """Torch's has an operation of its own; along the batch, or of other sizes, it says so."""
    given = (input, other)
    rows = input.dim() == other.dim() and any(is_behind_batch(x, dim) for x in given)
    fits = rows and all(x.shape[dim] == 3 and x.is_floating_point() for x in given)
    if not fits:
        return torch.linalg.cross(input, other, dim=dim)
    a, b = torch.broadcast_tensors(input, other)
    return a.roll(-1, dim) * b.roll(-2, dim) - a.roll(-2, dim) * b.roll(-1, dim)


def _cross_along(original: Any) -> Any:
    """`torch.cross`, which without a `dim` looks for an axis of size 3: it may be the batch."""

    def spelt(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
        return original(input, other) if dim is None else _cross(input, other, dim)

    return as_torch(original, spelt)


def _rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    return drawn("rrelu") if training else F.leaky_relu(input, (lower + upper) / 2)


def _or_in_place(function: Any) -> Any:
    """An activation that may be asked to write its result into its operand."""
    signature = inspect.signature(function)

    def spelt(*args: Any, **kwargs: Any) -> Tensor:
        given = signature.bind(*args, **kwargs)
        writes = given.arguments.pop("inplace", False)
        y = function(*given.args, **given.kwargs)
        return given.arguments["input"].copy_(y) if writes else y

    return spelt


def _logic_in_place(function: Any) -> Any:
    """Truth values, written as numbers. Of these torch leaves the derivative as it was."""

    def spelt(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.is_floating_point() or x.is_complex():
            raise refused(f"{function.__name__}_", "it writes truth values in place of numbers")
        return x.copy_(function(x, *args, **kwargs))

    return spelt


# Torch has none of these for a batch that has no number, or none that can be written down.
_WRITING = ("absolute", "arctan2", "copysign", "cumprod", "divide", "fix", "float_power", "greater",
            "greater_equal", "less", "less_equal", "multiply", "negative", "not_equal", "sinc",
            "subtract", "true_divide", "xlogy")  # fmt: skip
_LOGICAL = ("logical_and", "logical_not", "logical_or", "logical_xor")
_ACTIVATIONS = ("celu", "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu",
                "relu6", "selu", "silu", "threshold")  # fmt: skip
SPELT: dict[Any, Any] = {
    **{(f := getattr(F, name)): _or_in_place(f) for name in _ACTIVATIONS},
    torch.where: where,
    Tensor.where: lambda x, condition, other: where(condition, x, other),
    torch.rms_norm: _rms_norm,
    F.rms_norm: _rms_norm,
    torch.cosine_similarity: _cosine_similarity,
    F.batch_norm: _batch_norm,
    torch.nan_to_num: _nan_to_num,
    Tensor.nan_to_num: _nan_to_num,
    torch.diag_embed: _diag_embed,
    Tensor.diag_embed: _diag_embed,
    torch.triu: _triangle(torch.triu),
    Tensor.triu: _triangle(torch.triu),
    torch.tril: _triangle(torch.tril),
    Tensor.tril: _triangle(torch.tril),
    Tensor.triu_: in_place(_triangle(torch.triu)),
    Tensor.tril_: in_place(_triangle(torch.tril)),
    torch.trace: _trace,
    Tensor.trace: _trace,
    torch.linalg.cross: as_torch(torch.linalg.cross, _cross),
    torch.cross: _cross_along(torch.cross),
    Tensor.cross: _cross_along(Tensor.cross),
    torch.nanmean: as_torch(torch.nanmean, _nanmean),
    Tensor.nanmean: as_torch(Tensor.nanmean, _nanmean),
    **dict.fromkeys((torch.round, Tensor.round), as_torch(torch.round, _round)),
    Tensor.round_: in_place(_round),
    torch.isclose: as_torch(torch.isclose, _isclose),
    Tensor.isclose: as_torch(Tensor.isclose, _isclose),
    torch.pairwise_distance: _pairwise_distance,
    F.pairwise_distance: _pairwise_distance,
    Tensor.nan_to_num_: in_place(_nan_to_num),
    **dict.fromkeys((Tensor.square_, torch.square_), in_place(torch.square)),
    **dict.fromkeys(
        (Tensor.clamp_, torch.clamp_, Tensor.clip_, torch.clip_), in_place(torch.clamp)
    ),
    Tensor.clamp_min_: in_place(torch.clamp_min),
    Tensor.clamp_max_: in_place(torch.clamp_max),
    F.rrelu: _or_in_place(_rrelu),
    **{getattr(Tensor, f"{name}_"): in_place(getattr(torch, name)) for name in _WRITING},
    **{getattr(Tensor, f"{name}_"): _logic_in_place(getattr(torch, name)) for name in _LOGICAL},
}
if hasattr(torch, "_is_all_true"):
    # What distributions ask of their arguments has no answer here, as under `python -O`.
    SPELT[torch._is_all_true] = lambda x: True  # pyright: ignore[reportPrivateImportUsage]
