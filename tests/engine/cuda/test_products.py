"""What products multiply: float32 as torch's switch says."""

import pytest
import torch

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
