# pyright: reportPrivateUsage=false
# Caches of Dynamo have no public name.
"""A layer that is gone takes its cells with it, whatever ran them."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn import cells

T, B, I, H = 4, 3, 2, 5

LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": flexrnn.LSTM,
    "layers and directions": partial(flexrnn.GRU, num_layers=2, bidirectional=True),
    "modules inside": flexrnn.LayerNormLSTM,
    "naive": flexrnn.NaiveLSTM,
    "zoneout": partial(flexrnn.FlexRNN, cells.PeepholeLSTMCell, zoneout=0.1),
    "dropout": partial(flexrnn.FlexRNN, cells.LSTMCell, recurrent_dropout=0.1, weight_drop=0.1),
    "segments": partial(flexrnn.FlexRNN, cells.LSTMCell, checkpoint_every=2),
    "learned state": partial(flexrnn.FlexRNN, cells.RNNCell, learn_initial_state=True),
}


def trained(layer: Any, x: Tensor) -> None:
    for _ in range(3):  # what has run before may be prepared
        layer(x)[0].sum().backward()


def run(layer: Any, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(3):
            layer(x)


def stepped(layer: Any, x: Tensor) -> None:
    if layer.bidirectional or layer.training:
        return
    with torch.no_grad():
        state = None
        for _ in range(3):
            _, state = layer.step(x[0], state)


def of_lengths(layer: Any, x: Tensor) -> None:
    layer(x, lengths=torch.tensor([2, T, 1]))[0].sum().backward()


CALLS: list[Callable[[Any, Tensor], None]] = [trained, run, stepped, of_lengths]


@pytest.fixture(scope="module", autouse=True)
def a_collection_is_quick() -> None:
    """It looks at what is new: not again and again at all modules, which takes half a second."""
    gc.collect()
    gc.freeze()  # until the last test has run: see conftest.py


def assert_collected(make: Callable[..., Any], call: Callable[[Any, Tensor], None]) -> None:
    layer = make(I, H).train(call is not stepped)
    alive = [ref(layer), *(ref(module) for module in layer.modules())]
    call(layer, torch.randn(T, B, I, requires_grad=True))
    del layer
    gc.collect()
    assert [gone() for gone in alive if gone() is not None] == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("engine", ["reference", "interpreter", "cpu", "auto"])
def test_a_layer_and_its_cells_are_collected(
    engine: str, name: str, call: Callable[[Any, Tensor], None]
) -> None:
    with flexrnn.backend(engine):
        assert_collected(LAYERS[name], call)


@pytest.mark.parametrize("call", [trained, run])
def test_also_after_torchs_own_kernels(call: Callable[[Any, Tensor], None]) -> None:
    with flexrnn.backend("torch"):
        assert_collected(flexrnn.LSTM, call)


def test_also_after_compiled_code_is_gone() -> None:
    def compiled(layer: Any, x: Tensor) -> None:
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0].sum().backward()
        torch._dynamo.reset()

    with flexrnn.backend("cpu"):
        assert_collected(flexrnn.LSTM, compiled)


def test_another_layer_in_its_place_is_known_by_itself() -> None:
    """Addresses are used again; what was found out about the one must not be said of the other."""
    x = torch.randn(T, B, I, dtype=torch.float64)
    for k in range(20):
        make = (flexrnn.RNN, partial(flexrnn.RNN, nonlinearity="relu"))[k % 2]
        layer, results = make(I, H, dtype=torch.float64), []
        for engine in ("interpreter", "reference"):
            with flexrnn.backend(engine):
                results.append(layer(x)[0])
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
        del layer
