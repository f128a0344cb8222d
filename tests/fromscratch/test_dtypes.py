"""Any float dtype, any device: results follow x, and half types err as their rounding does."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

Layer = NaiveCustomLSTM | CustomLSTM

every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)


@every_dtype
@pytest.mark.parametrize("with_states", [True, False], ids=["states", "zeros"])
def test_results_and_gradients_have_the_dtype_of_x(
    make: Callable[[int, int], Layer], dtype: torch.dtype, with_states: bool
) -> None:
    golden = make(3, 5).double()
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    states = torch.randn(2, 2, 5, dtype=torch.float64)
    expected, (h_T, c_T) = golden(x, tuple(states) if with_states else None)

    layer = make(3, 5)
    layer.load_state_dict(golden.state_dict())
    layer = layer.to(dtype)
    ours, (our_h, our_c) = layer(x.to(dtype), tuple(states.to(dtype)) if with_states else None)
    ours.sum().backward()

    # Values are about 1 and the sums short, so a few dozen units of rounding are a wide allowance.
    allowed = 32 * torch.finfo(dtype).eps
    for got, want in ((ours, expected), (our_h, h_T), (our_c, c_T)):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=allowed, atol=allowed)
    assert ours.is_contiguous()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()


def test_meta_device_gives_shapes(make: Callable[[int, int], Layer]) -> None:
    layer = make(3, 5).to("meta")
    x = torch.empty(2, 7, 3, device="meta")
    for states in (None, (torch.empty(2, 5, device="meta"), torch.empty(2, 5, device="meta"))):
        hidden_seq, (h_T, c_T) = layer(x, states)
        assert hidden_seq.shape == (2, 7, 5)
        assert h_T.shape == c_T.shape == (2, 5)
        assert hidden_seq.device.type == h_T.device.type == c_T.device.type == "meta"


def test_default_states_ignore_the_default_dtype(make: Callable[[int, int], Layer]) -> None:
    """Zeros come in x's dtype, whatever `torch.set_default_dtype` says."""
    layer, x = make(3, 5), torch.randn(2, 7, 3)
    torch.set_default_dtype(torch.float64)
    try:
        results = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert results[0].dtype == results[1][0].dtype == results[1][1].dtype == torch.float32


def test_autocast_carries_states_between_calls(make: Callable[[int, int], Layer]) -> None:
    """Under autocast x may be narrower than the states that the last call returned."""
    layer, x = make(3, 5), torch.randn(2, 7, 3)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = nn.Linear(3, 3)(x)
        assert narrow.dtype == torch.bfloat16
        first, states = layer(narrow)
        second, _ = layer(narrow, states)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_one_compiled_graph(make: Callable[[int, int], Layer]) -> None:
    """Nothing in forward breaks `torch.compile`'s graph."""
    layer, x = make(3, 5), torch.randn(2, 4, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])
