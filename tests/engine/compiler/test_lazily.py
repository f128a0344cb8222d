"""Attributes that the first step makes, and the others find."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState

DOUBLE = torch.float64


class Lazy(flexrnn.Cell):
    State = HiddenState
    mask: Any = None

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how=None):
        super().__init__(input_size, hidden_size)
        self.how: Any = how
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.inside: Any = nn.Module()

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(torch.tanh(self.inner(x) + self.how(self, state.h)))


def masked(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = torch.ones(h.shape[1], h.shape[1], dtype=h.dtype).tril()
    return h @ cell.mask


def inside(cell: Any, h: Tensor) -> Tensor:
    if not hasattr(cell.inside, "decay"):
        cell.inside.decay = torch.linspace(0, 1, cell.hidden_size, dtype=h.dtype)
        cell.inside.size = h.shape[-1]
    return h * cell.inside.decay / cell.inside.size


def for_a_device(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None or cell.mask.device != h.device or cell.mask.dtype != h.dtype:
        cell.mask = (torch.arange(cell.hidden_size) % 2).to(h)
    return cell.drop_recurrent(h) * cell.mask


LAZY = pytest.mark.filterwarnings("ignore:Lazy sets the attribute")


@LAZY
@pytest.mark.parametrize("how", [masked, inside, for_a_device])
def test_what_the_first_step_makes_of_numbers_is_a_constant(
    how: Any, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(Lazy, 3, 5, dtype=DOUBLE, how=how)
    for batch in (3, 1):
        same_by_program(layer, torch.randn(4, batch, 3, dtype=DOUBLE, requires_grad=True))
    assert layer.cells[0].mask is None


@LAZY
def test_so_it_is_beside_a_mask_of_recurrent_dropout() -> None:
    layer = flexrnn.FlexRNN(Lazy, 3, 5, dtype=DOUBLE, how=for_a_device, recurrent_dropout=0.5)
    x, outputs = torch.randn(4, 2, 3, dtype=DOUBLE), []
    for engine in ("interpreter", "reference"):
        torch.manual_seed(1)
        with flexrnn.backend(engine):
            outputs.append(layer(x)[0])
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


def test_that_it_is_lost_is_told_as_before() -> None:
    layer = flexrnn.FlexRNN(Lazy, 3, 6, dtype=DOUBLE, how=masked)
    told = "Lazy sets the attribute mask of a copy"
    with flexrnn.backend("cpu"), pytest.warns(UserWarning, match=told):
        layer(torch.randn(4, 2, 3, dtype=DOUBLE))


def other_the_first_time(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = torch.ones(cell.hidden_size, dtype=h.dtype)
        return h
    return 2 * h * cell.mask


def of_the_rows(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = h.shape[0]
    return h / cell.mask


def like_the_state(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = torch.ones_like(h)
    return h * cell.mask


def of_the_state(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = h
    return h + cell.mask


def of_a_parameter(cell: Any, h: Tensor) -> Tensor:
    if cell.mask is None:
        cell.mask = cell.inner.bias.detach() * 2
    return h + cell.mask


def counted(cell: Any, h: Tensor) -> Tensor:
    cell.mask = 1 if cell.mask is None else cell.mask + 1
    return h / cell.mask


@LAZY
@pytest.mark.parametrize(
    "how",
    [other_the_first_time, like_the_state, of_the_state, of_a_parameter, counted],
)
def test_what_may_depend_on_anything_is_refused(how: Any) -> None:
    layer = flexrnn.FlexRNN(Lazy, 3, 5, dtype=DOUBLE, how=how)
    x = torch.randn(4, 2, 3, dtype=DOUBLE)
    told = "Lazy.step reads the attribute mask before it sets it"
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=told):
        layer(x)


@LAZY
def test_so_is_the_number_of_rows() -> None:
    layer = flexrnn.FlexRNN(Lazy, 3, 5, dtype=DOUBLE, how=of_the_rows)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="the step's last operation"):
        layer(torch.randn(4, 2, 3, dtype=DOUBLE))
