"""How torch multiplies after a loop: the right numbers on both sides of every border."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import pytest
import torch
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.engine.cpu import after, plan

DOUBLE = torch.float64
T, I, H = 6, 70, 5


@pytest.mark.parametrize("few", [0, 1 << 40])
@pytest.mark.parametrize("long", [0, 1 << 40])
@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.NaiveLSTMCell])
@pytest.mark.parametrize("B", [1, 3])
def test_however_they_are_done(
    judge: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cell: type[flexrnn.Cell],
    few: int,
    long: int,
    B: int,
) -> None:
    """By large products or small ones side by side, turned over or not; columns and weights few."""
    monkeypatch.setattr(after, "_FEW", few)
    monkeypatch.setattr(after, "_LONG", long)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())  # laid out anew
    for size, width in ((I, H), (3, 70)):
        layer = FlexRNN(cell, size, width, dtype=DOUBLE, bidirectional=True)
        hx = tuple(torch.randn(2, B, width, dtype=DOUBLE) for _ in range(2))
        judge(layer, torch.randn(T, B, size, dtype=DOUBLE), hx)


def test_gradients_of_parameters_lie_in_one_piece() -> None:
    layer = FlexRNN(cells.NaiveLSTMCell, I, H, dtype=DOUBLE)
    x = torch.randn(T, 2, I, dtype=DOUBLE)
    params = list(layer.parameters())
    found = torch.autograd.grad(layer(x)[0].square().sum(), params)
    assert all(gradient.is_contiguous() for gradient in found)
    with flexrnn.backend("reference"):
        expected = torch.autograd.grad(layer(x)[0].square().sum(), params)
    assert_close(found, expected, rtol=1e-11, atol=1e-13)
    kept = [gradient.clone() for gradient in found]
    found[0].zero_()  # though several lie in one memory, each has its own place there
    assert_close(list(found[1:]), kept[1:], rtol=0, atol=0)
