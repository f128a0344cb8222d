"""The order in which `auto` tries engines."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flexrnn.engine import engines


def on(device: str, dtype: torch.dtype) -> Any:
    """What the order of engines looks at, of a tensor that need not be here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, is_cpu=device == "cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float32, ("cpu", "reference")),
        ("cpu", torch.bfloat16, ("reference",)),
        ("cuda", torch.float32, ("cuda", "reference")),
        ("cuda", torch.float16, ("cuda", "reference")),
        ("cuda", torch.complex64, ("reference",)),
        ("meta", torch.float32, ("reference",)),
    ],
)
def test_the_order_of_engines(device: str, dtype: torch.dtype, expected: tuple[str, ...]) -> None:
    like = on(device, dtype)
    assert engines.chain("auto", like) == expected
    assert engines.chain("auto", like, 1) == ("reference",)
    assert engines.casts("auto", like) == (expected[0] == "cuda")
