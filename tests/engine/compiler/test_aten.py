"""What a person may write in a step beside elementwise operations."""

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn import cells

AXIS: dict[str, Any] = {"axis": 1}  # which torch takes, and does not declare


class Cell(flexrnn.Cell):
    """`h ← function(cell, x, h)`, with weights of many shapes; I = 3, H = 4."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 2)

        self.W, self.U, self.V = drawn(3, 4), drawn(4, 4), drawn(4, 4)
        self.b, self.one, self.row, self.wide = drawn(4), drawn(), drawn(1, 4), drawn(4, 8)
        self.low, self.high, self.single = drawn(4, 2), drawn(2, 4), drawn(1)
        self.heads = drawn(2)
        self.register_buffer("places", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState(self.function(self, x, state.h) / 2)


@pytest.fixture
def judge(same_by_program: Callable[..., None]) -> Callable[..., None]:
    """Assert that the engines agree on a step, at several T and B, with T = B = 1 among them."""

    def check(function: Callable[..., Tensor], scale: float = 1.0) -> None:
        layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=function)
        for steps, batch in ((3, 2), (1, 1), (2, 3)):
            x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
            h = (scale * torch.randn(1, batch, 4, dtype=torch.float64)).requires_grad_()
            same_by_program(layer, x, h)

    return check


def halves(h: Tensor) -> Tensor:
    return h.view(-1, 2, 2)


def written_slice(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = x @ c.W
    z[:, 1:3] = h[:, :2]
    z[:, 0] = 0.5
    z[..., 3] *= 2
    z[:, 1:2].sigmoid_()
    return z


def written_mask(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = x @ c.W + h
    z[z > 0] = 0.25
    return z.masked_fill_(h < 0, -0.5)


def written_all(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z, y = x @ c.W, torch.empty_like(h)
    y.copy_(z)
    y.zero_().add_(h)
    z.fill_(0.5)
    return y * z + x @ c.W


def written_pairs(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, z = torch.empty_like(h), x @ c.W
    y[:, ::2] = -h[:, 1::2]
    y[..., 1::2] = h[:, ::2]
    z[:, 1:4:2] *= 2
    z[:, ::3] = 0.5
    z.view(-1, 2, 2)[:, ::2] += y[:, None, :2]
    return y + z


def flipped(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """It is another tensor: writing into it leaves the first as it is."""
    y = h.clone()
    z = y.flip([])
    z[:, 0] = 3.0
    return y + z + x @ c.W


def equals(h: Tensor) -> Tensor:
    """Several that are equal, and have a derivative each."""
    return h.sign() + (h - h.detach()) * torch.arange(1.0, 1.0 + h.shape[1], dtype=h.dtype)


def masked_rows(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """One query has nothing to look at, as a mask that is added says it."""
    q, k, none = halves(h), halves(x @ c.W), torch.zeros_like(h[:, None, :2])
    added = none.masked_fill(h[:, None, :2] < 0, -math.inf)
    y = F.scaled_dot_product_attention(q, k, k, added)
    return (y + F.scaled_dot_product_attention(q, k, q, is_causal=True)).flatten(1)


def picked_inf(c: Any, x: Tensor, h: Tensor) -> Tensor:
    scores = torch.where(h > h.amin(1, keepdim=True), h, -math.inf)
    picked = scores[:, [1, 0, 3, 2]].logsumexp(1, keepdim=True)
    return picked.tanh() * scores.flip(1).amax(1, keepdim=True) + x @ c.W


def without_gradients(c: Any, x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = 1 + (h * c.b).abs().amax(-1, keepdim=True)
        with torch.enable_grad():
            z = x @ c.W * h
    return z / scale + h.tanh()


def gated(gates: Any, x: Tensor) -> Tensor:
    i, g = gates
    return i.sigmoid() * g.tanh() + x.sum(-1, keepdim=True)


WRITTEN: dict[str, Callable[..., Any]] = {
    # products and weights
    "weight normalised": lambda c, x, h: x @ c.W @ (c.V / c.V.norm(dim=0)) + h,
    "weight normalised by rows": lambda c, x, h: x @ c.W @ F.normalize(c.V, dim=1) + h,
    "weight normalised as a whole": lambda c, x, h: x @ c.W + h @ (c.V / c.V.norm()),
    "sum of a weight": lambda c, x, h: x @ c.W * c.V.sum() + h * c.V.mean(),
    "largest of a weight": lambda c, x, h: x @ c.W * c.V.max() + h * (c.U.min() + c.V.amax()),
    "number as a parameter": lambda c, x, h: x @ c.W * c.one.exp() + h * c.one,
    "row as a parameter": lambda c, x, h: x @ c.W * c.row + h,
    "low rank": lambda c, x, h: x @ c.W + h @ (c.low @ c.high),
    "low rank, the other way": lambda c, x, h: x @ c.W + (h @ c.low) @ c.high,
    "weight of weights": lambda c, x, h: x @ c.W + h @ torch.tanh(c.U * c.V + c.row),
    "product with a vector": lambda c, x, h: x @ c.W + h * (h @ c.b).unsqueeze(-1),
    "linear without bias": lambda c, x, h: F.linear(h, c.U) + x @ c.W,
    "addmm": lambda c, x, h: torch.addmm(c.b, h, c.U, beta=0.5, alpha=2) + x @ c.W,
    "einsum": lambda c, x, h: torch.einsum("bi,ji->bj", h, c.U) + x @ c.W,
    "transposed": lambda c, x, h: h @ c.U.T + h @ c.V.mT + x @ c.W,
    "concatenation": lambda c, x, h: torch.cat([h, x @ c.W], -1) @ c.wide.T,
    "inner product of rows": lambda c, x, h: x @ c.W * (h * h).sum(-1, keepdim=True),
    # shapes
    "slices": lambda c, x, h: torch.cat([h[:, 1:], h[:, :1]], -1) + x @ c.W,
    "slices of slices": lambda c, x, h: (x @ c.W @ c.wide)[:, 1:7][..., 1:5] + h[:, :][:, 0:4],
    "ellipsis and None": lambda c, x, h: h * h[..., 0:1] * h[:, 1, None] + x @ c.W,
    "negative bounds": lambda c, x, h: torch.cat([h[:, -1:], h[:, -4:-1]], -1) + x @ c.W,
    "unused chunk": lambda c, x, h: (x @ c.W @ c.wide).chunk(2, -1)[0] + h,
    "overlapping slices": lambda c, x, h: (
        (x @ c.W @ c.wide)[:, :4] * (x @ c.W @ c.wide)[:, 2:6] + h
    ),
    "every second unit": lambda c, x, h: torch.cat([-h[:, 1::2], h[..., ::2]], -1) + x @ c.W,
    "every third unit": lambda c, x, h: (
        h[:, ::3].sum(-1, keepdim=True) * h + torch.cat([h[:, 1::3], h[:, 3:9:3], x[:, 0::2]], -1)
        + h[:, 2:3:7] + x @ c.W
    ),
    "every second head": lambda c, x, h: (
        (halves(h)[:, ::2] * halves(x @ c.W)).flatten(1) + (x @ c.W @ c.wide).view(-1, 4, 2)[
            :, 1::2].flatten(1)
    ),
    "every second row of a weight": lambda c, x, h: h[:, :2] @ c.V[::2] + x @ c.W,
    "rotated pairs": lambda c, x, h: (
        torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2) + x @ c.W
    ),
    "unbind": lambda c, x, h: torch.stack(h.unbind(-1)[::-1], -1) + x @ c.W,
    "rows of a weight": lambda c, x, h: sum((h * w for w in c.V), start=x @ c.W),
    "roll and flip": lambda c, x, h: h.roll(1, -1) * h.flip(-1) + x @ c.W,
    "flip of many": lambda c, x, h: (
        (h.repeat(1, 20) * torch.arange(80, dtype=h.dtype)).flip(-1)[:, 3:7] + x @ c.W
        + (h.repeat(1, 17)[:, :67] * torch.arange(67, dtype=h.dtype)).flip(1)[:, 60:64]
    ),
    "flip of a number": lambda c, x, h: h * c.one.flip(0) + x @ c.W,
    "flip of nothing": flipped,
    "arguments by name": lambda c, x, h: (
        h.flip(dims=(1,)) + torch.flip(input=h, dims=[1]) + torch.fliplr(input=h) + x @ c.W
        + torch.cumsum(h, **AXIS) + torch.index_select(input=h, dim=1, index=c.places)
        + h @ torch.flip(c.U, dims=[0, 1]).cumsum(dim=0) + F.linear(h, weight=c.U, bias=c.b)
        + F.bilinear(h, x, weight=c.U[:, :3].expand(4, 4, 3), bias=c.b)
    ),
    "flip of heads": lambda c, x, h: halves(h).flip(1, 2).flatten(1) + torch.fliplr(x @ c.W),
    "axes behind the batch": lambda c, x, h: halves(h).mT.reshape(-1, 4) + x @ c.W,
    "channels shuffled": lambda c, x, h: (
        (x @ c.W @ c.wide).view(-1, 2, 4).transpose(1, 2).flatten(1)[:, :4]
        + (h @ c.wide).view(-1, 4, 2).transpose(1, 2).reshape(-1, 8)[:, 2:6]
    ),
    "three axes turned": lambda c, x, h: (
        (h @ c.wide).view(-1, 2, 2, 2).permute(0, 3, 1, 2).reshape(-1, 8)[:, :4] + x @ c.W
    ),
    # units by number
    "a permutation": lambda c, x, h: h[:, c.places] + x @ c.W,
    "a permutation before and after a product": lambda c, x, h: (
        (h[:, c.places] @ c.U)[:, c.places] + x @ c.W
    ),
    "a list of units": lambda c, x, h: h[..., [3, -3, 0, 0]] * h[:, range(4)] + x @ c.W,
    "a list of truth values": lambda c, x, h: (
        h[:, [True, False, True, True]].sum(1, keepdim=True) * h + x @ c.W
    ),
    "units by NumPy": lambda c, x, h: (
        h[:, numpy.array([1, 0, 3, 2])] + h[..., [numpy.int64(2), 0, 1, 3]] + x @ c.W
    ),
    "truth values by a list": lambda c, x, h: h * (h > 0)[:, [1, 0, 3, 2]] + x @ c.W,
    "a list beside a number": lambda c, x, h: (
        torch.cat([halves(h)[:, 0, [1, 0]], halves(h)[..., (1, 0), 1]], -1) + x @ c.W
    ),
    "many units by number": lambda c, x, h: (
        (h @ c.wide).repeat(1, 9)[:, [*range(71, -1, -1)]][:, 2:6] + x @ c.W
    ),
    "what is picked may be inf": picked_inf,
    "a table of units": lambda c, x, h: (
        h[:, torch.tensor([[0, 1], [3, 2]])].sum(-1).repeat(1, 2) + x @ c.W
    ),
    "index_select": lambda c, x, h: (
        h.index_select(-1, c.places) + torch.index_select(halves(h), 1, c.places[1:2]).repeat(
            1, 2, 1).flatten(1) + x @ c.W
    ),
    "units of heads": lambda c, x, h: (
        halves(h)[:, [1, 0]].flatten(1) * halves(h)[..., None, [1, 0]].flatten(1) + x @ c.W
    ),
    "units of a weight": lambda c, x, h: h[:, :2] @ c.V[[2, 0]] + h @ c.U[:, c.places] + x @ c.W,
    "cumsum": lambda c, x, h: (x @ c.W + h).softmax(-1).cumsum(-1) - h.cumsum(1),
    "cumsum over heads": lambda c, x, h: halves(h).cumsum(1).flatten(1) + x @ c.W,
    "cumsum of a weight": lambda c, x, h: h @ c.U.cumsum(0) + x @ c.W,
    "repeat": lambda c, x, h: h[:, :1].repeat(1, 4) + x @ c.W,
    "expand": lambda c, x, h: h * c.b.expand_as(h) + c.single.expand(x.shape[0], 4) + x @ c.W,
    "tensor_split": lambda c, x, h: h.tensor_split(2, -1)[0].repeat(1, 2) + x @ c.W,
    "heads": lambda c, x, h: (halves(h) * c.heads.view(2, 1)).flatten(1) + x @ c.W,
    "sum over heads": lambda c, x, h: (
        (halves(h).sum(1, keepdim=True) * halves(x @ c.W)).reshape(-1, 4)
    ),
    "mean over heads": lambda c, x, h: halves(h).mean(1).repeat(1, 2) + x @ c.W,
    "softmax by heads": lambda c, x, h: halves(x @ c.W).softmax(-1).flatten(1) * h,
    "joined with a parameter": lambda c, x, h: (
        torch.cat([x, c.single.expand(x.shape[0], -1)], -1).tanh() * c.b + h
    ),
    "joined with a parameter, times W": lambda c, x, h: (
        torch.cat([x, c.single.expand(x.shape[0], -1)], -1) @ c.U + h
    ),
    "joined with ones": lambda c, x, h: (
        torch.cat([x, torch.ones_like(x[:, :1])], -1) @ c.U + h
    ),
    # constants
    "new tensors": lambda c, x, h: x @ c.W * h.new_ones(4) + h.new_full((1,), 2.0) * h,
    "zeros of the batch": lambda c, x, h: x @ c.W + h + h.new_zeros(x.shape[0], 4),
    "a tensor of a number": lambda c, x, h: x @ c.W + h * torch.tensor(0.1, dtype=h.dtype),
    "minus zero": lambda c, x, h: (
        (1 / torch.full_like(h, -0.0)).clamp(min=-1) + (1 / h.new_zeros(4)).clamp(max=2) + x @ c.W
    ),
    # truth values
    "a mask as a buffer": lambda c, x, h: torch.where(c.mask, x @ c.W, h) + h * c.mask,
    "a mask as numbers": lambda c, x, h: h * (h > 0).to(h.dtype) + x @ c.W,
    "truth values added": lambda c, x, h: h * ((h > 0) + (h < -1)) + x @ c.W,
    "truth values multiplied": lambda c, x, h: h * ((h > 0) * (h < 1)) + x @ c.W,
    "logic of numbers": lambda c, x, h: h * torch.logical_and(h.relu(), h > -1) + x @ c.W,
    "exclusive or": lambda c, x, h: h * torch.logical_xor(h > 0, h > 0.5) + x @ c.W,
    "where, as a method": lambda c, x, h: h.where(h > 0, 0.5) + x @ c.W,
    "masked_fill": lambda c, x, h: h.masked_fill(h > 0, 0.3) + x @ c.W,
    "ones of another dtype": lambda c, x, h: (
        torch.cat([h[:, :3], (h[:, 3:] > 0).double()], 1) * torch.ones(4) + x @ c.W
    ),
    "numbers of no dtype": lambda c, x, h: (
        h * torch.where(h > 0, 1.0, -1.0) + (h > 0.5).float() * h
        + h * torch.where(h > 0, (h > 1).float(), 0.1) + x @ c.W
    ),
    "a spike, straight through": lambda c, x, h: (
        (h > 0).float().detach()[:, :4] - (5 * h).sigmoid().detach() + (5 * h).sigmoid() + x @ c.W
    ),
    "any and all": lambda c, x, h: (
        h * (h > 0).any(-1, keepdim=True) - h * (h > 0).all(1)[:, None] + x @ c.W
        + halves(h > 1).any(1).repeat(1, 2) * h.relu().all(-1, keepdim=True)
    ),
    # norms
    "rms_norm": lambda c, x, h: F.rms_norm(x @ c.W + h, (4,), c.b, 1e-3),
    "group_norm": lambda c, x, h: F.group_norm(x @ c.W + h, 2, c.b, c.row[0]),
    "layer_norm": lambda c, x, h: F.layer_norm(x @ c.W + h, (4,), c.b),
    "var, biased": lambda c, x, h: h / (1 + h.var(-1, unbiased=False, keepdim=True)) + x @ c.W,
    "var_mean": lambda c, x, h: (
        h * torch.var_mean(h, -1, keepdim=True)[0] - torch.var_mean(x, 1)[1][:, None] + x @ c.W
    ),
    "std_mean": lambda c, x, h: (
        h * torch.std_mean(h, -1)[0][:, None] - torch.std_mean(h, 1, keepdim=True)[1] + x @ c.W
    ),
    "norm of order 1": lambda c, x, h: h / (1 + h.norm(p=1, dim=-1, keepdim=True)) + x @ c.W,
    "normalize": lambda c, x, h: F.normalize(h, dim=-1) + x @ c.W,
    "cosine_similarity": lambda c, x, h: (
        h * F.cosine_similarity(x @ c.W, h, dim=-1).unsqueeze(-1) + x @ c.W
    ),
    "norm of order inf": lambda c, x, h: (
        h / (1 + torch.linalg.vector_norm(h, math.inf, -1, keepdim=True)) + x @ c.W
    ),
    "layer_norm of heads": lambda c, x, h: (
        F.layer_norm(halves(x @ c.W + h), (2, 2), c.U[:2, :2], c.V[:2, :2]).flatten(1)
    ),
    "group_norm of heads": lambda c, x, h: (
        F.group_norm((h @ c.wide).view(-1, 4, 2), 2, c.b, c.row[0]).flatten(1)[:, :4] + x @ c.W
    ),
    "var over heads": lambda c, x, h: (
        halves(h).var(1, keepdim=True) * halves(x @ c.W)).flatten(1) + h.std((-1,))[:, None],
    "over several axes": lambda c, x, h: (
        h * halves(h).sum((1, 2))[:, None] + x @ c.W - halves(h).mean((1, 2), keepdim=True)[:, 0]
        + halves(h).logsumexp((-1, 1))[:, None] + halves(h).norm(dim=(1, 2))[:, None]
    ),
    "softmax over heads": lambda c, x, h: (
        (halves(x @ c.W).softmax(1) * halves(h)).flatten(1)
        + halves(h).log_softmax(1).flatten(1) * (h @ c.wide).view(-1, 4, 2).softmax(1)[..., 0]
    ),
    "amax over heads": lambda c, x, h: (
        halves(h) - halves(x @ c.W).amax(1, keepdim=True)
    ).flatten(1) - halves(h).amin(1).repeat(1, 2),
    "maxout": lambda c, x, h: (
        (h @ c.wide).view(-1, 4, 2).max(-1).values + torch.min(x @ c.W, 1, keepdim=True)[0]
    ),
    "a number along an axis": lambda c, x, h: (
        h * c.one.max(0)[0] * (c.one > 0).all(0) + c.one.sum(0) * c.one.softmax(0) + x @ c.W
    ),
    "the first of many": lambda c, x, h: (
        (h @ c.wide).repeat(1, 5)[:, :37].relu().max(1, keepdim=True).values * h + x @ c.W
        - (h @ c.wide).repeat(1, 3).view(-1, 12, 2).mT.min(-1)[0].repeat(1, 2)
    ),
    "the product of many": lambda c, x, h: (
        (h @ c.wide).tanh().repeat(1, 3)[:, :23].add(1).prod(1, keepdim=True).tanh() + x @ c.W + h
    ),
    "which of equals": lambda c, x, h: (
        equals(h).max(1, keepdim=True).values * h.sin() + equals(h).min(1)[0][:, None] + x @ c.W
        + equals((h @ c.wide).repeat(1, 5)[:, :37]).max(1, keepdim=True).values * h.cos()
        + equals((h @ c.wide).repeat(1, 5)[:, :38]).min(1, keepdim=True).values * h
    ),
    "the first of equals": lambda c, x, h: (
        h.relu().max(1, keepdim=True).values * h + h.relu().min(-1)[0][:, None] + x @ c.W
        + torch.stack([h, h], 1).max(1)[0]
    ),
    "prod": lambda c, x, h: (
        h * halves(h).prod(-1).repeat(1, 2) + h.relu().prod(1, keepdim=True) + x @ c.W
        + halves(h).prod(1).repeat(1, 2)
    ),
    "cumprod": lambda c, x, h: (  # a stick is broken
        h.sigmoid() * F.pad((1 - h.sigmoid()).cumprod(-1)[:, :-1], (1, 0), value=1.0)
        + halves(h).cumprod(1).flatten(1) + h.relu().cumprod(1)[:, 1:2] + x @ c.W
    ),
    "amin": lambda c, x, h: h - h.amin(-1, keepdim=True) + x @ c.W,
    "softmin": lambda c, x, h: F.softmin(h, -1) + x @ c.W,
    # elementwise, spelt by others
    "celu": lambda c, x, h: F.celu(h * 3, 2.0) + x @ c.W,
    "prelu": lambda c, x, h: F.prelu(h, c.b) + x @ c.W,
    "softplus with beta": lambda c, x, h: F.softplus(h, beta=2) + x @ c.W,
    "softplus far out": lambda c, x, h: F.softplus((h + x @ c.W) * 30) / 30,
    "threshold": lambda c, x, h: F.threshold(h, 0.1, 2.0) + x @ c.W,
    "shrinks": lambda c, x, h: (
        F.hardshrink(h) + F.softshrink(h, 0.2) + F.tanhshrink(h) + x @ c.W
    ),
    "addcdiv": lambda c, x, h: torch.addcdiv(x @ c.W, h, h * h + 1, value=0.5),
    "logit": lambda c, x, h: torch.logit(h.sigmoid(), 1e-3) + x @ c.W,
    "base 2": lambda c, x, h: 2**h + x @ c.W,
    "power of zero": lambda c, x, h: h.relu() ** c.b.abs() + (h * 0) ** 0 + x @ c.W,
    "xlogy": lambda c, x, h: (
        torch.xlogy(h.relu(), h) + torch.special.xlogy(h, c.b.abs()) + torch.xlogy(2, h.exp())
        + x @ c.W
    ),
    "softplus with a threshold": lambda c, x, h: (
        F.softplus(h + torch.where(h > 0.5, math.inf, 0.0).to(h.dtype), 1, 0.5).clamp(max=2)
        + F.softplus(h, 2, 0.3) + F.softplus(40 * h, threshold=30) + x @ c.W
    ),
    "fmax and fmin": lambda c, x, h: (
        torch.fmax(h, x @ c.W) + torch.fmin(h.log(), h) + torch.fmin(h.relu(), c.b * 0)
    ),
    "copysign": lambda c, x, h: (
        torch.copysign(h, x @ c.W) + torch.copysign(x @ c.W, -h.relu()) + h.copysign(-2.0)
    ),
    "sinc": lambda c, x, h: torch.sinc(h) + torch.sinc(h.relu()) * h + x @ c.W,
    "even power": lambda c, x, h: h**4 + x @ c.W,
    "division rounded": lambda c, x, h: (
        h + torch.div(h, 0.1, rounding_mode="floor") + torch.div(h, 0.3, rounding_mode="trunc")
    ),
    "bounds that cross": lambda c, x, h: h.clamp(0.5, -0.5) + x @ c.W,
    "nan_to_num": lambda c, x, h: torch.nan_to_num(h.log(), 0.5, 1.0, -1.0) + x @ c.W,
    # gradients
    "detach": lambda c, x, h: h.detach() * h + (x @ c.W).detach() * c.b,
    "straight through": lambda c, x, h: (h.sign() - h).detach() + h + x @ c.W,
    # writes to tensors of the step's own
    "a written slice": written_slice,
    "a written mask": written_mask,
    "a tensor written over": written_all,
    "every second unit written": written_pairs,
    # products of rows, and axes that move
    "attention by bmm": lambda c, x, h: torch.bmm(
        torch.bmm(halves(x @ c.W), halves(h).transpose(1, 2)).softmax(-1), halves(h)
    ).flatten(1),
    "attention by torch": lambda c, x, h: F.scaled_dot_product_attention(
        halves(x @ c.W), halves(h), halves(h), c.mask[1:3]
    ).flatten(1) + F.scaled_dot_product_attention(
        halves(h), halves(x @ c.W), halves(h), c.U[:2, :2], scale=0.3
    ).flatten(1) + F.scaled_dot_product_attention(
        halves(h), halves(h), halves(x @ c.W), ~c.mask[2:]
    ).flatten(1),
    "attention to nothing": masked_rows,
    "attention among parameters": lambda c, x, h: h * F.scaled_dot_product_attention(
        c.U, c.V, c.U, torch.where(c.mask[:, None], 0.0, -math.inf).to(h.dtype).expand(4, 4)
    )[1] + x @ c.W,
    "attention by heads": lambda c, x, h: F.scaled_dot_product_attention(
        (x @ c.W).view(-1, 2, 1, 2), (h @ c.wide).view(-1, 2, 2, 2), (h @ c.wide).view(-1, 2, 2, 2)
    ).flatten(1),
    "attention by einsum": lambda c, x, h: torch.einsum(
        "bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", halves(x @ c.W), halves(h)), halves(h)
    ).flatten(1),
    "inner product by einsum": lambda c, x, h: (
        torch.einsum("bh,bh->b", h, x @ c.W)[:, None] * h
    ),
    "outer product by einsum": lambda c, x, h: (
        torch.einsum("bi,bj->bij", h[:, :2], (x @ c.W)[:, 2:]).flatten(1)
    ),
    "gates first": lambda c, x, h: gated(torch.einsum("ghi,bi->gbh", c.wide.view(2, 4, 4), h), x),
    "gates second": lambda c, x, h: gated(
        torch.einsum("bi,ghi->bgh", h, c.wide.view(2, 4, 4)).unbind(1), x
    ),
    "columns": lambda c, x, h: (c.U @ h.mT).mT + (c.V.T @ h.T * 2).T + x @ c.W,
    "columns by t": lambda c, x, h: (c.U.t() @ h.t()).t() + x @ c.W + c.b.t(),
    # gradients switched off
    "no_grad": without_gradients,
    # written by others than the table
    "a column": lambda c, x, h: (c.U @ h.unsqueeze(-1)).squeeze(-1) + x @ c.W,
    "a linear layer by heads": lambda c, x, h: (
        F.linear(halves(h), c.U[:2, :2], c.b[:2]).flatten(1) + x @ c.W
    ),
    "one weight for all heads": lambda c, x, h: (halves(h) @ c.U[:2, :2]).flatten(1) + x @ c.W,
    "bilinear": lambda c, x, h: (
        F.bilinear(x, h, c.U.view(4, 1, 4).expand(4, 3, 4), c.b)
        + torch.bilinear(h, x @ c.W, c.wide.view(2, 4, 4)).repeat(1, 2)
    ),
    "baddbmm": lambda c, x, h: (
        torch.baddbmm(c.low[:2, None], halves(h).transpose(0, 1), c.U.view(4, 2, 2)[:2])
        .transpose(0, 1).flatten(1) + x @ c.W
    ),
    "pad": lambda c, x, h: F.pad(h[:, 1:], (1, 0)) + F.pad(h, (-1, 1), value=0.5) + x @ c.W,
    "pad before the last axis": lambda c, x, h: (
        F.pad(halves(h), (0, 0, 1, -1)).flatten(1) + x @ c.W
    ),
    "a lerp that stretches": lambda c, x, h: (
        torch.lerp(h, x @ c.W, c.b.sigmoid()) + c.b.lerp(h, h[:, :1].sigmoid())
        + h.lerp(end=c.b, weight=0.3)
    ),
    "a stretched part of a parameter that is computed": lambda c, x, h: (
        torch.cat([h[:, :2], (c.b * 2 + 1)[:2].expand(h.shape[0], 2)], 1) + x @ c.W
    ),
    # values that nobody needs
    "an argmax for nobody": lambda c, x, h: (h.argmax(-1), h.sort(0), h + x @ c.W)[2],
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def test_nothing_beside_the_state_is_left_to_the_reference() -> None:
    layer = flexrnn.FlexRNN(
        Cell, 3, 4, function=lambda c, x, h: torch.cat([h, h @ c.U[:, :0]], 1) + x @ c.W
    )
    x = torch.randn(2, 3, 3)
    with pytest.warns(flexrnn.FallbackWarning, match="a number in a row"):
        output, _ = layer(x)
    with flexrnn.backend("reference"):
        torch.testing.assert_close(output, layer(x)[0])


@pytest.mark.parametrize("name", ["normalize", "cosine_similarity", "norm of order 1"])
def test_a_norm_has_no_direction_at_zero(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name], scale=0.0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(7, 4),
        nn.Sequential(nn.Linear(7, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 4), nn.Dropout(0)),
        nn.Sequential(nn.Linear(7, 4), nn.RMSNorm(4), nn.PReLU(), nn.Hardtanh()),
        nn.Sequential(nn.Linear(7, 4), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Softmax(-1)),
        nn.Sequential(nn.Linear(7, 4), nn.Dropout(0.5).eval(), nn.CELU(0.5), nn.Identity()),
    ],
    ids=["linear", "sequential", "rms", "group", "eval"],
)
def test_a_module_inside_a_cell_is_the_reference(
    module: nn.Module, same_by_program: Callable[..., None]
) -> None:
    class Inside(flexrnn.Cell):
        State = cells.HiddenState

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)
            self.inner = module.to(dtype)

        def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
            return cells.HiddenState(self.inner(torch.cat([x, state.h], -1)))

    layer = flexrnn.FlexRNN(Inside, 3, 4, dtype=torch.float64)
    same_by_program(layer, torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("torchs", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_torchs_cells_inside_a_cell_are_two_products(
    torchs: Any, same_by_program: Callable[..., None]
) -> None:
    lstm = torchs is nn.LSTMCell

    class Inside(flexrnn.Cell):
        State = cells.LSTMState if lstm else cells.HiddenState

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)
            self.inner = torchs(input_size, hidden_size, bias, device=device, dtype=dtype)

        def step(self, x: Tensor, state: Any) -> Any:
            new = self.inner(x, tuple(state) if lstm else state.h)
            return self.State(*new) if lstm else self.State(new)

    layer = flexrnn.FlexRNN(Inside, 3, 4, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    graph, plan = program
    assert [graph.nodes[i].op for i in plan.hoisted].count("product") == 1
    assert [graph.nodes[i].op for i in plan.loop].count("product") == 1
    same_by_program(layer, x)
