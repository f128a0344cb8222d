"""Generated loops against the reference: values and every gradient, at odd sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn import cells

CELLS = [
    cells.LSTMCell,
    cells.GRUCell,
    cells.RNNCell,
    cells.PeepholeLSTMCell,
    cells.ArticlePeepholeLSTMCell,
    cells.NaiveLSTMCell,
    cells.LayerNormLSTMCell,
]
SIZES = [(5, 3, 7, 9), (3, 1, 4, 16), (2, 13, 33, 40), (1, 2, 1, 1), (4, 9, 16, 35)]  # T, B, I, H


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors(part)]


def results(layer: flexrnn.FlexRNN, x: Tensor, engine: str, **marks: Any) -> list[Tensor]:
    """Output, final states and every gradient, by a named engine."""
    with flexrnn.backend(engine):
        out = tensors(layer(x, **marks))
    loss = sum((torch.linspace(-1, 1, o.numel(), dtype=o.dtype) * o.flatten()).sum() for o in out)
    assert isinstance(loss, Tensor)
    return [*out, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.__name__)
def test_numbers_are_the_references(cell: Any, size: tuple[int, int, int, int]) -> None:
    T, B, I, H = size
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(cell, I, H, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    expected = results(layer, x, "reference")
    for ours, theirs in zip(results(layer, x, "cpu"), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-11 * theirs.norm() + 1e-13


def test_lengths_and_resets_are_loops_like_any_other() -> None:
    torch.manual_seed(0)
    layer = flexrnn.LSTM(5, 11, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    marks = {"lengths": torch.tensor([6, 2, 5, 1]), "reset": torch.rand(6, 4) < 0.3}
    expected = results(layer, x, "reference", **marks)
    for ours, theirs in zip(results(layer, x, "cpu", **marks), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_float32_is_as_exact_as_the_reference() -> None:
    torch.manual_seed(0)
    layer = flexrnn.LSTM(17, 37)
    x = torch.randn(9, 5, 17, requires_grad=True)
    ours, theirs = results(layer, x, "cpu"), results(layer, x, "reference")
    golden = results(layer.double(), x.detach().double().requires_grad_(), "reference")
    for a, b, exact in zip(ours, theirs, golden, strict=True):
        error = (a - exact).norm() / exact.norm()
        assert error <= 2 * (b - exact).norm() / exact.norm() + 1e-7


def test_no_gradient_means_no_backward_and_the_same_numbers() -> None:
    layer = flexrnn.GRU(3, 5)
    x = torch.randn(4, 2, 3)
    with torch.no_grad(), flexrnn.backend("cpu"):
        output, state = layer(x)
    expected, expected_state = layer(x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(state, expected_state)


def test_half_types_are_refused_by_name() -> None:
    layer = flexrnn.GRU(3, 5, dtype=torch.bfloat16, backend="cpu")
    with pytest.raises(RuntimeError, match="float32 and float64"):
        layer(torch.randn(4, 2, 3, dtype=torch.bfloat16))
