"""Rows and heads as one axis, the first or another: `h.view(-1, d)`, `A @ z.view(n, -1)`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import flexrnn

from .written import halves


def norm(y: Tensor) -> Tensor:
    return F.layer_norm(y, y.shape[-1:])


# Rows and heads as one axis.
JOINED: dict[str, Callable[..., Any]] = {
    "a norm by heads": lambda c, x, h: norm(h.reshape(-1, 2)).view(h.shape) + x @ c.W,
    "a map by heads": lambda c, x, h: (
        F.linear(h.view(-1, 2), c.U[:2, :2], c.b[:2]).view(-1, 4)
        + (halves(h).flatten(0, 1) @ c.U[2:, :2]).view(x.shape[0], 2, 2).flatten(1) + x @ c.W
    ),
    "counted": lambda c, x, h: (
        F.linear(h.view(h.shape[0] * 2, 2), c.U[:2, 2:]).view(h.size(0), 4) + x @ c.W
    ),
    "a network by heads": lambda c, x, h: (
        (norm((h.view(-1, 2) @ c.U[:2] + c.b).relu()) @ c.low).softmax(-1).reshape(-1, 2, 2).mean(1)
        .repeat(1, 2) + x @ c.W
    ),
    "every number by itself": lambda c, x, h: (
        (h.reshape(-1, 1) @ c.row[:, :1]).view_as(h) + x @ c.W
    ),
    "both sides": lambda c, x, h: (
        ((h.view(-1, 2) * (x @ c.W).view(-1, 2)).sum(1, keepdim=True) * h.view(-1, 2)).view(-1, 4)
        + torch.cat([h.view(-1, 2), (x @ c.W).view(-1, 2)], 1)[:, 1:3].reshape(-1, 4)
    ),
    "chosen by heads": lambda c, x, h: (
        torch.where(h.view(-1, 2) > 0, h.view(-1, 2), c.b[:2]).view(-1, 4)
        + h.view(-1, 2).amax(-1).view(-1, 2).repeat(1, 2) + x @ c.W
        + (h.view(-1, 2) > h.view(-1, 2).mean(1, keepdim=True)).view(-1, 4) * h
    ),
    "an axis more": lambda c, x, h: (
        (h.view(-1, 2).unsqueeze(-2) * c.low.view(4, 2)).softmax(1).sum(1).view(-1, 4)
        + h.view(-1, 2).unsqueeze(1).mean(-2).view(-1, 4) + x @ c.W
    ),
    "joined again": lambda c, x, h: (
        (norm(h.view(-1, 2)).view(-1, 1) * 2).view(-1, 2, 2).tanh().flatten(1) + x @ c.W
        + h.view(-1, 2).chunk(2, -1)[0].view(-1, 2).repeat(1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_rows_and_heads_as_one_axis(name: str, judge: Callable[..., None]) -> None:
    judge(JOINED[name])


def pairs(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Two nodes with four features each, `(B, 2, 4)`."""
    return torch.cat([halves(x @ c.W), halves(h)], 2)


def diffusion(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """DCRNN's convolution (Li et al. 2018, eq. 2), as it was published for torch."""
    batch, z, graph = x.shape[0], pairs(c, x, h), c.U[:2, :2]
    before = z.permute(1, 2, 0).reshape(2, 4 * batch)
    found = before.unsqueeze(0)
    last = torch.mm(graph, before)
    found = torch.cat([found, last.unsqueeze(0)], dim=0)
    last, before = 2 * torch.mm(graph, last) - before, last
    found = torch.cat([found, last.unsqueeze(0)], dim=0)
    y = found.reshape(3, 2, 4, batch).permute(3, 1, 2, 0).reshape(batch * 2, 12)
    return (y @ c.wide.view(16, 2)[:12] + c.b[:2]).reshape(batch, 4)


def spatial(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """T-GCN's convolution (Zhao et al. 2020, eq. 2), as it was published for torch."""
    batch, z = x.shape[0], pairs(c, x, h)
    z = z.transpose(0, 1).transpose(1, 2).reshape(2, 4 * batch)
    z = (c.U[:2, :2] @ z).reshape(2, 4, batch)
    z = z.transpose(0, 2).transpose(1, 2).reshape(batch * 2, 4)
    return ((z @ c.low + c.b[:2]).reshape(batch, 2, 2)).reshape(batch, 4)


def wide(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """`(N, B·S)`, the batch before the features."""
    return pairs(c, x, h).transpose(0, 1).reshape(2, -1)


def apart(z: Tensor) -> Tensor:
    """`(N, B·S)` as `(B, N·S)`."""
    return z.view(z.shape[0], -1, 4).transpose(0, 1).flatten(1)


def deep(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """`(2, 2, S·B)`."""
    return pairs(c, x, h).view(-1, 2, 2, 2).permute(1, 2, 3, 0).reshape(2, 2, -1)


def flat(z: Tensor) -> Tensor:
    """`(2, 2, S·B)` as `(B, 8)`."""
    return z.reshape(*z.shape[:-1], 2, -1).movedim(-1, 0).flatten(1)


# Rows and units as the last axis.
LAST: dict[str, Callable[..., Any]] = {
    "diffusion": diffusion,
    "spatial": spatial,
    "the batch first": lambda c, x, h: (
        apart(F.linear(wide(c, x, h).t(), c.U[:2, :2], c.b[:2]).t().tanh())[:, 2:6] + x @ c.W),
    "element by element": lambda c, x, h: (
        apart((wide(c, x, h) * c.b[:2, None] + c.row[0, :1]).relu() - wide(c, x, h) * 2)[:, 1:5]),
    "of more axes": lambda c, x, h: (
        flat(deep(c, x, h) * c.U[:2, :2, None] + c.b[:2, None]).sigmoid() @ c.wide.T
        + flat(deep(c, x, h) * deep(c, x, h)[0])[:, 3:7]),
    "an axis in front": lambda c, x, h: (
        apart((wide(c, x, h) * c.U[:3, :2, None]).sum(0))[:, 4:]
        + (h.view(-1, 1) * c.U[:3, :2].reshape(3, 1, 2)).sum((0, 2)).view(-1, 4)),
    "along the others": lambda c, x, h: (
        apart(wide(c, x, h).softmax(0) * wide(c, x, h).amax(0, keepdim=True))[:, :4]
        + flat(deep(c, x, h).mean(1))[:, :4] * flat(deep(c, x, h).sum(-3).softmax(-2))
        + flat(deep(c, x, h).cumsum(0).flip(1))[:, :4] + wide(c, x, h).sum(0).view(-1, 4)),
    "cut and joined": lambda c, x, h: (
        apart(torch.cat([wide(c, x, h)[1:], wide(c, x, h)[0][None]]))[:, :4]
        + flat(torch.stack(deep(c, x, h).unbind(1), -2) + torch.stack([*deep(c, x, h)]))[:, 1:5]
        + flat(deep(c, x, h)[:, :, :].squeeze(0).chunk(2, 1)[1].select(1, 0))),
    "views of them": lambda c, x, h: (
        flat(deep(c, x, h).view(4, -1).view(2, 2, -1).transpose(0, 1))[:, 4:]
        + apart(wide(c, x, h).unsqueeze(1).squeeze(1).clone()).detach()[:, 4:]
        + deep(c, x, h).permute(2, 0, 1).reshape(2, -1, 4).mean((0, 2))[:, None]),
}  # fmt: skip


def heads_of(c: Any, x: Tensor, h: Tensor, M: int, K: int, N: int) -> tuple[Tensor, Tensor]:
    """Matrices `(2·B, M, K)` and `(2·B, K, N)` of rows and heads."""
    a = torch.stack([h.repeat(1, M * K)[:, : M * K], (x @ c.W).repeat(1, M * K)[:, : M * K]], 1)
    w = torch.stack([(h * c.b).repeat(1, K * N)[:, : K * N], h.repeat(1, K * N)[:, : K * N]], 1)
    return a.view(-1, M, K), w.view(-1, K, N)


@pytest.mark.parametrize("M", [1, 2, 5])
@pytest.mark.parametrize("K", [1, 3, 6])
@pytest.mark.parametrize("N", [1, 2, 20])
def test_matrices_of_rows_and_heads(M: int, K: int, N: int, judge: Callable[..., None]) -> None:
    judge(
        lambda c, x, h: (
            torch.bmm(*heads_of(c, x, h, M, K, N)).view(-1, 2, M, N).sum((1, 2, 3))[:, None] * h
            + torch.bmm(*heads_of(c, x, h, M, K, N)).tanh().view(-1, 2, M * N).mean(1)[:, :1]
        )
    )


def test_labels_in_any_order(judge: Callable[..., None]) -> None:
    def scores(c: Any, x: Tensor, h: Tensor) -> Tensor:
        q, k = halves(h)[:, :, None], halves(x @ c.W)[:, None]  # (B, 2, 1, 2) and (B, 1, 2, 2)
        q, k = torch.cat([q, q * 2], 2), torch.cat([k, k.cos()], 1)
        return torch.einsum("bqhd,bkhd->qbhk", q, k).softmax(-1).permute(1, 0, 2, 3).flatten(1)

    judge(lambda c, x, h: scores(c, x, h)[:, ::2] * h)


@pytest.mark.parametrize("name", LAST)
def test_rows_and_units_as_another_axis(name: str, judge: Callable[..., None]) -> None:
    judge(LAST[name])


ACROSS: dict[str, Callable[..., Any]] = {
    "a mean of all": lambda c, z, h: z + h.view(-1, 1).mean(0),
    "several heads": lambda c, z, h: (
        z + (h.repeat(1, 2).view(-1, 2) @ h[:2, :2]).view(-1, 10)[:, :5]
    ),
    "of two kinds": lambda c, z, h: (
        z + (h.repeat(1, 2).view(-1, 5) * h.view(-1, 1)[:2]).view(-1, 10)[:, :5]
    ),
    "an axis in front": lambda c, z, h: (
        z + (h.view(-1, 1) * c.inner.bias[:1].view(1, 1, 1)).softmax(1).view(-1, 5)
    ),
    "an axis in front, of its own": lambda c, z, h: (
        z + h.view(-1, 1).unsqueeze(-3).softmax(1).view(-1, 5)
    ),
    "turned": lambda c, z, h: z + h.view(-1, 1).t().view(5, -1).t(),
    "a product over rows": lambda c, z, h: z + (h.view(1, -1) @ h.view(-1, 1)).view(1, 1),
    "a sum over rows": lambda c, z, h: z + h.t().reshape(1, -1).sum(-1, keepdim=True),
    "others along the rows": lambda c, z, h: z + h.t().unsqueeze(0).reshape(1, -1).sum(),
    "rows that are cut": lambda c, z, h: z + h.t().reshape(1, -1)[:, :5],
    "rows between the units": lambda c, z, h: (
        z + h.repeat(1, 4).view(-1, 2, 10).transpose(0, 1).reshape(2, -1).view(20, -1).t()[:, :5]
    ),
}


@pytest.mark.parametrize("name", ACROSS)
def test_across_joined_rows(name: str, function_layer: Any) -> None:
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="cannot be compiled"):
        function_layer(ACROSS[name])(torch.randn(2, 3, 3, dtype=torch.float64))
