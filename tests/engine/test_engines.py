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
        ("cpu", torch.bfloat16, ("cpu", "reference")),
        ("cpu", torch.complex64, ("reference",)),
        ("cuda", torch.float32, ("cuda", "reference")),
        ("cuda", torch.float16, ("cuda", "reference")),
        ("cuda", torch.complex64, ("reference",)),
        ("meta", torch.float32, ("reference",)),
    ],
)
def test_the_order_of_engines(device: str, dtype: torch.dtype, expected: tuple[str, ...]) -> None:
    like = on(device, dtype)
    assert engines.chain("auto", like) == expected
    half = device == "cpu" and dtype == torch.bfloat16  # which the two round otherwise
    assert engines.chain("auto", like, 1) == (expected if half else ("reference",))


@pytest.mark.parametrize("within", [torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_in_which_dtype_they_are_given_tensors(
    dtype: torch.dtype, within: torch.dtype | None
) -> None:
    like, casts = torch.zeros(1, dtype=dtype), dtype in (torch.float32, torch.bfloat16)
    with torch.autocast("cpu", within or torch.bfloat16, enabled=within is not None):
        assert engines.cast_to("cuda", like) == engines.cast_to("torch", like)
        assert engines.cast_to("cuda", like) == (within if casts else None)
        narrow = dtype == torch.bfloat16 or (casts and within is not None)
        assert engines.cast_to("cpu", like) == (torch.float32 if narrow else None)
        assert engines.cast_to("interpreter", like) is engines.cast_to("reference", like) is None
