"""A cell that draws in the way that it is told."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState

B, T, I, H = 4, 6, 3, 5
DOUBLE = torch.float64


class Noisy(flexrnn.Cell):
    """`h ← how(cell, W [x, h] + b, h)`."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.drop = nn.Dropout(0.3)
        self.how: Any = how

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.how(self, self.inner(torch.cat([x, state.h], -1)), state.h))


def scale(h: Tensor) -> Tensor:
    return 0.8 * h.sigmoid() + 0.1


def three(z: Tensor, h: Tensor) -> Tensor:
    """Three distributions over five, `(B, 3, 5)`."""
    return torch.cat([z, h, z + h], 1).unflatten(1, (3, 5))


FROM_2_TO_3: Any = {"from": 2, "to": 3}

DRAWN: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "nn.Dropout": lambda c, z, h: torch.tanh(c.drop(z) + h),
    "dropout": lambda c, z, h: F.dropout(torch.tanh(z), 0.2, c.training),
    "dropout in place": lambda c, z, h: F.dropout(z.tanh() + h, 0.2, c.training, inplace=True),
    "torch.dropout": lambda c, z, h: torch.dropout(torch.tanh(z), 0.2, c.training),
    "randn_like": lambda c, z, h: torch.tanh(z + 0.1 * torch.randn_like(z)),
    "rand_like": lambda c, z, h: 0.9 * h + (torch.rand_like(z) < z.sigmoid()).to(z.dtype) + z,
    "randn": lambda c, z, h: torch.tanh(z + torch.randn(z.shape, dtype=z.dtype)),
    "randn, one number a row": lambda c, z, h: z.tanh() + torch.randn(z.size(0), 1, dtype=z.dtype),
    "randn, size=": lambda c, z, h: z.tanh() + torch.randn(size=(z.size(0), 5), dtype=z.dtype),
    "rand": lambda c, z, h: z.tanh() * torch.rand(*z.shape, dtype=z.dtype, device=z.device),
    "normal": lambda c, z, h: torch.normal(z, scale(h)) + z,
    "normal, a number": lambda c, z, h: torch.normal(0.5, scale(h)) + z.tanh(),
    "normal, a size": lambda c, z, h: z.tanh() + torch.normal(0.0, 2.0, z.shape, dtype=z.dtype),
    "bernoulli": lambda c, z, h: z * torch.bernoulli(z.sigmoid()),
    "bernoulli of a number": lambda c, z, h: z.tanh() * z.bernoulli(0.6),
    "bernoulli_": lambda c, z, h: z.tanh() * torch.empty_like(z).bernoulli_(0.7) / 0.7,
    "bernoulli_ of a tensor": lambda c, z, h: z.tanh() * torch.empty_like(z).bernoulli_(scale(h)),
    "uniform_": lambda c, z, h: z.tanh() + torch.empty_like(z).uniform_(-1, 1),
    "normal_": lambda c, z, h: z.tanh() + z.new_empty(z.shape).normal_(std=0.5),
    "uniform_, from=": lambda c, z, h: z.tanh() + torch.empty_like(z).uniform_(**FROM_2_TO_3),
    "by names": lambda c, z, h: torch.randn_like(input=z) * torch.bernoulli(input=scale(h)) + z,
    "written to": lambda c, z, h: torch.tanh(z * torch.randn_like(z).mul_(0.1).add_(h) + z),
    "into truth values": lambda c, z, h: z.tanh()
    * torch.empty_like(z, dtype=torch.bool).bernoulli_(scale(h).detach()),
    "exponential_": lambda c, z, h: z.tanh() + z.new_empty(z.shape).exponential_(2.0),
    "gumbel_softmax": lambda c, z, h: F.gumbel_softmax(z + h, 1.0),
    "gumbel_softmax, hard": lambda c, z, h: F.gumbel_softmax(z + h, 0.5, hard=True),
    "gumbel_softmax of groups": lambda c, z, h: F.gumbel_softmax(
        three(z, h).reshape(-1, 5)
    ).reshape(-1, 15)[:, 4:9],
    "gumbel_softmax of groups, hard": lambda c, z, h: F.gumbel_softmax(
        three(z, h).flatten(0, 1), hard=True
    ).view(-1, 3, 5).sum(1),
    "gumbel_softmax over groups": lambda c, z, h: F.gumbel_softmax(
        three(z, h), hard=True, dim=1
    )[:, 1],
    "multinomial": lambda c, z, h: z.tanh() + torch.multinomial(z.softmax(-1), 1).to(z.dtype),
    "multinomial of groups": lambda c, z, h: z.tanh() + torch.multinomial(
        three(z, h).softmax(-1).view(-1, 5), 1
    ).view(-1, 3).sum(-1, keepdim=True).to(z.dtype),
    "alpha dropout": lambda c, z, h: F.alpha_dropout(z.tanh() + h, 0.3, c.training),
    "torch.alpha_dropout": lambda c, z, h: torch.alpha_dropout(torch.tanh(z), 0.3, c.training),
    "feature_alpha_dropout": lambda c, z, h: F.feature_alpha_dropout(
        three(z, h), 0.3, c.training
    ).sum(1),
    "dropout1d": lambda c, z, h: F.dropout1d(three(z, h), 0.3, c.training).sum(1),
    "dropout2d": lambda c, z, h: F.dropout2d(three(z, h)[..., None], 0.3, c.training).sum((1, 3)),
    "rrelu": lambda c, z, h: F.rrelu(z - h, training=c.training),
    "rrelu in place": lambda c, z, h: F.rrelu(
        z - h, 0.2, 0.4, c.training, inplace=True
    ),
    "log_normal_": lambda c, z, h: z.tanh() + torch.empty_like(z).log_normal_(0.0, 0.5),
    "cauchy_": lambda c, z, h: z.tanh() + torch.empty_like(z).cauchy_(1.0, 0.1),
    "geometric_": lambda c, z, h: z.tanh() + torch.empty_like(z).geometric_(0.3),
    "several": lambda c, z, h: c.drop(z) + torch.randn_like(h) * h + F.dropout(h, 0.1, c.training),
    "nobody's": lambda c, z, h: (torch.randn_like(z), z + h)[1],
    "Normal": lambda c, z, h: distributions.Normal(z, scale(h)).rsample(),
    "Normal, sampled": lambda c, z, h: distributions.Normal(z, scale(h)).sample() + z,
    "Laplace": lambda c, z, h: distributions.Laplace(z, scale(h)).rsample(),
    "Bernoulli": lambda c, z, h: distributions.Bernoulli(logits=z).sample() + z.tanh(),
    "OneHotCategorical": lambda c, z, h: distributions.OneHotCategorical(logits=z).sample() + z,
    "straight through": lambda c, z, h: distributions.OneHotCategoricalStraightThrough(
        logits=z
    ).rsample(),
    "Categorical of groups": lambda c, z, h: z.tanh() + distributions.Categorical(
        logits=three(z, h)
    ).sample().sum(-1, keepdim=True).to(z.dtype),
    "straight through, of groups": lambda c, z, h: (
        distributions.OneHotCategoricalStraightThrough(logits=three(z, h)).rsample() * three(h, z)
    ).sum(1),
    "RelaxedBernoulli": lambda c, z, h: distributions.RelaxedBernoulli(
        torch.tensor(0.5, dtype=z.dtype), logits=z
    ).rsample(),
}  # fmt: skip


def layer_of(how: Any, **options: Any) -> flexrnn.FlexRNN:
    return flexrnn.FlexRNN(Noisy, I, H, how=how, dtype=DOUBLE, **options)


def assert_the_same_anew(layer: flexrnn.FlexRNN) -> None:
    """With checkpoints steps are computed anew: assert that they draw the same."""
    x, found = torch.randn(T, B, I, dtype=DOUBLE), []
    for every in (None, 2):
        layer.checkpoint_every = every
        torch.manual_seed(4)
        output = layer(x)[0]
        found.append([output, *torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
