"""Odd cells by the cuda engine, in every tier; `apart/test_compiled.py` compiles them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import flexrnn

from .odd import ODD, Matrices, Multiplied, OneNumber

CASES = [
    *((cell, 37) for cell in ODD),
    (OneNumber, 1),
    (OneNumber, 16),
    (Multiplied, 16),
    (Matrices, 70),
]


@pytest.mark.parametrize(("cell", "units"), CASES)
def test_the_reference_agrees(
    cell: Any, units: int, judge: Callable[..., None], device: str, tier: str
) -> None:
    layer = flexrnn.FlexRNN(cell, 3, units, dtype=torch.float64, device=device)
    judge(layer, torch.randn(3, 2, 3, dtype=torch.float64, device=device))
