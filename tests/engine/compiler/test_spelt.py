"""What public code is full of: heads that share a map, rows stacked first, writes in place."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, OneHotCategorical
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState

from .written import but, halves


def clamped(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + h
    y.clamp_(-1, 1)
    y[:, :2].square_()
    y.clamp_min_(-0.5).clamp_max_(0.9)
    return y.clip_(max=0.8) + torch.clamp_(h * 2, min=0) + F.hardtanh(h * 3, inplace=True)


def numbers_again(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.where(h > 0.3, math.inf, h)
    y = torch.where(h < -0.3, math.nan, y)
    z = -torch.where(h > 0.2, math.inf, h)
    return x @ c.W + y.nan_to_num(0.5).clamp(-2, 2) + z.nan_to_num_(posinf=1.0, neginf=-1.0)


def copies_written(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """They are copies: the parameter stays as it is."""
    y = c.b.repeat(h.shape[0], 1)
    y[:, 0] = h[:, 1]
    y[:, 2:].mul_(h[:, 2:])
    return x @ c.W + y * c.b


def by_other_names(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + 0.1 * h
    y[:, 1:].subtract_(h[:, 1:], alpha=0.3).negative_()
    y[:, :2].multiply_(2).divide_(h[:, :2].abs() + 1)
    y[:, 2:].arctan2_(h[:, 2:].abs() + 0.3).true_divide_(2)
    y.add_((h * 2).copysign_(x @ c.W))
    halves(y).tril_()
    halves(y).triu_(-1)
    z, m = h * 2, h > 0
    z[:, :1].less_equal_(0.1)
    z[:, 3:].not_equal_(0)
    z.absolute_().add_(0.1)
    z[:, :2].xlogy_(h[:, 2:].abs() + 0.2)
    m.logical_and_(x[:, :1] > 0).logical_not_()
    return y.sinc_() + (h * 3).fix_() + (h + 2).cumprod_(1) * m + z


tensordot: Any = torch.tensordot  # whose `dims` torch says to be a number
WRITTEN: dict[str, Callable[..., Any]] = {
    "vector products": lambda c, x, h: (
        x @ c.W + F.pad(torch.linalg.cross(x, h[:, 1:]) + x.cross(c.row[:, 1:], -1), (0, 1))
        + torch.cross((h @ c.wide)[:, :6].view(-1, 3, 2), h[:, :3, None].expand(-1, 3, 2), dim=1)
        .flatten(1)[:, 2:] + torch.linalg.cross(x.unsqueeze(1), (h @ c.wide)[:, 2:].view(
            -1, 2, 3)).flatten(1)[:, :4]
    ),
    "copies, written": copies_written,
    "written in place": lambda c, x, h: (
        F.hardtanh_(x @ c.W, -0.1, 0.1) + torch.threshold_(h * 1, 0.1, 0.2) + torch.selu_(h @ c.U)
    ),
    "written in place by other names": by_other_names,
    "a form of two vectors": lambda c, x, h: (
        torch.einsum("bi,bj,ij->b", h, x @ c.W, c.U)[:, None] * h
        + torch.einsum("bi,ijk,bj->bk", h[:, :2], c.wide.view(2, 2, 8)[..., :4], h[:, 2:])
        + torch.einsum("bhi,ij,bhj->bh", halves(h), c.U[:2, :2], halves(x @ c.W)).repeat(1, 2)
    ),
    "forms of several weights": lambda c, x, h: (
        torch.einsum("ij,bjk,lk->bil", c.low.T @ c.U[:, :2], halves(h), c.high[:, :2]).flatten(1)
        + torch.einsum("ij,bi,jk,kl->bl", c.U, h, c.V, c.U)
        + torch.einsum("bi,i,i->bi", h, c.b, c.b)
        + torch.einsum("bij,j,kj->bik", halves(h), c.b[:2], c.U[:2, :2]).flatten(1)
        + torch.einsum("bi,ij,bk,kj->bj", x, c.W, h, c.U)
        + torch.einsum("bi,ij,jk,bk->b", h, c.U, c.V, x @ c.W)[:, None]
    ),
    "einsum, dotted": lambda c, x, h: (
        torch.einsum("...k,...kv->...v", halves(h), (h @ c.wide).view(-1, 2, 2, 2)).flatten(1)
        + torch.einsum("... h i, h i j -> ... j", halves(h), c.wide.view(2, 2, 8)[..., :4])
        + torch.einsum("b...k,...k->b...", halves(h), c.U[:2, :2]).repeat(1, 2) + x @ c.W
        + torch.einsum("...i,...i->...", x @ c.W, h)[:, None]
    ),
    "kron": lambda c, x, h: (
        x @ c.W + torch.kron(h[:, :2], c.row[:, 2:]) + torch.kron(c.b[:2], h)[:, 2:6]
        + torch.kron(halves(h), c.U[None, :2, :2]).flatten(1)[:, 3:7]
        + torch.kron(c.V[None, 2:, :3], halves(h)).flatten(1)[:, 5:9]
    ),
    # heads that share a map
    "a map by heads, viewed": lambda c, x, h: (halves(h) @ c.U[:2, :2]).view(-1, 4) + x @ c.W,
    "linear by heads, viewed": lambda c, x, h: (
        F.linear(h.view(x.shape[0], 2, 2), c.U[:2, :2], c.b[:2]).view(x.shape[0], -1) + x @ c.W
    ),
    "a map of four axes": lambda c, x, h: (
        (h.view(-1, 2, 1, 2) @ c.U[:2, :2]).flatten(1)
        + F.linear(h.view(-1, 1, 2, 2), c.U[2:, 2:]).flatten(1) + x @ c.W
    ),
    "a graph convolution": lambda c, x, h: (
        torch.einsum("ij,bjc->bic", c.U[:2, :2], halves(h)).flatten(1)
        + torch.einsum("bjc,ij->bic", halves(h), c.U[2:, :2]).flatten(1) + x @ c.W
    ),
    "one matrix for all heads": lambda c, x, h: (
        torch.einsum("bkd,de->bke", halves(h), c.U[:2, :2]).flatten(1)
        + torch.einsum("bhj,ij->bhi", halves(h), c.U[:2, 1:3]).reshape(-1, 4)
        + torch.einsum("bkd,d->bk", halves(h), c.b[:2]).repeat(1, 2) + x @ c.W
    ),
    "one matrix for all heads, turned": lambda c, x, h: (
        torch.einsum("de, bkd -> bek", c.U[:2], halves(h)).flatten(1)[:, 2:6]
        + torch.einsum("bkd,kde->be", halves(h), c.U.view(2, 2, 4)) + x @ c.W
    ),
    "einsum, stretched": lambda c, x, h: (
        x @ c.W + torch.einsum("bjk,ijk->bi", h.view(-1, 1, 4), c.U.view(4, 4, 1))
        + torch.einsum("bjc,ij->bic", h.view(-1, 1, 4), c.U).mean(1)
        + h * torch.einsum("gjk,ijk->gi", c.W[:, :1, None], c.U.view(4, 2, 2)[:, :1]).sum(0)
    ),
    "one matrix on columns of heads": lambda c, x, h: (
        (c.U[:2, :2] @ halves(h)[..., None]).view(-1, 4) + x @ c.W
        + (c.low.T @ (h @ c.wide).view(-1, 1, 4, 2)).view(-1, 4)
        + (c.wide.view(2, 4, 4)[:, :2] @ (h @ c.wide).view(-1, 2, 4, 1)).view(-1, 4)
        + (c.wide.view(2, 4, 4)[:, :2] @ h[:, None, :, None]).view(-1, 4)
    ),
    "capsules": lambda c, x, h: (
        torch.einsum("bnki,nkio->bno", (h @ c.wide).view(-1, 2, 2, 2), c.wide.view(2, 2, 2, 4))
        .sum(1) + x @ c.W
        + torch.einsum("bnki,nkio->bno", h.view(-1, 1, 2, 2), c.U.view(1, 2, 2, 4)).flatten(1)
        + torch.einsum("knio,bkin->bon", c.wide.view(2, 2, 2, 4), (h @ c.wide).view(-1, 2, 2, 2))
        .sum(2) + torch.einsum("bnki,nki->bn", h.view(-1, 1, 2, 2), c.U[:1].view(1, 2, 2))
    ),
    "tensordot": lambda c, x, h: (
        tensordot(c.U, h, ([1], [1])).t() + tensordot(h, c.U, 1) + x @ c.W
        + tensordot(c.U[:2, :2], halves(h), dims=([-1], [-1])).permute(1, 2, 0).flatten(1)
        + tensordot(halves(h), c.U.view(2, 2, 4), ([1, 2], [0, 1]))
        + tensordot(c.U.view(4, 2, 2), halves(h), ([1, 2], [1, 2])).T
    ),
    # rows stacked in front of the batch
    "stacked first": lambda c, x, h: (
        torch.stack([h, x @ c.W]).sum(0) + torch.stack((h, h * 2, x @ c.W), dim=0).mean(0)
        + torch.stack([h, x @ c.W])[1] + torch.stack([h, x @ c.W]).max(0)[0]
        + torch.stack([x @ c.W, h]).unbind(0)[0]
        + torch.stack([x @ c.W, h]).amax(0, keepdim=True)[0]
    ),
    "expanded in front": lambda c, x, h: (
        (h.expand(3, -1, -1) * c.U[:3, None]).sum(0) + x @ c.W
        + torch.bmm(h.expand(2, -1, -1), c.wide.view(2, 4, 4)).mean(0)
        + torch.broadcast_to(h, (2, h.shape[0], 4))[1] + h.t()[None].expand(3, -1, -1).sum(0).t()
    ),
    "vmap over weights": lambda c, x, h: (
        torch.vmap(lambda w: F.linear(h, w))(c.wide.view(2, 4, 4)).sum(0) + x @ c.W
        + torch.vmap(lambda w, b, z: torch.tanh(z @ w.T + b), in_dims=(0, 0, None), out_dims=1)(
            c.wide.view(2, 4, 4), c.U[:2], h).sum(1)
    ),
    "stacked first, weighted": lambda c, x, h: (
        (torch.stack([h, x @ c.W]).softmax(0) * torch.stack([h, h])).sum(0)
        + (c.b[:2].view(2, 1, 1) * torch.stack([h, x @ c.W])).logsumexp(0)
        + torch.stack([h, x @ c.W]).var(0) + torch.stack([h, x @ c.W]).norm(dim=0)
    ),
    "stacked first, summed behind": lambda c, x, h: (
        torch.stack([h, x @ c.W]).sum(-1).t().repeat(1, 2) + torch.stack([h, h]).prod(2)[0][:, None]
        + x @ c.W
    ),
    "stacked first, and a weight for each": lambda c, x, h: (
        torch.einsum("kbnc,kcd->bnd", torch.stack([halves(h), halves(x @ c.W)]),
                     c.wide.view(2, 2, 8)[..., :2]).flatten(1)
        + torch.einsum("kbi,kij->bj", torch.stack([h, x @ c.W]), c.wide.view(2, 4, 4)) + x @ c.W
        + torch.einsum("kbi,k->bi", torch.stack([h, x @ c.W]), c.b[:2])
        + torch.einsum("kbi,bk->bi", torch.stack([h, x @ c.W]), h[:, :2])
    ),
    "joined first": lambda c, x, h: (
        torch.cat([h[None], (x @ c.W)[None], h[None] * 2]).mean(0) + torch.stack([h]).squeeze(0)
    ),
    "a weight repeated for every row": lambda c, x, h: (
        torch.bmm(h.unsqueeze(1), c.U.unsqueeze(0).repeat(x.shape[0], 1, 1)).squeeze(1)
        + torch.bmm(h.unsqueeze(1), c.U.repeat(x.size(0), 1, 1)).squeeze(1)
        + c.b.repeat(x.shape[0], 1) + c.b[:2].repeat((h.shape[0], 2)) + x @ c.W
    ),
    # in place, and whole functions
    "clamped in place": clamped,
    "nan_to_num": numbers_again,
    "a number as a view": lambda c, x, h: x @ c.W + h * c.one.view(()) + c.b.sum().reshape([]),
    "frequencies": lambda c, x, h: x @ c.W + h * torch.fft.fftfreq(4, dtype=h.dtype),
    "a diagonal of inf": lambda c, x, h: (
        x @ c.W + torch.where(h > 0, math.inf, h).diag_embed().amax(-1).clamp(-2, 2)
    ),
    "arguments by their names": lambda c, x, h: (
        x @ c.W + h @ torch.triu(input=c.U) + torch.diag_embed(input=h).sum(1)
        + torch.nan_to_num(input=h, nan=0.0, posinf=1.0, neginf=2.0) + c.row.repeat(repeats=(1, 1))
    ),
    "arguments of products and norms by their names": lambda c, x, h: (
        torch.matmul(input=x, other=c.W) + h.matmul(other=c.U)
        + torch.where(condition=h > 0, input=h, other=0.5) + h.where(condition=h > 0, other=x @ c.W)
        + F.cosine_similarity(x1=h, x2=x @ c.W, dim=-1).unsqueeze(-1)
        + F.rms_norm(input=h, normalized_shape=[4], weight=c.b) + F.dropout(input=h, training=False)
        + torch.baddbmm(input=c.V[:2, :2], batch1=halves(h), batch2=halves(x @ c.W), beta=0.5)
        .flatten(1) + F.batch_norm(
            input=h, running_mean=c.b.detach(), running_var=c.b.detach().exp())
    ),
    "a sum that is not looked at": lambda c, x, h: (
        torch.baddbmm(halves(h.new_full((4,), math.nan).expand_as(h)), halves(h), halves(x @ c.W),
                      beta=0).flatten(1) + x @ c.W
    ),
    "diagonals and triangles": lambda c, x, h: (
        (torch.diag_embed(h) @ x[:, :1].unsqueeze(1).expand(-1, 4, 1)).squeeze(-1)
        + (h[:, :, None] * (x @ c.W)[:, None]).triu(1).sum(2) + x @ c.W
        + torch.tril(h[:, :, None] * (x @ c.W)[:, None]).sum(2) + h @ c.U.tril()
    ),
    "pairwise_distance": lambda c, x, h: x @ c.W + F.pairwise_distance(h, x @ c.W, keepdim=True),
    "activations in place": lambda c, x, h: (
        x @ c.W + F.rrelu(h) + F.leaky_relu(h * 2, inplace=True) + F.elu(h * 3, 1.0, True)
        + nn.SiLU(inplace=True)(h * 1) + F.relu6(input=h * 9, inplace=True) + F.relu(h * 1, True)
    ),
    "distributions": lambda c, x, h: (
        x @ c.W + Normal(h, h.exp() + 0.1, True).log_prob(x @ c.W) + Categorical(logits=h).probs
        + Normal(h, 1.0).mean
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", but(WRITTEN, "vmap over weights", "asks for the batch size in linear")
)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


class Normed(flexrnn.Cell):
    """Batch norm by running statistics, as in `eval`."""

    State = HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, **options)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(hidden_size, **options), nn.BatchNorm1d(2, affine=False, **options)]
        )

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        y = self.norms[0](self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(torch.tanh(y + self.norms[1](y.view(-1, 2, y.shape[1] // 2)).flatten(1)))


def test_batch_norm_by_running_statistics(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(Normed, 3, 4, dtype=torch.float64)
    for norm in layer.cells[0].norms:  # pyright: ignore[reportGeneralTypeIssues]  # a module's
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer.eval(), x)


def test_batch_norm_by_the_batch_is_refused(function_layer: Any) -> None:
    function = function_layer(lambda c, z, h: z + F.batch_norm(h, None, None, training=True))
    module = flexrnn.FlexRNN(Normed, 3, 4, dtype=torch.float64)  # it counts its calls
    for layer in (function, module):
        with (
            flexrnn.backend("cpu"),
            pytest.raises(RuntimeError, match=r"batch_norm .* across the batch.* layer_norm"),
        ):
            layer(torch.randn(2, 3, 3, dtype=torch.float64))


def test_a_distribution_says_what_it_takes_where_a_step_is_run(function_layer: Any) -> None:
    layer = function_layer(
        lambda c, z, h: z + Normal(h, h - h, validate_args=True).log_prob(z).clamp(-1, 1)
    )
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    with flexrnn.backend("reference"), pytest.raises(ValueError, match="scale"):
        layer(x)


def test_a_distribution_computes_with_gradients_where_there_are_none(function_layer: Any) -> None:
    layer = function_layer(lambda c, z, h: z + OneHotCategorical(logits=h).probs)
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    found = []
    for engine in ("cpu", "reference"):
        with flexrnn.backend(engine), torch.no_grad():
            found.append(layer(x)[0])
    assert_close(*found, rtol=1e-12, atol=1e-12)


def test_batch_norm_of_other_sizes(function_layer: Any) -> None:
    layer = function_layer(lambda c, z, h: z + F.batch_norm(h, h.new_zeros(1), h.new_ones(1)))
    for backend in ("cpu", "reference"):
        with flexrnn.backend(backend), pytest.raises(RuntimeError):
            layer(torch.randn(2, 3, 3, dtype=torch.float64))
