"""Convolutions, which are a product or a few sums, as of the last inputs that a state keeps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn.cells import HiddenState

from .written import halves

WRITTEN: dict[str, Callable[..., Any]] = {
    "of a window": lambda c, x, h: (
        F.conv1d(halves(h), c.wide.view(8, 2, 2)[:4], c.b).squeeze(-1) + x @ c.W
        + F.conv2d(h.view(-1, 1, 2, 2), c.U.view(4, 1, 2, 2)).flatten(1)
        + F.conv3d(h.view(-1, 1, 2, 2, 1), c.V.view(4, 1, 2, 2, 1), c.b).flatten(1)
    ),
    "of a window, by groups": lambda c, x, h: (
        F.conv1d(halves(h), c.wide[:2, :2].unsqueeze(1), groups=2).flatten(1).repeat(1, 2)
        + F.conv1d((h @ c.wide).view(-1, 4, 2), c.U.view(4, 2, 2), c.b, groups=2).squeeze(-1)
        + x @ c.W
    ),
    "of one place": lambda c, x, h: (
        F.conv2d(h.view(-1, 2, 2, 1), c.U[:, :2, None, None], c.b).mean((2, 3)) + x @ c.W
        + F.conv2d(h.view(-1, 2, 2, 1), c.V[:2, :2, None, None]).view(-1, 4)
        + F.conv1d(halves(h), c.U[:2, :1, None], groups=2).view(-1, 4)
        + F.conv1d((h @ c.wide).view(-1, 4, 2), c.U[:2, :2, None], groups=2).flatten(1)
    ),
    "of each channel by itself": lambda c, x, h: (
        F.conv1d(halves(h), c.wide[:2, :3].unsqueeze(1), c.b[:2], padding="same", groups=2)
        .flatten(1) + x @ c.W
        + F.conv1d(halves(h), c.wide[:2, :3].unsqueeze(1), padding=2, groups=2)[..., :2].flatten(1)
        + F.conv1d((h @ c.wide).unsqueeze(1), c.U[:1, None, :3], None, 2, 1, 2).repeat(1, 2, 1)
        .flatten(1)[:, :4] + torch.conv1d(h.unsqueeze(1), c.V[:1, None, :3], padding="valid")
        .flatten(1).repeat(1, 2)
    ),
    "of many places": (
        lambda c, x, h: F.conv1d(halves(h), c.wide.view(8, 2, 2)[:2], c.b[:2], padding=1)[..., 1:]
        .flatten(1) + F.conv1d(x[:, None], c.U[:2, None, :3], padding="same").flatten(1)[:, 1:5]
        + F.conv2d(h.view(-1, 1, 2, 2), c.wide.view(2, 1, 4, 4)[..., :3, :3], c.b[:2], padding=1)
        .sum(1).flatten(1)
        + F.conv2d((h @ c.wide).view(-1, 2, 2, 2), c.wide.view(4, 1, 2, 4), None, 2, (1, 2), 1, 2)
        [:, :, 0, 0]
        + F.conv3d(h.view(-1, 1, 1, 2, 2), c.V.view(2, 1, 2, 2, 2), padding=1).flatten(1)[:, 5:9]
    ),
    "transposed": (
        lambda c, x, h: F.conv_transpose1d(h[:, None], c.U[:1, None, :3], c.b[:1], padding=1)
        .flatten(1) + x @ c.W
        + F.conv_transpose1d(halves(h), c.wide.view(2, 1, 16)[..., :3], None, 2, 1, 1, 2)
        .flatten(1)[:, 2:6]
        + F.conv_transpose2d(h.view(-1, 2, 2, 1), c.U.view(2, 2, 2, 2), c.b[:2], 2).flatten(1)
        [:, 4:8]
        + F.conv_transpose3d(h.view(-1, 2, 2, 1, 1), c.V.view(2, 1, 2, 2, 2)).flatten(1)[:, 3:7]
    ),
}  # fmt: skip

MANY = (
    "a program has no convolutions, but those of a row's own numbers by a kernel that is the same"
)
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "many places of an image": (
        lambda c, z, h: h + F.conv2d(
            z.repeat(1, 80).view(-1, 1, 20, 20), c.inner.weight[None, None], padding=1
        ).sum((1, 2, 3))[:, None], MANY),
    "a kernel of each row": (
        lambda c, z, h: h + F.conv2d(z[None, None], h[:1, None, None, :2]).flatten(1)[:, :1], MANY),
    "many places, transposed": (
        lambda c, z, h: h + F.conv_transpose1d(
            z.repeat(1, 80)[:, None], c.inner.weight[:1, None]).sum((1, 2))[:, None], MANY),
    "the batch as channels": (
        lambda c, z, h: h + F.conv1d(z, c.inner.weight[:, :3, None]), "conv1d"),
    "the batch as channels, transposed": (
        lambda c, z, h: h + F.conv_transpose1d(z, c.inner.weight[:, :3, None]),
        "conv_transpose1d"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_engines_agree(judge: Callable[..., None], name: str) -> None:
    judge(WRITTEN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(refuses: Callable[..., None], name: str) -> None:
    refuses(*REFUSED[name])


class CausalCell(flexrnn.Cell):
    """The last four inputs, convolved, as a block of Mamba or an xLSTM steps over them."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        options: Any = {"device": device, "dtype": dtype}
        self.conv = nn.Conv1d(input_size, input_size, 4, groups=input_size, padding=3, **options)

    @property
    def state_sizes(self):
        return {"h": 4 * self.input_size}

    def step(self, x, state):
        window = torch.cat([state.h.unflatten(1, (-1, 4))[..., 1:], x.unsqueeze(-1)], -1)
        made = self.conv(window)[..., 3] * torch.sigmoid(x)
        return HiddenState(torch.cat([window[..., :3], made.unsqueeze(-1)], -1).flatten(1))


def test_a_module_over_a_window_that_the_state_keeps(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(CausalCell, 3, 5, dtype=torch.float64)
    same_by_program(layer, torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True))


class ConvGRUCell(flexrnn.Cell):
    """A gated layer of convolutions over an image of 2 by 3 places (Ballas et al. 2016)."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.both = nn.Conv2d(3, 4, 3, padding="same", bias=bias, device=device, dtype=dtype)
        self.new = nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular", bias=bias,
                             device=device, dtype=dtype)  # fmt: skip

    def step(self, x, state):
        image, h = x.view(-1, 1, 2, 3), state.h.view(-1, 2, 2, 3)
        z, r = self.both(torch.cat([image, h], 1)).sigmoid().chunk(2, 1)
        new = torch.tanh(self.new(torch.cat([image, r * h], 1)))
        return HiddenState(((1 - z) * h + z * new).flatten(1))


def test_a_layer_of_convolutions_over_an_image(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(ConvGRUCell, 6, 12, dtype=torch.float64)
    same_by_program(layer, torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True))
