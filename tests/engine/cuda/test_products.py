"""What products multiply: float32 as torch's switch says; and which warp which columns."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import tiers

triton = pytest.importorskip("triton", reason="Triton is not installed")


def test_tf32_is_the_nearest_number_of_ten_bits(device: str) -> None:
    from flexrnn.engine.cuda import kernels

    run = kernels.module("""
@jit
def rounded(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, nearest_tf32(tl.load(x + i)))
""")["rounded"]
    x = torch.cat([torch.randn(500) * 10.0 ** torch.randint(-30, 30, (500,)), torch.zeros(12)])
    x = x.to(device)
    y = torch.empty_like(x)
    run[(1,)](x, y, N=512)
    mantissa, exponent = torch.frexp(x.double())
    nearest = torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)  # one bit before the point
    torch.testing.assert_close(y.double(), nearest, rtol=0, atol=0)
    assert not torch.equal(x, y)
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001] + [0] * 509, dtype=torch.int32)
    run[(1,)](nan.view(torch.float32).to(device), y, N=512)
    assert y[:3].isnan().all()  # those of a card among them


@pytest.mark.parametrize(
    ("dtype", "hidden_size", "shares"),
    [(torch.float64, 60, "WARPS"), (torch.bfloat16, 40, "WARPS if WARPS <= 4 else 1")],
)
def test_columns_that_warps_share_out(
    dtype: torch.dtype,
    hidden_size: int,
    shares: str,
    judge: Callable[..., None],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the gates' gradients, of which the last piece is not full."""
    (grid,) = (tier for tier in tiers.TIERS if tier.name == "grid")
    seen: list[str] = []

    def launch(source: Any, memory: Any, call: Any) -> None:
        seen.append(source.grid.text)
        grid.launch(source, memory, call)

    monkeypatch.setattr(tiers, "TIERS", (grid._replace(launch=launch),))
    monkeypatch.setattr(tiers, "WIDTHS", (16,))
    layer = flexrnn.LSTM(5, hidden_size, dtype=dtype, device=device)
    judge(layer, torch.randn(3, 2, 5, dtype=dtype, device=device))
    forward, backward, *_ = seen
    assert "together(" not in forward
    (found,) = re.findall(r"shares0: tl.constexpr = (.*)", backward)
    assert found == shares
