"""Odd cells by Triton's compiler, which wants more of shapes and types than its interpreter."""

from typing import Any

import pytest
import torch

from tests.engine.cuda import odd
from tests.engine.cuda.apart.test_compiled import HOPPER, SHARED, cache, compiled, loops

__all__ = ["cache"]

NARROW, WIDE = 32, 200  # units: their state stays in registers; or there are tiles
CASES = [
    (odd.ShortAndLong, WIDE),
    (odd.Joined, WIDE),
    (odd.Everywhere, NARROW),
    (odd.Seen, NARROW),
    (odd.Multiplied, NARROW),
    (odd.OneNumber, NARROW),
    (odd.OneNumber, WIDE),
]


@pytest.mark.parametrize(("cell", "units"), CASES)
def test_kernels_compile_and_fit(cell: Any, units: int) -> None:
    for loop in loops(cell, units, torch.float32):
        made = compiled(loop, HOPPER, 4, by_value=False, ragged=False)
        assert all(shared <= SHARED for shared, _ in made.values())
