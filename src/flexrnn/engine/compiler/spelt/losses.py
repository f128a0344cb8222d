"""Spellings: losses inside a step, as cells have them that learn while they run.

Torch's are operations of their own, whose derivatives at kinks are not those of the formula.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.spelt.chosen import are, is_number, or_nan
from flexrnn.engine.compiler.spelt.rows import as_torch, where

_LEAST_LOG = -100.0  # that a binary cross entropy counts with


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    """What is left of losses; those that go across the batch are refused where they do."""
    return losses if reduction == "none" else getattr(losses, reduction)()


def _is_loss(input: Tensor, target: Tensor, reduction: str) -> bool:
    """Whether one number stands for another, in a way that torch knows."""
    known = reduction in ("none", "mean", "sum") and input.dtype == target.dtype
    return known and input.is_floating_point() and input.shape == target.shape


def _near(input: Tensor, target: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where a difference is no larger than that; it there, 0 elsewhere; and its size."""
    difference = input - target
    near = ~(difference.abs() > width)  # what is no number, too
    return near, where(near, difference, 0.0), difference.abs()


def _smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    if not _is_loss(input, target, reduction) or not beta > 0:
        return F.smooth_l1_loss(input, target, reduction=reduction, beta=beta)
    near, difference, size = _near(input, target, beta)
    return _reduced(
        torch.where(near, difference.square() * (0.5 / beta), size - 0.5 * beta), reduction
    )


def _huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    if not _is_loss(input, target, reduction) or not delta > 0 or weight is not None:
        more: dict[str, Any] = {} if weight is None else {"weight": weight}
        return F.huber_loss(input, target, reduction, delta, **more)
    near, difference, size = _near(input, target, delta)
    return _reduced(
        torch.where(near, difference.square() * 0.5, delta * (size - 0.5 * delta)), reduction
    )


def _binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """The slopes are bounded where input is 0 or 1; in torch the target's is infinite there."""
    if not _is_loss(input, target, reduction):
        return F.binary_cross_entropy(input, target, weight, reduction=reduction)
    p = input.detach()
    losses = (target - 1) * torch.log1p(-p).clamp(min=_LEAST_LOG)
    losses = losses - target * p.log().clamp(min=_LEAST_LOG)
    slope = (p - target.detach()) / ((1 - p) * p).clamp(min=1e-12)
    losses = losses + slope * (input - p)
    return _reduced(losses if weight is None else losses * weight, reduction)


def _nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`(B, C, ...)` by classes `(B, ...)`; nan for a class that there is not."""
    picks = is_number(target) and target.dtype == torch.int64 and input.is_floating_point()
    beside = (input.shape[0], *input.shape[2:])
    if not picks or input.dim() < 2 or beside != target.shape or reduction != "none":
        return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    here = are(target, input.shape[1])
    scores = input.movedim(1, -1)
    scores = scores if weight is None else scores * weight
    picked = or_nan(here, where(here, -scores, 0.0).sum(-1))
    return where(target == ignore_index, 0.0, picked)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    if not is_number(target) or input.dim() < 2 or reduction != "none":
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing)  # fmt: skip
    scores = input.log_softmax(1)
    losses = _nll_loss(scores, target, weight, ignore_index, "none")
    if not label_smoothing:
        return losses
    scores = scores.movedim(1, -1)
    scores = scores if weight is None else scores * weight
    smooth = where(target == ignore_index, 0.0, -scores.sum(-1))
    return (1 - label_smoothing) * losses + label_smoothing / input.shape[1] * smooth


def _gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """A variance below the least one learns as if it were not; nan for one below 0."""
    fits = isinstance(var, Tensor) and var.dim() == input.dim()
    fits = fits and var.shape[:-1] == input.shape[:-1] and var.shape[-1] in (1, input.shape[-1])
    if not fits or not _is_loss(input, target, reduction):
        return F.gaussian_nll_loss(input, target, var, full, eps, reduction)
    var = where(var >= 0, var, math.nan)
    var = var + (var.clamp(min=eps) - var).detach()
    losses = 0.5 * (var.log() + (input - target).square() / var)
    return _reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def _hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    far = where(target != 1, (margin - input).clamp(min=0), 0.0)
    return _reduced(far + where(target != -1, input, 0.0), reduction)


def _margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, reduction: str = "mean"
) -> Tensor:
    return _reduced((-target * (input1 - input2) + margin).clamp(min=0), reduction)


def _cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, reduction: str = "mean"
) -> Tensor:
    least = 1e-12  # added to either square, so that a row of zeros has an angle
    squares = [x.square().sum(-1) + least for x in (input1, input2)]
    cosine = (input1 * input2).sum(-1) / (squares[0] * squares[1]).sqrt()
    losses = where(target == 1, 1 - cosine, 0.0)
    losses = losses + where(target == -1, (cosine - margin).clamp(min=0), 0.0)
    return _reduced(losses, reduction)


def _triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a - b + eps, p, -1)

    far = distance(anchor, negative)
    far = torch.minimum(far, distance(positive, negative)) if swap else far
    return _reduced((margin + distance(anchor, positive) - far).clamp(min=0), reduction)


def _as_torch(original: Callable[..., Tensor], spelling: Callable[..., Tensor]) -> Any:
    """A spelling for calls without what torch once took for a reduction, and still hands on."""
    spelt = as_torch(original, spelling)

    def loss(*args: Any, size_average: Any = None, reduce: Any = None, **kwargs: Any) -> Tensor:
        if size_average is reduce is None:
            return spelt(*args, **kwargs)
        return original(*args, size_average=size_average, reduce=reduce, **kwargs)

    return loss


_LOSSES: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.smooth_l1_loss: _smooth_l1_loss,
    F.huber_loss: _huber_loss,
    F.binary_cross_entropy: _binary_cross_entropy,
    F.nll_loss: _nll_loss,
    F.cross_entropy: _cross_entropy,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    F.hinge_embedding_loss: _hinge_embedding_loss,
    F.margin_ranking_loss: _margin_ranking_loss,
    F.cosine_embedding_loss: _cosine_embedding_loss,
    F.triplet_margin_loss: _triplet_margin_loss,
}
SPELT: dict[Any, Any] = {f: _as_torch(f, spelling) for f, spelling in _LOSSES.items()}
