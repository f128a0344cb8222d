"""What only a card shows: graphs and streams of the caller's, compiled layers, and races."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn

pytestmark = [
    pytest.mark.card,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card"),
    # What torch tells of its own: gradients across streams, and weights that cuDNN copies.
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream"),
    pytest.mark.filterwarnings("ignore:RNN module weights are not part"),
]
T, B, H = 33, 5, 200
CELLS = [flexrnn.cells.LSTMCell, flexrnn.cells.LayerNormLSTMCell]


def layer_and_input(cell: Any = CELLS[0], **kind: Any) -> tuple[flexrnn.FlexRNN, Tensor]:
    layer = flexrnn.FlexRNN(cell, H, H, device="cuda", backend="cuda", **kind)
    return layer, torch.randn(T, B, H, device="cuda", **kind)


def trained(layer: Any, x: Tensor) -> list[Tensor]:
    """Output, and every gradient of a sum of it."""
    x = x.detach().requires_grad_()
    output = layer(x)[0]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]


def by_reference(layer: flexrnn.FlexRNN, x: Tensor) -> list[Tensor]:
    layer = copy.deepcopy(layer)
    layer.backend = "reference"
    return trained(layer, x)


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_again_and_again(cell: Any, tier: str) -> None:
    """Where programs race, they do not do so alike."""
    layer, x = layer_and_input(cell, dtype=torch.bfloat16)
    first = trained(layer, x)
    for _ in range(20):
        assert_close(trained(layer, x), first, rtol=0, atol=0)


def test_a_layer_is_recorded_in_a_graph_of_the_callers(tier: str) -> None:
    layer, x = layer_and_input(dtype=torch.float64)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        trained(layer, x)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = trained(layer, x)
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert_close(found, by_reference(layer, x), rtol=1e-10, atol=1e-12)


def test_streams_of_the_callers(tier: str) -> None:
    """Two at a time; what one has enqueued before is seen."""
    layer, x = layer_and_input(dtype=torch.float64)
    expected = by_reference(layer, 2 * x)
    streams, found = [torch.cuda.Stream() for _ in range(2)], []
    torch.cuda.synchronize()
    for _ in range(3):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(trained(layer, x + x))
    torch.cuda.synchronize()
    for results in found:
        assert_close(results, expected, rtol=1e-10, atol=1e-12)


def test_a_device_that_is_not_current(tier: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    layer, x = layer_and_input(dtype=torch.float64)
    expected = by_reference(layer, x)
    with torch.cuda.device(1):
        found = trained(layer, x)
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_compiled_layer_is_one_graph(tier: str) -> None:
    layer, x = layer_and_input(dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True)
    for given in (x, torch.cat([x, x])):
        x_, weights = given.detach().requires_grad_(), list(layer.parameters())
        output = compiled(x_)[0]
        found = [output, *torch.autograd.grad(output.square().sum(), [x_, *weights])]
        assert_close(found, by_reference(layer, given), rtol=1e-10, atol=1e-12)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [flexrnn.LSTM, flexrnn.GRU, flexrnn.RNN])
def test_torchs_own_kernels(kind: Any) -> None:
    layer = kind(H, H, num_layers=2, bidirectional=True, device="cuda", dtype=torch.float64)
    x = torch.randn(T, B, H, device="cuda", dtype=torch.float64)
    layer.backend = "torch"
    assert_close(trained(layer, x), by_reference(layer, x), rtol=1e-9, atol=1e-11)
