"""Spellings: norms of each row, of which torch makes rows and channels one axis."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.refusal import ACROSS, refused
from flexrnn.engine.compiler.spelt.padded import pad
from flexrnn.engine.compiler.spelt.rows import as_torch, is_behind_batch, is_of_rows


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Of `(B, C, ...)` every channel by itself, or by what has been found before."""
    if use_input_stats and running_mean is not None:
        raise refused("instance_norm", ACROSS)
    known = use_input_stats or (running_mean is not None and running_var is not None)
    if not known or not is_of_rows(input) or input.dim() < 3 or math.prod(input.shape[2:]) < 2:
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    axes, wide = (*range(2, input.dim()),), (-1, *(1 for _ in input.shape[2:]))
    if running_mean is None or running_var is None:
        rest = input - input.mean(axes, keepdim=True)
        variance = rest.square().mean(axes, keepdim=True)
    else:
        rest, variance = input - running_mean.view(wide), running_var.view(wide)
    y = rest * (variance + eps).rsqrt()
    y = y if weight is None else y * weight.view(wide)
    return y if bias is None else y + bias.view(wide)


def _local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """By the squares of neighbouring channels; torch views rows as an image."""
    if not is_of_rows(input) or input.dim() < 3 or not 0 < size <= MOST:
        return F.local_response_norm(input, size, alpha, beta, k)
    edges = (0, 0) * (input.dim() - 2)
    squares = pad(input.square(), (*edges, size // 2, (size - 1) // 2))
    mean = sum(squares.narrow(1, j, input.shape[1]) for j in range(size)) / size
    return input / (mean * alpha + k) ** beta


def _renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """Of `(B, ...)` what is too long, cut to a length along all other axes of the row or batch."""
    fits = input.is_floating_point() and input.dim() > 1 and p > 0 and maxnorm >= 0
    if not is_of_rows(input) or not fits or not -input.dim() <= dim < input.dim():
        return torch.renorm(input, p, dim, maxnorm)
    if is_behind_batch(input, dim):
        raise refused("renorm", "it works across the batch, but for dim=0")
    axes = (*range(1, input.dim()),)
    norm = torch.linalg.vector_norm(input, p, axes, keepdim=True)
    return input * torch.where(norm > maxnorm, maxnorm / (norm + 1e-7), torch.ones_like(norm))


SPELT: dict[Any, Any] = {
    F.instance_norm: as_torch(F.instance_norm, _instance_norm),
    torch.instance_norm: as_torch(torch.instance_norm, lambda x, w, b, m, v, use, p, eps, _: (
        _instance_norm(x, m, v, w, b, use, p, eps))),
    F.local_response_norm: as_torch(F.local_response_norm, _local_response_norm),
    **dict.fromkeys((torch.renorm, Tensor.renorm), as_torch(torch.renorm, _renorm)),
}  # fmt: skip
