"""Odd cells by Triton's compiler, which wants more of shapes and types than its interpreter."""

from typing import Any

import pytest
import torch

from tests.engine.cuda.apart.test_compiled import HOPPER, SHARED, cache, compiled, loops
from tests.engine.cuda.odd import ODD, Everywhere, ShortAndLong

__all__ = ["cache"]


@pytest.mark.parametrize("cell", ODD, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("units", [32, 200])
def test_kernels_compile_and_fit(cell: Any, units: int) -> None:
    dtype = torch.bfloat16 if cell in (ShortAndLong, Everywhere) else torch.float32
    for loop in loops(cell, units, dtype):
        made = compiled(loop, HOPPER, dtype.itemsize, by_value=False, ragged=False)
        assert all(shared <= SHARED for shared, _ in made.values())
