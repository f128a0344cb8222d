"""The battery: generated loops against the reference, in values and every gradient.

`judge` says how exact. It runs with 1, 2 and 3 threads, which share rows or, where there are fewer
rows than threads, units.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import plan
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.fields import field_sizes

Judge = Callable[..., None]
DOUBLE, SINGLE = DTYPES = (torch.float64, torch.float32)
SIZES = [(5, 3, 7, 9), (1, 2, 1, 1), (4, 13, 33, 40), (3, 1, 4, 16), (11, 1, 2, 33)]  # T, B, I, H
CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (cells.LSTMCell, {}),
    "projection": (cells.LSTMCell, {"proj_size": 2}),
    "GRU": (cells.GRUCell, {}),
    "RNN": (cells.RNNCell, {}),
    "peephole": (cells.PeepholeLSTMCell, {}),
    "article's peephole": (cells.ArticlePeepholeLSTMCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
}
# Below it there is no layer: a projection is narrower than H, and of one unit's norm nothing
# is left but rounding.
NARROWEST = {"projection": 3, "layer norm": 3}


def operands(layer: flexrnn.FlexRNN, T: int, B: int) -> tuple[Tensor, Any]:
    """An input `(T, B, I)`, and a state before the first step."""
    widths = field_sizes(layer.cells[0])
    dtype = layer.all_weights[0][0].dtype
    hx = tuple(torch.randn(len(layer.cells), B, width, dtype=dtype) for width in widths)
    return torch.randn(T, B, layer.input_size, dtype=dtype), hx


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(judge: Judge, name: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    (cell, options), (T, B, I, H) = CELLS[name], size
    layer = flexrnn.FlexRNN(cell, I, max(H, NARROWEST.get(name, 1)), dtype=dtype, **options)
    judge(layer, *operands(layer, T, B))


T, B, I, H = 10, 4, 3, 11
LENGTHS = {"lengths": torch.tensor([10, 2, 5, 1])}
NOTHING = {"lengths": torch.tensor([0, 7, 0, 7]), "return_states": True}
RESET = {"reset": torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.3}
FEATURES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "two layers in two directions": (
        cells.LSTMCell,
        {"num_layers": 2, "bidirectional": True},
        {"return_states": True},
    ),
    "projection in two directions": (
        cells.LSTMCell,
        {"num_layers": 2, "bidirectional": True, "proj_size": 4},
        {},
    ),
    "lengths": (cells.GRUCell, {"bidirectional": True}, {**LENGTHS, "return_states": True}),
    "lengths and dropout": (
        cells.LSTMCell,
        {
            "num_layers": 2,
            "bidirectional": True,
            "dropout": 0.3,
            "recurrent_dropout": 0.3,
            "zoneout": 0.2,
        },
        {**LENGTHS, **RESET},
    ),
    "lengths of which some are 0": (cells.LayerNormLSTMCell, {"bidirectional": True}, NOTHING),
    "resets": (cells.PeepholeLSTMCell, {"bidirectional": True}, RESET),
    "zoneout": (cells.LSTMCell, {"zoneout": {"c": 0.3}}, {}),
    "zoneout's expectation": (cells.LSTMCell, {"zoneout": 0.2}, {}),
    "recurrent dropout": (cells.LSTMCell, {"recurrent_dropout": 0.4}, {}),
    "weight drop, no bias": (cells.RNNCell, {"weight_drop": 0.4, "bias": False}, {}),
    "learned initial state": (cells.GRUCell, {"learn_initial_state": True}, RESET),
    "checkpoints": (cells.GRUCell, {"checkpoint_every": 3, "bidirectional": True}, {}),
    "all together": (
        cells.LayerNormLSTMCell,
        {
            "bidirectional": True,
            "num_layers": 2,
            "zoneout": 0.2,
            "recurrent_dropout": 0.3,
            "learn_initial_state": True,
            "checkpoint_every": 3,
        },
        {**LENGTHS, **RESET, "return_states": True},
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature(judge: Judge, name: str) -> None:
    cell, options, marks = FEATURES[name]
    layer = flexrnn.FlexRNN(cell, I, H, dtype=DOUBLE, **options)
    layer.train(name != "zoneout's expectation")
    x, hx = operands(layer, T, B)
    judge(layer, x, None if options.get("learn_initial_state") else hx, **marks)


def test_everything_in_float32(judge: Judge) -> None:
    cell, options, marks = FEATURES["all together"]
    # Masks of recurrent dropout are drawn in the dtype: other numbers in another.
    options = {**options, "recurrent_dropout": 0.0, "num_layers": 1}
    layer = flexrnn.FlexRNN(cell, I, H, **options)
    judge(layer, operands(layer, T, B)[0], **marks)


def test_one_row_has_lengths_and_resets_too(judge: Judge) -> None:
    layer = flexrnn.LSTM(I, H, bidirectional=True, dtype=DOUBLE)
    marks = {"lengths": LENGTHS["lengths"][2:3], "reset": RESET["reset"][:, :1]}
    judge(layer, *operands(layer, T, 1), **marks)


def test_each_set_of_instructions(judge: Judge, isa: Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXRNN_ISA", isa.name)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    for cell in (cells.LSTMCell, cells.LayerNormLSTMCell):
        layer = flexrnn.FlexRNN(cell, 3, 13)
        judge(layer, *operands(layer, 4, 7))


def test_operands_that_lie_in_memory_as_they_like(judge: Judge) -> None:
    layer = flexrnn.LSTM(I, H, dtype=DOUBLE)
    x, (h, c) = operands(layer, T, B)
    spread = torch.randn(H, 1, B, dtype=DOUBLE).permute(1, 2, 0)
    judge(layer, x.transpose(0, 1).contiguous().transpose(0, 1), (spread, c))
    judge(layer, torch.randn(I, T, B, dtype=DOUBLE).permute(1, 2, 0), (h, spread))
    judge(layer, torch.randn(T, B, 2 * I, dtype=DOUBLE)[..., ::2], (h, c))


def test_gradients_that_lie_in_memory_as_they_like() -> None:
    layer = flexrnn.GRU(I, H, dtype=DOUBLE)
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    for loss in (
        lambda o: o.sum(),  # one number for all
        lambda o: (o.sum((0, 1)) * torch.arange(H)).sum(),  # one row for all
        lambda o: (o.transpose(0, 2) * torch.randn(H, B, T, dtype=DOUBLE)).sum(),
        lambda o: o[2:5, 1:].square().sum(),
        lambda o: o[-1].sum(),
    ):
        found = []
        for name in ("cpu", "reference"):
            torch.manual_seed(2)
            with flexrnn.backend(name):
                value = loss(layer(x)[0])
            found.append(torch.autograd.grad(value, [x, *layer.parameters()]))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_only_what_learns_has_a_gradient() -> None:
    layer = flexrnn.LSTM(I, H, dtype=DOUBLE)
    layer.weight_hh_l0.requires_grad_(False)
    layer.bias_ih_l0.requires_grad_(False)
    x, found = torch.randn(T, B, I, dtype=DOUBLE), []
    for name in ("cpu", "reference"):
        with flexrnn.backend(name):
            loss = layer(x)[0].square().sum()
        learns = [p for p in layer.parameters() if p.requires_grad]
        found.append([loss, *torch.autograd.grad(loss, learns)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)


def test_no_gradient_means_no_backward_and_the_same_numbers() -> None:
    layer, x = flexrnn.GRU(3, 5, dtype=DOUBLE), torch.randn(4, 2, 3, dtype=DOUBLE)
    with torch.no_grad(), flexrnn.backend("cpu"):
        found = layer(x)
    with flexrnn.backend("reference"):
        torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.GRUCell], ids=["LSTM", "GRU"])
def test_weights_above_4_mib(judge: Judge, cell: Any) -> None:
    """Threads share units then, and sums have many terms."""
    layer = flexrnn.FlexRNN(cell, 40, 777)
    judge(layer, *operands(layer, 3, 9))
    judge(layer, *operands(layer, 2, 3))
