"""What changes between two calls: the next one sees it, as the reference does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import flexrnn
from flexrnn import cells


class OptionsCell(flexrnn.Cell):
    """A cell whose result depends on everything that can change."""

    State = cells.HiddenState
    shift: Tensor

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, device=device, dtype=dtype)
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, device=device, dtype=dtype))
        self.register_buffer("shift", torch.ones(hidden_size, device=device, dtype=dtype))
        self.plain = torch.ones(hidden_size, device=device, dtype=dtype)
        self.leak = 0.5
        self.nested = {"scale": [2.0]}
        self.squash: Any = torch.tanh

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        z = self.norm(self.inner(x)) * self.weight_hh + self.shift * state.h + self.plain
        new = self.squash(z) * self.nested["scale"][0]
        if self.training:
            new = new * 0.5
        return cells.HiddenState(self.leak * state.h + (1 - self.leak) * new)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def cell_of(layer: flexrnn.FlexRNN) -> Any:
    return layer.cells[0]


CHANGES: dict[str, Callable[[flexrnn.FlexRNN], object]] = {
    "an attribute": lambda layer: setattr(cell_of(layer), "leak", 0.1),
    "inside an attribute": lambda layer: cell_of(layer).nested["scale"].__setitem__(0, 3.0),
    "a function": lambda layer: setattr(cell_of(layer), "squash", torch.sigmoid),
    "an option of a module inside": lambda layer: setattr(cell_of(layer).norm, "eps", 0.3),
    "a buffer in place": lambda layer: cell_of(layer).shift.mul_(0.3),
    "another buffer": lambda layer: setattr(
        cell_of(layer), "shift", torch.full((5,), 0.7, dtype=torch.float64)
    ),
    "a plain tensor": lambda layer: cell_of(layer).plain.mul_(3),
    "eval": lambda layer: layer.eval(),
    "a weight in place": lambda layer: layer.get_parameter("weight_hh_l0").data.mul_(2),
    "a parametrization": lambda layer: parametrize.register_parametrization(
        layer, "weight_hh_l0", Doubled()
    ),
    "a frozen weight": lambda layer: layer.get_parameter("weight_hh_l0").requires_grad_(False),
    "a method of the class": lambda layer: setattr(
        cell_of(layer), "step", lambda x, state: cells.HiddenState(state.h + x.sum(-1, True))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_calls_is_seen(
    change: str, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(OptionsCell, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)
    before = layer(x)[0].detach()
    CHANGES[change](layer)
    if change != "a frozen weight":
        assert not torch.equal(layer(x)[0].detach(), before)
    same_by_program(layer, x)


def test_another_dtype_is_another_program() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        layer, x = layer.to(dtype), x.to(dtype)
        right = layer(x)[0]
        with flexrnn.backend("interpreter"):
            ours = layer(x)[0]
        assert ours.dtype == dtype
        assert float((ours - right).detach().norm() / right.detach().norm()) <= bound


def test_autocast_between_two_calls_is_seen() -> None:
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    with flexrnn.backend("interpreter"):
        plain = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="bfloat16"):
            layer(x)  # a program has one dtype
        assert torch.equal(layer(x)[0], plain)
