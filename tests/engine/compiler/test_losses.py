"""Losses inside a step, row by row, as cells have them that learn while they run."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import but, halves


def kinks(h: Tensor) -> Tensor:
    """What lies at the kink on either side, beyond it, and at infinity."""
    far = torch.where(h[:, 3:] > 0, math.inf, h[:, 3:])
    return torch.cat([h[:, :1] + 1, h[:, 1:2] - 1, h[:, 2:3] * 3, far], 1)


def certain(h: Tensor) -> Tensor:
    """Probabilities, of which one is 0 and one is 1."""
    return torch.cat([h[:, :1] * 0, h[:, 1:2] * 0 + 1, h[:, 2:].sigmoid()], 1)


def signs(h: Tensor) -> Tensor:
    return (h > 0).to(h) * 2 - 1


WRITTEN: dict[str, Callable[..., Any]] = {
    "mse and l1": lambda c, x, h: (
        x @ c.W + h * F.mse_loss(h, x @ c.W, reduction="none")
        - F.l1_loss(h.relu(), c.b.expand_as(h), reduction="none")
    ),
    "of a parameter": lambda c, x, h: (
        x @ c.W + h * F.mse_loss(c.b, c.U[0]) + F.huber_loss(c.b, c.V[0], reduction="sum")
    ),
    "smooth_l1": lambda c, x, h: (
        x @ c.W + h * F.smooth_l1_loss(h, x @ c.W, reduction="none", beta=0.2)
        + F.smooth_l1_loss(kinks(h), h, reduction="none")[:, :3].sum(1, keepdim=True)
    ),
    "huber": lambda c, x, h: (
        x @ c.W + h * F.huber_loss(h, x @ c.W, reduction="none", delta=0.4)
        + F.huber_loss(kinks(h), h, reduction="none")[:, :3].sum(1, keepdim=True)
    ),
    "binary cross entropy": lambda c, x, h: (
        x @ c.W + 0.1 * F.binary_cross_entropy(
            h.tanh().sigmoid(), (x @ c.W).sigmoid(), reduction="none")
        + 0.01 * F.binary_cross_entropy(
            certain(h.tanh()), h.sigmoid().detach(), c.b.abs().detach(), reduction="none")
    ),
    "binary cross entropy with logits": lambda c, x, h: (
        x @ c.W + h * F.binary_cross_entropy_with_logits(h, (x @ c.W).sigmoid(), reduction="none")
        + F.binary_cross_entropy_with_logits(
            h, signs(h).relu(), pos_weight=c.b.exp().detach(), reduction="none")
    ),
    "cross entropy by classes": lambda c, x, h: (
        x @ c.W + h * F.cross_entropy(h @ c.V, h.argmax(-1), reduction="none")[:, None]
        - F.nll_loss(h.log_softmax(-1), h.argmin(-1), reduction="none")[:, None]
    ),
    "cross entropy with all options": lambda c, x, h: (
        x @ c.W + h * F.cross_entropy(
            h @ c.V, h.argmax(-1), c.b.exp().detach(), ignore_index=1, reduction="none",
            label_smoothing=0.1)[:, None]
    ),
    "cross entropy of places": lambda c, x, h: (
        x @ c.W + h * F.cross_entropy(
            halves(h), halves(h).argmax(1), c.b[:2].exp().detach(), ignore_index=0,
            reduction="none").repeat(1, 2)
    ),
    "cross entropy by probabilities": lambda c, x, h: (
        x @ c.W + h * F.cross_entropy(h @ c.V, (x @ c.W).softmax(-1), reduction="none")[:, None]
        + F.kl_div(h.log_softmax(-1), (x @ c.W).softmax(-1), reduction="none")
    ),
    "gaussian": lambda c, x, h: (
        x @ c.W + h * F.gaussian_nll_loss(h, x @ c.W, h.exp(), reduction="none")
        + 1e-6 * F.gaussian_nll_loss(h, x @ c.W, h.relu()[:, :1], full=True, reduction="none")
    ),
    "margins": lambda c, x, h: (
        x @ c.W + h * F.hinge_embedding_loss(h, signs(h), reduction="none")
        + F.margin_ranking_loss(h, x @ c.W, signs(h), 0.1, reduction="none")
        + F.soft_margin_loss(h, signs(x @ c.W), reduction="none")
    ),
    "distances": lambda c, x, h: (
        x @ c.W + h * F.triplet_margin_loss(
            h, x @ c.W, h * 2, margin=0.2, swap=True, reduction="none")[:, None]
        + F.cosine_embedding_loss(h, x @ c.W, signs(h[:, 0]), 0.1, reduction="none")[:, None]
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", but(WRITTEN, "cross entropy by probabilities", "asks for the batch size there")
)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a mean over rows": (lambda c, z, h: h + F.mse_loss(z, h), "mean.* it works across the batch"),
    "a sum over rows": (
        lambda c, z, h: h + F.huber_loss(z, h, reduction="sum"), "sum.* it works across the batch"),
    "a mean of classes": (
        lambda c, z, h: h + F.cross_entropy(z, h.argmax(-1)), "nll_loss_forward"),
    "the old way to say it": (
        lambda c, z, h: h + F.smooth_l1_loss(z, h, reduce=True), "smooth_l1_loss"),
    "numbers that do not fit": (
        lambda c, z, h: h + F.binary_cross_entropy(z, h[:, :1], reduction="none"), "target size"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])
