"""Odd cells by the cuda engine, in every tier; `apart/test_odd_compiled.py` compiles them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import flexrnn

from .odd import ODD


@pytest.mark.parametrize("cell", ODD, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("units", [1, 16, 37])
def test_the_reference_agrees(
    cell: Any, units: int, judge: Callable[..., None], device: str, tier: str
) -> None:
    layer = flexrnn.FlexRNN(cell, 3, max(units, cell.width), dtype=torch.float64, device=device)
    judge(layer, torch.randn(3, 2, 3, dtype=torch.float64, device=device))
