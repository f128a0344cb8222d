"""Under autocast: the dtypes, the tolerance rule, and that autocast is off where a program runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import cells

from ..autocasted import Autocast

T, B, I, H = 3, 3, 5, 9
CASES = [
    (cells.LSTMCell, torch.bfloat16),
    (cells.LSTMCell, torch.float16),
    (cells.PeepholeLSTMCell, torch.bfloat16),
    (cells.LayerNormLSTMCell, torch.bfloat16),
]


def operands(layer: flexrnn.FlexRNN, device: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    fields = len(layer.cells[0].State._fields)  # pyright: ignore
    layers = layer.num_layers * layer.num_directions
    state = tuple(torch.randn(layers, B, H, device=device) for _ in range(fields))
    return torch.randn(T, B, I, device=device), state


@pytest.mark.parametrize(("cell", "half"), CASES)
def test_it_keeps_to_the_tolerance_rule(
    cell: Any, half: torch.dtype, judge: Callable[..., None], device: str
) -> None:
    layer = Autocast(cell, I, H, device=device)
    layer.casts_to = half
    judge(layer, *operands(layer, device), dtype=half)


def test_so_it_does_with_everything_that_a_layer_adds(
    judge: Callable[..., None], device: str
) -> None:
    options: dict[str, Any] = {"zoneout": 0.3, "recurrent_dropout": 0.5, "checkpoint_every": 2}
    layer = Autocast(cells.GRUCell, I, H, bidirectional=True, device=device, **options)
    reset = torch.rand(T, B, device=device) < 0.3
    lengths = torch.tensor([2, 3, 1])
    judge(layer, *operands(layer, device), dtype=torch.bfloat16, lengths=lengths, reset=reset)


def called(layer: flexrnn.FlexRNN, x: Tensor, **options: Any) -> list[Tensor]:
    """Output, final states and states, by the cuda engine under autocast."""
    with flexrnn.backend("cuda"), torch.autocast(x.device.type, dtype=torch.bfloat16):
        output, final, states = layer(x, return_states=True, **options)
    return [output, *final, *states]


def test_results_are_of_autocasts_dtype_and_gradients_of_the_parameters(device: str) -> None:
    layer, x = flexrnn.LSTM(I, H, device=device), torch.randn(T, B, I, device=device)
    for given in (x, x.bfloat16()):
        results = called(layer, given)
        assert {t.dtype for t in results} == {torch.bfloat16}
    torch.stack([t.float().sum() for t in results]).sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


def test_float64_is_left_alone(device: str) -> None:
    layer = flexrnn.LSTM(I, H, device=device, dtype=torch.float64)
    x = torch.randn(T, B, I, device=device, dtype=torch.float64)
    with flexrnn.backend("reference"):
        right = layer(x)[0]
    assert_close(called(layer, x)[0], right, rtol=1e-12, atol=1e-13)


def test_a_half_layer_is_the_same_inside_and_outside(device: str) -> None:
    layer = flexrnn.GRU(I, H, device=device, dtype=torch.bfloat16, backend="cuda")
    x = torch.randn(T, B, I, device=device, dtype=torch.bfloat16)
    outside = layer(x)[0]
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = layer(x)[0]
    assert torch.equal(inside, outside)


def test_autocast_does_not_reach_a_backward_pass(device: str) -> None:
    """Nor that of a layer which was called outside of it."""
    for half in (None, torch.bfloat16):
        layer = flexrnn.LSTM(I, H, device=device, backend="cuda")
        x = torch.randn(T, B, I, device=device)
        found = []
        for enabled in (False, True):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half is not None):
                output = layer(x)[0]
            with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
                found.append(torch.autograd.grad(output, list(layer.parameters()), x.new_ones(
                    output.shape, dtype=output.dtype)))  # fmt: skip
        assert_close(*found, rtol=0, atol=0)


def test_gradients_have_gradients(device: str) -> None:
    layer = flexrnn.GRU(I, H, device=device, backend="cuda")
    x = torch.randn(T, B, I, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = layer(x)[0]
    (first,) = torch.autograd.grad(output.float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.dtype == second.dtype == torch.float32
    assert second.isfinite().all()
    assert second.any()


def test_scan_returns_the_state_in_its_own_dtype(device: str) -> None:
    def step(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.linear(h, w) + x)

    h, w, x = (torch.randn(*s, device=device) for s in ((B, H), (H, H), (T, B, H)))
    with flexrnn.backend("cuda"):
        exact, _ = flexrnn.scan(step, h, x, w)
        with torch.autocast(device, dtype=torch.bfloat16):
            states, final = flexrnn.scan(step, h, x, w)
    assert states.dtype == final.dtype == torch.float32
    assert not torch.equal(states, exact)
    assert (states - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()


def test_explain_knows(device: str) -> None:
    layer = flexrnn.LSTM(I, H, device=device, backend="cuda")
    x = torch.randn(T, B, I, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        told = flexrnn.explain(layer, x)
    assert told.engine == "cuda"
    assert told.steps[0].dtype == torch.bfloat16
    assert "tl.bfloat16" in told.steps[0].source


@pytest.mark.parametrize("inside", [True, False])
def test_the_operator_carries_it(inside: bool, device: str) -> None:
    """Whether a compiled function switches autocast on, or runs where it is on."""
    layer = flexrnn.LSTM(I, H, device=device, backend="cuda")
    x = torch.randn(T, B, I, device=device)

    def under(call: Any) -> list[Tensor]:
        with torch.autocast(device, dtype=torch.bfloat16):
            output, state = call(x)
        return [output, *state]

    def whole(x: Tensor) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return layer(x)

    compiled = torch.compile(whole if inside else layer, fullgraph=True, backend="aot_eager")
    found = (
        [*compiled(x)[1], compiled(x)[0]] if inside else [*under(compiled)[1:], under(compiled)[0]]
    )
    right = under(layer)
    assert_close(found, [*right[1:], right[0]], rtol=0, atol=0)
    parameters = list(layer.parameters())
    ours, theirs = (torch.autograd.grad(r.float().sum(), parameters) for r in (found[-1], right[0]))
    assert_close(ours, theirs, rtol=0, atol=0)
    torch.compiler.reset()
