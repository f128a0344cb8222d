"""What stands in front of the batch, put side by side, and seen as one axis of rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves


def both(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """`(2, B, H)`."""
    return torch.stack([h, x @ c.W])


def decoder(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Attention over three positions, position first, as decoders of public code have it."""
    encoded = torch.stack([h, x @ c.W, h * 2])  # (S, B, H)
    scores = (torch.cat((h.repeat(3, 1, 1), encoded), dim=2) @ c.wide.T).tanh().sum(2)
    weights = scores.t().softmax(1).unsqueeze(1)
    weighted = torch.bmm(weights, encoded.permute(1, 0, 2)).permute(1, 0, 2)
    embedded = (x @ c.W).unsqueeze(0)  # (1, B, H)
    return (torch.cat((embedded, weighted), dim=2) @ c.wide.T).squeeze(0)


WRITTEN: dict[str, Callable[..., Any]] = {
    "a decoder": decoder,
    "on the last axis": lambda c, x, h: (
        torch.cat([(x @ c.W).unsqueeze(0), h.unsqueeze(0)], -1).squeeze(0) @ c.wide.T
    ),
    "on the first axis": lambda c, x, h: (
        torch.cat([both(c, x, h), h[None]]).amax(0) + torch.cat([h.t(), (x @ c.W).T], 0).T[:, 2:6]
    ),
    "axes in another order": lambda c, x, h: (
        torch.cat([halves(h).permute(2, 1, 0), halves(x @ c.W).permute(2, 1, 0)], 0).sum(0).T
        .repeat(1, 2)
    ),
    "stacked behind, and in front of what is": lambda c, x, h: (
        torch.stack([h.t(), (x @ c.W).t()], -1).sum(-1).t() + both(c, h[:, :3], h).sum((0, 2))[
            :, None] + torch.stack([h[None], (x @ c.W)[None]], 1)[0].sum(0)
        + torch.stack([both(c, x, h)] * 2).sum((0, 1)) + torch.stack([h > 0, h > 1])[0] * h
    ),
    "beside a parameter for every row": lambda c, x, h: (
        torch.cat((c.b.expand(1, h.shape[0], 4), h[None]), 2)[0] @ c.wide.T + x @ c.W
        + torch.cat((c.U[:2, None].expand(2, x.size(0), -1), h.expand(2, -1, -1)), 2).sum(0)[:, 2:6]
    ),
    "beside numbers for every row": lambda c, x, h: (
        torch.cat((x.new_zeros(1, h.shape[0], 4), h[None]), 2)[0] @ c.wide.T + x @ c.W
        + (torch.full((2, h.shape[0], 4), 0.5) * both(c, x, h)).sum(0)
        + (torch.zeros(2, x.size(0), 1) + h).sum(0)
    ),
    "numbers like it, truth values, and no derivative": lambda c, x, h: (
        (both(c, x, h).detach() * both(c, x, h) + torch.ones_like(both(c, x, h))
         + (both(c, x, h) > 0).double() * h).sum(0)
    ),
    # as one axis of rows
    "a product of all": lambda c, x, h: both(c, x, h).view(-1, 4).mm(c.U).view(2, -1, 4).sum(0),
    "a layer for all": lambda c, x, h: (
        F.linear(both(c, x, h).view(2 * h.shape[0], 4), c.U, c.b).tanh()
        .view(2, h.shape[0], 4).mean(0) + x @ c.W
    ),
    "flattened": lambda c, x, h: (both(c, x, h).flatten(0, 1) @ c.U).unflatten(0, (2, -1)).sum(0),
    "of two axes": lambda c, x, h: (
        (torch.stack([both(c, x, h), both(c, h[:, :3], h)]).view(-1, 4) @ c.U)
        .view(2, 2, -1, 2, 2).sum((0, 1)).flatten(1)
    ),
    "an axis of size one, and heads": lambda c, x, h: (
        (h[None].view(-1, 2) @ c.U[:2]).view(1, -1, 2, 4).sum(2)[0] + x @ c.W
    ),
    "a norm of all": lambda c, x, h: (
        (F.layer_norm(both(c, x, h), (4,)).view(-1, 4) @ c.U).view(2, -1, 4).sum(0)
        + (F.layer_norm(both(c, x, h).view(-1, 4), (4,)).softmax(-1) * 2 + c.b)
        .reshape(2, -1, 4).sum(0)
        + both(c, x, h).view(-1, 4).norm(dim=1).view(2, -1).t().repeat(1, 2)
    ),
    "numbers like all": lambda c, x, h: (
        (both(c, x, h).view(-1, 4) * torch.full_like(both(c, x, h).view(-1, 4), 0.5))
        .view(2, -1, 4).sum(0) + torch.zeros_like(h.view(-1, 2)).view(-1, 4)
    ),
    "repeated often": lambda c, x, h: (
        h[:, :2].repeat(1, 10)[:, 3:7] * c.b[:2].repeat(10)[1:5] + (x @ c.W).mean(1)[:, None]
        .repeat(1, 4) + halves(h).repeat(1, 9, 1)[:, 7:9].flatten(1)
        + (h[:, :1] > 0).repeat(1, 4) * c.single.repeat(4) + torch.cat([h, h.repeat(1, 0)], 1)
    ),
    "repeated": lambda c, x, h: (
        (h.unsqueeze(0).repeat(3, 1, 1).view(-1, 4) @ c.U).view(3, h.shape[0], 4).mean(0) + x @ c.W
    ),
    "side by side, and without a derivative": lambda c, x, h: (
        torch.cat([both(c, x, h).view(-1, 4), both(c, x, h).view(-1, 4).detach()], 1)
        .view(2, -1, 8).sum(0) @ c.wide.T
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, Callable[..., Any]] = {
    "rows beside rows": lambda c, z, h: z + torch.cat([z[None], h[None]], 1)[0][: h.shape[0]],
    "parts of rows": lambda c, z, h: (
        z + torch.stack([h, z] * 2).view(-1, 1).view(4, -1, 5).sum(0)
    ),
    "other heads": lambda c, z, h: (
        z + torch.stack([h, z] * 2).view(-1, 5).tanh().view(2, -1, 5).sum(0)[: h.shape[0]]
    ),
    "rows first, and heads first": lambda c, z, h: (
        z + (torch.stack([h, z]).view(-1, 5) + torch.stack([h, z], 1).view(-1, 5))
        .view(2, -1, 5).sum(0)
    ),
    "heads first, seen as rows first": lambda c, z, h: (
        z + torch.stack([h, z]).view(-1, 5).tanh().view(-1, 2, 5).sum(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_would_be_others_are_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(REFUSED[name], "the batch|cannot be compiled")
