"""Writes to units by number or by a mask, and what is added to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn

from .written import halves


def by_lists(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + h
    y[:, [0, 2]] = h[:, :2] * h[:, 2:]
    y[..., [3, -3]] *= c.b[:2]
    y[:, [True, False, False, True]] += h[:, 1:3]
    y[:, range(2)] = 0.5
    return y * h


def by_numbers(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + h
    y[:, c.places[:2]] = (h * h)[:, 1:3]
    y[..., torch.tensor([3])] -= h[:, :1]
    y[:, c.places[2:].int()] = c.b[1:2]
    return y * h


def by_masks(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, z = x @ c.W + h, (x @ c.W) * h
    y[:, c.mask] = (h * h)[:, 1:]
    y[:, ~c.mask] = 0.25
    z[:, c.mask] = c.b[:3]
    return y * z


def of_heads(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = halves(x @ c.W + h).clone()
    y[:, [1]] = halves(h)[:, :1]
    y[:, :, [1, 0]] = halves(h * h)
    y[:, 0, [1, 0]] = h[:, :2]
    y[:, c.places[1:3] % 2, 1] = h[:, 1:3] * 3
    return y.flatten(1) * h


def several_times(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Of several values for one unit the last stays."""
    y = x @ c.W + h
    y[:, [0, 0]] = h[:, :2].detach()
    y[:, torch.tensor([3, 1, 3])] = h[:, 1:].detach()
    return y * h


def of_truth(c: Any, x: Tensor, h: Tensor) -> Tensor:
    chosen = h > 0
    chosen[:, [0, 1]] = True
    chosen[:, c.places[:1]] = False
    return x @ c.W + h * chosen


def of_weights(c: Any, x: Tensor, h: Tensor) -> Tensor:
    weight = c.U.clone()
    weight[[0, 2]] = 0.0
    weight[:, c.mask] = c.V[:, 1:]
    return x @ c.W + h @ weight


def of_weights_by_masks(c: Any, x: Tensor, h: Tensor) -> Tensor:
    weight = c.U.clone()
    weight[c.U.abs() > 1] = 0.0
    weight[c.U[:, 0] > 0] = c.b
    return x @ c.W + h @ weight


def of_rows(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Rows that are done begin anew."""
    y, z = x @ c.W + h, halves(h).clone()
    y[h[:, 0] > 0] = 0.5
    y[h[:, 1] > 0] = c.b
    z[halves(h)[..., 0] > 0] = c.b[:2]
    z[z > 1] = c.one
    return y * z.flatten(1)


def by_name(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, z = x @ c.W + h, halves(h).clone()
    y = y.index_copy(1, c.places[:2], h[:, 1:3]) * y.index_add(-1, c.places[1:], h[:, 1:], alpha=2)
    z.index_copy_(1, torch.tensor([1]), halves(h * h)[:, :1])
    z.index_add_(2, torch.tensor([0, 0, 1]), torch.cat([halves(h), halves(h)[..., :1]], -1))
    return y + z.flatten(1)


def filled(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x @ c.W + h
    y.index_fill_(1, c.places[:1], 0.5)
    return y * h.index_fill(-1, c.places[1:], c.one) + halves(h).index_fill(
        1, torch.tensor([-1]), 0.25
    ).flatten(1)


def of_two_axes(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """An antisymmetric matrix of each row, and one whose diagonal is another."""
    turning, square = h.new_zeros(h.shape[0], 4, 4), (h[:, :, None] * h[:, None]).clone()
    rows, columns = torch.triu_indices(4, 4, 1)
    turning[:, rows, columns] = torch.cat([h, x[:, :2]], 1)
    turning = turning - turning.mT
    square[:, c.places, c.places] *= c.b
    square[..., [0, -1], [1, 1]] = 0.5
    return ((turning + square) @ h[..., None]).squeeze(-1) + x @ c.W


WRITTEN: dict[str, Callable[..., Any]] = {
    "of two axes": of_two_axes,
    "by lists": by_lists,
    "by numbers": by_numbers,
    "by masks": by_masks,
    "units of heads": of_heads,
    "several values for one unit": several_times,
    "truth values": of_truth,
    "units of weights": of_weights,
    "of weights by masks": of_weights_by_masks,
    "rows, by a mask": of_rows,
    "index_copy and index_add": by_name,
    "index_fill": filled,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def by_a_wrong_mask(c: Any, z: Tensor, h: Tensor) -> Tensor:
    z = z.tanh()
    z[:, c.few] = h[:, :2]
    return z


def by_wrong_numbers(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return z.index_copy(1, c.far, h[:, :1])


def of_truth_values(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return torch.where((h >= 0)[:, c.far], z.tanh(), h)


@pytest.mark.parametrize("function", [by_a_wrong_mask, by_wrong_numbers, of_truth_values])
def test_what_does_not_fit_is_an_error(function: Any, function_layer: Any) -> None:
    """By the engine, too: the step can be compiled, and only its numbers are wrong."""
    layer = function_layer(function)
    layer.cells[0].register_buffer("few", torch.tensor([True, True, False, True, False]))
    layer.cells[0].register_buffer("far", torch.tensor([7]))
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    assert flexrnn.explain(layer, x).steps[0].program is not None
    for engine in ("reference", "cpu"):
        with flexrnn.backend(engine), pytest.raises((RuntimeError, IndexError)):
            layer(x)
