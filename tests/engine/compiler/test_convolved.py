"""Convolutions that are a product or a few sums, as of the last inputs that a state keeps."""

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
}  # fmt: skip

MANY = "a program has no convolutions, but those that leave one place"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "many places of an image": (
        lambda c, z, h: h + F.conv2d(z[:, None, None], c.inner.weight[None, None, :3, :3],
                                     padding=1).flatten(1), MANY),
    "many places of several channels": (
        lambda c, z, h: h + F.conv1d(z[:, None], c.inner.weight[:, None, :2]).sum((1, 2))[:, None],
        MANY),
    "a product for each of many places": (
        lambda c, z, h: h + F.conv1d(h.repeat(1, 4)[:, None], c.inner.weight[:2, :1, None]).sum(),
        MANY),
    "the batch as channels": (
        lambda c, z, h: h + F.conv1d(z, c.inner.weight[:, :3, None]), "conv1d"),
    "a transposed one": (
        lambda c, z, h: h + F.conv_transpose1d(z[:, None], c.inner.weight[:1, None, :1]).flatten(1),
        "conv_transpose1d cannot be compiled: a program has no convolutions"),
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
