"""Stages: values are computed where they are read, so that few of them go to memory."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.engine.lowering import stages
from flexrnn.engine.lowering.extract import extract
from flexrnn.engine.lowering.stages import Loop, lower

H = 8


class Cell(flexrnn.Cell):
    """`h ← function(x + U h, h)`."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        self.U = nn.Parameter(torch.randn(H, H, device=device, dtype=dtype))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.function(x + state.h @ self.U, state.h))


def forward(function: Callable[[Tensor, Tensor], Tensor]) -> Loop:
    """The stages of a step's loop, without derivatives."""
    layer = flexrnn.FlexRNN(Cell, H, H, function=function).requires_grad_(False)
    program = flexrnn.explain(layer, torch.randn(3, 2, H)).steps[0].program
    assert program is not None
    return lower(extract(program, hoist=False, keep=program.fields[:1]).forward.graph, again=True)


def test_what_a_reduction_waits_for_is_computed_behind_it() -> None:
    def fan(a: Tensor, h: Tensor) -> Tensor:
        base, mean = h * h, a.mean(-1, keepdim=True)
        return reduce(torch.maximum, [(base * k + h) * mean for k in range(300)])

    loop = forward(fan)
    assert len(loop.temporaries) <= 1
    assert len(loop.stages[0].values) <= 2


def test_nothing_goes_to_memory_that_would_not_without_sinking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tied(a: Tensor, h: Tensor) -> Tensor:
        """Some read the product's tile and have to stay where it is, and so does what they read."""
        own = [h * h, h + h.exp(), (h + 1) * h, (h - 1) * h]
        rest, mean = own[0] * own[1] * own[2] * own[3], (a * a).mean(-1, keepdim=True)
        total = sum(o * a * mean for o in own)
        return torch.tanh(total + (rest * mean) * (rest + mean))

    with_it = forward(tied)
    monkeypatch.setattr(stages, "sink", lambda _: None)
    without = forward(tied)
    assert len(with_it.temporaries) <= len(without.temporaries)


def reductions(function: Callable[[Tensor, Tensor], Tensor]) -> int:
    return sum(len(stage.reduced) for stage in forward(function).stages)


def of_row(value: Tensor) -> Tensor:
    return value.sum(-1, keepdim=True)


def test_sums_that_are_added_up_are_one() -> None:
    def three(a: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(a * (of_row(a * h) + h[:, :1] + of_row(h * h) + of_row(a)))

    def beside_others(a: Tensor, h: Tensor) -> Tensor:
        parts = of_row(a[:, :4]) + of_row(h[:, 4:])  # of other units, but as many
        return torch.tanh(a * (parts + of_row(a * h) + of_row(h * h)))

    assert reductions(three) == 1
    assert reductions(beside_others) == 2
    for function in (three, beside_others):
        layer = flexrnn.FlexRNN(Cell, H, H, function=function, dtype=torch.float64)
        x, found = torch.randn(3, 2, H, dtype=torch.float64), []
        for engine in ("reference", "cpu"):
            with flexrnn.backend(engine):
                output = layer(x)[0]
            found.append((output, *torch.autograd.grad(output.sum(), list(layer.parameters()))))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_a_sum_that_is_read_elsewhere_too_stays_one_of_its_own() -> None:
    def read_twice(a: Tensor, h: Tensor) -> Tensor:
        first, second = of_row(a * h), of_row(h * h)
        return torch.tanh(a * (first + second) + first)

    def maxima(a: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(a * (a.amax(-1, keepdim=True) + h.amax(-1, keepdim=True)))

    assert reductions(read_twice) == 2
    assert reductions(maxima) == 2


def test_what_is_doubled_again_and_again_is_looked_at_once() -> None:
    def doubled(a: Tensor, h: Tensor) -> Tensor:
        a = a * 1e-9
        for _ in range(40):
            a = a + a
        return torch.tanh(a + of_row(h) + of_row(h))

    assert reductions(doubled) == 1
