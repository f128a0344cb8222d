"""Whole numbers that are divided, multiplied and added up; where reals lie among boundaries."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import flexrnn

from .written import Cell, halves

EDGES = (-0.5, 0.0, 1.0)


def edges(h: Tensor) -> Tensor:
    return torch.tensor(EDGES, dtype=h.dtype)


def among(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """At a boundary, between two, and what is no number."""
    y = torch.cat([h[:, :2].round(), torch.where(h[:, 2:] > 0, math.nan, h[:, 2:])], 1)
    return (
        torch.bucketize(y, edges(h)) * h + torch.bucketize(y, edges(h), right=True)
        + torch.searchsorted(edges(h), y, side="right", out_int32=True) * h + x @ c.W
    )  # fmt: skip


def among_its_own(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """As a particle filter draws anew: by the running sum of a row's own weights."""
    sums, y = h.sigmoid().cumsum(-1), h.round()
    return (
        torch.searchsorted(sums, x.exp()).sum(-1, keepdim=True) * h + x @ c.W
        + torch.searchsorted(sums, h.exp(), right=True)
        + torch.searchsorted(y.sort(-1)[0], y) * 2
        + torch.searchsorted(y.sort(-1)[0], y, side="right")
        + torch.searchsorted(h.view(-1, 2, 2).sort(-1)[0], (x @ c.W).view(-1, 2, 2)).flatten(1)
    )  # fmt: skip


def count(h: Tensor) -> Tensor:
    return (h > 0).sum(-1, keepdim=True)


def parts(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Numbers that are taken apart, turned over and moved on."""
    order = h.argsort(-1)
    first, second = h.topk(2).indices.unbind(-1)
    low, high = order.chunk(2, -1)
    return (
        x @ c.W + h.gather(1, first[:, None]) - (h.gather(1, low) * h.gather(1, high)).sum(-1, True)
        + c.U[second] + h.gather(1, order.flip(1)) * h.gather(1, order.roll(1, -1))
        + sum(h * part for part in order.split([1, 3], 1)[0].tensor_split(1, 1))
        + F.pad(order[:, :3], (1, 0), value=2) * h + order.sub(2).sign() * h
        + (h[:, :, None] > h[:, None]).tril().sum(-1) * h
    )  # fmt: skip


def written_whole(c: Any, x: Tensor, h: Tensor) -> Tensor:
    order, numbers = h.argsort(1), torch.zeros(h.shape[0], 4, dtype=torch.long)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(4).expand_as(order))
    numbers[:, 1] = h.argmax(1)
    numbers[h[:, 0] > 0] = 2
    numbers[:, 3] = -1
    numbers += 1
    return x @ c.W + numbers * h + ranks * h


WRITTEN: dict[str, Callable[..., Any]] = {
    "parts of whole numbers": parts,
    "whole numbers, written": written_whole,
    "degrees": lambda c, x, h: (
        x @ c.W + h / torch.bincount(c.places // 2, minlength=4).clamp(min=1)
        + h * c.places.bincount(minlength=4)
    ),
    "binary digits": lambda c, x, h: (
        x @ c.W + (((h * 9).long() >> 1) & 1) * h + ((h * 9).long() << 1) * h
        + ((h * 9).long()[:, :1] >> torch.arange(4) & 3) * h
        + torch.bitwise_right_shift((h * 9).long(), 2) * h
        + (h * 9).long().bitwise_left_shift(1).bitwise_right_shift(2) * h
    ),
    "remainders": lambda c, x, h: (
        x @ c.W + h * (count(h) % 2) + h * ((h * 9).long() % -3) + (h * 9).long() % (count(h) + 1)
        + torch.fmod((h * 9).long(), 4) + 7 % (count(h) + 1)
    ),
    "numbers by torch": lambda c, x, h: x @ c.W + h * torch.mul(2.0, 3.0),
    "truth values times numbers that float32 rounds": lambda c, x, h: (
        x @ c.W + h * ((h > 0) * 0.1) - 0.3 * (x @ c.W > 0) + torch.mul(h < 1, -0.7)
    ),
    "quotients": lambda c, x, h: (
        x @ c.W + h * (count(h) // 2) + (h * 9).long() // -2 + (h * 9).long() // (count(h) + 1)
        + 7 // (count(h) + 1) + torch.div((h * 9).long(), 2, rounding_mode="trunc")
    ),
    "an even count": lambda c, x, h: x @ c.W + torch.where(count(h) % 2 == 0, h, -h),
    "places of places": lambda c, x, h: (
        x @ c.W + h * c.wide.flatten()[2 * h.argmax(-1) + 1][:, None] + c.U[h.argmax(-1) // 2]
    ),
    "counts side by side": lambda c, x, h: (
        x @ c.W + h * torch.stack([h.argmax(-1), h.argmin(-1)], -1).sum(-1, keepdim=True)
        + count(h).repeat(1, 4)
    ),
    "running counts": lambda c, x, h: (
        x @ c.W + h * (h > 0).cumsum(-1) + halves((h * 3).long()).cumsum(1).flatten(1)
    ),
    "halves of whole numbers": lambda c, x, h: (
        x @ c.W + h * (F.one_hot(h.argmax(-1), 4) * 0.5) + (1 - 0.75 * count(h)) * h + count(h) / 4
    ),
    "truth values as reals": lambda c, x, h: (
        x @ c.W + h * (2 * (h > 0).float() - 1) + (h > 0).float().mean(-1, keepdim=True) * h
        + (h > 1).float().sum(-1, keepdim=True) / 8 + (h > 0).float() * (h < 1)
    ),
    "powers of two": lambda c, x, h: x @ c.W + torch.ldexp(h, count(h)) + h.ldexp(torch.tensor(2)),
    "among boundaries": among,
    "among boundaries of its own": among_its_own,
    "an embedding of a range": lambda c, x, h: (
        x @ c.W + c.U[torch.bucketize(h[:, 0].clone(), edges(h))] * h
    ),
    "numbers of a parameter": lambda c, x, h: (
        x @ c.W + c.b[h.argmax(-1) - 1][:, None] * h + c.b[h.topk(4).indices]
    ),
    "numbers of a buffer": lambda c, x, h: (
        x @ c.W + c.places[h.argmax(-1)][:, None] * h + c.mask[h.argsort(-1)] * h
    ),
    "scatter_add": lambda c, x, h: (
        (x @ c.W).scatter_add(1, h.topk(2).indices, h[:, :2]) * h
        + halves(h).clone().scatter_add_(1, halves(h > 0).long(), halves(h)).flatten(1)
        + h.scatter_reduce(1, (h[:, :3] > 0).long(), h[:, 1:], "sum")
    ),
    "scatter_reduce": lambda c, x, h: (
        h.scatter_reduce(1, (h > 0).long(), x @ c.W, "amax")
        + halves(h).scatter_reduce(2, halves(x @ c.W > 0).long(), halves(h - 1), "amin").flatten(1)
        + h.clone().scatter_reduce_(1, (h[:, 1:] > 0).long(), h[:, :3], "mean")
        + h.scatter_reduce(1, (x @ c.W > 0).long(), h, "prod")
    ),
    "scatter_reduce of the others alone": lambda c, x, h: sum(
        (h.scatter_reduce(1, (h > 0).long() + 1, x @ c.W, how, include_self=False)
         for how in ("sum", "mean", "prod", "amax", "amin")), h
    ),
    "numbers of a buffer for every row": lambda c, x, h: (
        x @ c.W + h.gather(1, c.places.expand(h.shape[0], 4)) * h
        + h.gather(1, c.places.repeat(h.shape[0], 1)[:, :1])
        + torch.take_along_dim(h, c.places[None, :3], 1).sum(-1, keepdim=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a power of counts": (lambda c, z, h: h * 0.9 ** count(z) + z, "torch.float32"),
    "an exponential of tenths": (lambda c, z, h: h * (count(z) * 0.1).exp() + z, "torch.float32"),
    "a sum of tenths": (
        lambda c, z, h: h * ((z > 0).float() * 0.1).sum(-1, keepdim=True) + z, "torch.float32"),
    "products of large numbers": (lambda c, z, h: h * (count(z) * 5000), "too many digits"),
    "what 32 bits wrap around": (
        lambda c, z, h: h + (count(z).int() + 2**30 + 2**30 + 2**30).to(h.dtype) * z,
        "torch.int32",
    ),
    "a product that may be": (lambda c, z, h: h * (count(z).int() * 4096), "too many digits"),
    "a quotient of reals": (lambda c, z, h: h + z // 0.3, "floor_divide"),
    "a running count of many": (
        lambda c, z, h: h + (z > 0).repeat(1, 30).cumsum(-1)[:, :5], "cumsum"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])


ROUNDED: dict[str, Callable[..., Tensor]] = {
    "tenths": lambda c, x, h: h * (F.one_hot(h.argmax(-1), 4) * 0.1) + 0.01 * h.argsort(-1),
    "a third": lambda c, x, h: (
        h * (h[:, 1:] > 0).float().mean(-1, keepdim=True)
        + (h[:, :3] * 5).long().float().mean(1, True)),
    "a third of a half": lambda c, x, h: h * ((h > 0).float() * 0.5 / 3),
    "a quotient of counts": lambda c, x, h: h * (count(x) / (count(h) + 1)) + count(h) / 3,
    "tenths that were chosen": lambda c, x, h: h * (torch.where(h > 0, 0.1, 0.2) * 3),
    "tenths compared": lambda c, x, h: (
        h * (count(h) * 0.1 > 0.2) + h * (torch.where(h > 0, 0.1, 0.2) == 0.1)),
    "tenths, cut off": lambda c, x, h: (
        h * (count(h) * 0.3).clamp(max=0.7) + (count(h) * 0.1 % 0.3).abs()
        - torch.maximum(count(h) * 0.1, count(x) * 0.2)),
    "tenths side by side": lambda c, x, h: (
        h * torch.cat([count(h) * 0.1, -count(h) / 3, 0.7 - count(x) * 0.1, h[:, :1]], 1)
        + torch.cat([count(h) * 0.1, count(x) / 3], 1).amax(-1, keepdim=True)),
    "a part that is lost": lambda c, x, h: h * (1 + count(h) / 2**26),
    "parts of parts": lambda c, x, h: h * (((count(h) / 2**30 + 1) - 1) / 2.0**-30),
    "a product of three": lambda c, x, h: h * ((h > 0).float() * 1000.5 * 1000.25 * 1000.125),
    "a number that is too large": lambda c, x, h: h * (((h > 0).float() + 16777217) - 16777217),
    "a factor that is": lambda c, x, h: h * ((h > 0).float() * 16777217 - 16777217),
    "none that is so large": lambda c, x, h: torch.where(count(h) * 1e300 > 1, h, -h),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_what_torch_rounds_to_fewer_bits_is_rounded(name: str, judge: Callable[..., None]) -> None:
    judge(lambda c, x, h: (x @ c.W + ROUNDED[name](c, x, h)).tanh())


LOST: dict[str, Callable[..., Tensor]] = {
    "a sum of unlike ones": lambda c, x, h: (
        h * torch.cat([count(h).float(), count(h) / 2**26], -1).sum(-1, keepdim=True)),
    "whole numbers multiplied again": lambda c, x, h: h * ((count(h) * 4096 * 4096 + 1) % 2),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_torch_rounds_several_times_is_refused(name: str) -> None:
    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=LOST[name])
    with (
        flexrnn.backend("cpu"),
        pytest.raises(RuntimeError, match=r"torch\.float32|too many digits"),
    ):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


GIVEN: dict[str, Callable[..., Tensor]] = {
    "a row of a table": lambda n, k, h, w: w[n] + h @ w,
    "compared": lambda n, k, h, w: (
        torch.where((n > 2)[:, None], h @ w, h) + w[0] * (k[:, None] == 1)
    ),
    "as a real": lambda n, k, h, w: h @ w + 0.1 * n.to(h.dtype)[:, None] * (k < 2)[:, None],
    "beside reals": lambda n, k, h, w: h @ w + n[:, None] * w[1] - k[:, None] / 4,
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_whole_numbers_may_be_inputs_and_state(name: str) -> None:
    n, w = torch.randint(0, 4, (5, 3)), torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def step(n: Tensor, state: Any, w: Tensor) -> Any:
        h, k = state
        return torch.tanh(GIVEN[name](n, k, h, w)), k + 1

    found: list[Any] = []
    for engine in ("reference", "interpreter", "cpu"):
        h = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
        with flexrnn.backend(engine):
            states, final = flexrnn.scan(step, h, n, (w,))
        found.append((*states, *final, *torch.autograd.grad(states[0].sum(), w)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_small_whole_numbers_become_reals(dtype: torch.dtype) -> None:
    n, h = torch.randint(0, 120, (5, 3, 1)).to(dtype), torch.randn(3, 4, dtype=torch.float64)
    found: list[Any] = []
    for engine in ("reference", "interpreter", "cpu"):
        with flexrnn.backend(engine):
            found.append(
                flexrnn.scan(lambda n, h: torch.tanh(h * n) - n.to(h.dtype) / 255, h, n)[0]
            )
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)
