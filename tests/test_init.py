# pyright: reportPrivateUsage=false
# No layer has blocks that are wider than high.
"""Initialisers set what they say, in every layer and direction, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells, init

I, H = 3, 5
WITH_F = [cells.LSTMCell, cells.PeepholeLSTMCell, cells.LayerNormLSTMCell,
          cells.ArticlePeepholeLSTMCell]  # fmt: skip


def build(cell: Any, **options: Any) -> FlexRNN:
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **options}
    return FlexRNN(cell, I, H, **options)


def parts(layer: FlexRNN, prefix: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in layer.named_parameters() if n.startswith(prefix)}


def biases(layer: FlexRNN) -> list[tuple[Tensor, ...]]:
    """The sum of the gates' biases, by gate, of every layer and direction."""
    sums: dict[str, Tensor] = {}
    for name, bias in parts(layer, "bias").items():
        place = name[name.index("_l") :]
        sums[place] = sums.get(place, torch.zeros_like(bias)) + bias
    return [total.chunk(4) for total in sums.values()]


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}])
def test_complex_blocks_become_unitary(options: dict[str, Any]) -> None:
    layer = init.orthogonal_(build(cells.LSTMCell, dtype=torch.complex128, **options), gain=2.0)
    for weight in parts(layer, "weight_hh").values():
        for block in weight.chunk(4):
            expected = 4 * torch.eye(block.shape[1], dtype=weight.dtype)
            assert_close(block.mH @ block, expected, rtol=1e-12, atol=1e-12)
            assert block.imag.any()


def test_wide_complex_blocks_have_orthonormal_rows() -> None:
    wide = init._orthogonal(torch.empty(2, 5, dtype=torch.complex64), 1.0)
    assert_close(wide @ wide.mH, torch.eye(2, dtype=wide.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "options", "blocks"),
    [
        (cells.LSTMCell, {}, 4),
        (cells.LSTMCell, {"proj_size": 2}, 4),
        (cells.GRUCell, {}, 3),
        (cells.RNNCell, {}, 1),
        (cells.LayerNormLSTMCell, {}, 4),
    ],
)
def test_every_recurrent_block_becomes_orthogonal(cell: Any, options: Any, blocks: int) -> None:
    layer = build(cell, **options)
    before = dict(layer.named_parameters())
    others = {n: p.detach().clone() for n, p in before.items() if not n.startswith("weight_hh")}
    assert init.orthogonal_(layer, gain=2.0) is layer
    weights = parts(layer, "weight_hh")
    assert len(weights) == 4
    for weight in weights.values():
        for block in weight.chunk(blocks):
            P = block.shape[1]  # H rows, P columns
            assert_close(block.T @ block, 4 * torch.eye(P).double(), rtol=1e-12, atol=1e-12)
    for name, parameter in layer.named_parameters():
        assert parameter is before[name]
        assert name not in others or torch.equal(parameter, others[name])


@pytest.mark.parametrize("cell", WITH_F)
def test_the_forget_gate_gets_its_bias(cell: Any) -> None:
    layer = build(cell)
    before = biases(layer)
    init.forget_bias_(layer, 1.5)
    for old, new in zip(before, biases(layer), strict=True):
        assert torch.equal(new[1], torch.full_like(new[1], 1.5))
        for k in (0, 2, 3):
            assert torch.equal(new[k], old[k])
    init.forget_bias_(layer)
    assert all(bool((f == 1).all()) for _, f, _, _ in biases(layer))


@pytest.mark.parametrize("cell", WITH_F)
def test_chrono_spreads_the_memories_of_the_units(cell: Any) -> None:
    layer = FlexRNN(cell, I, 4000, dtype=torch.float64)
    ((_, _, g, o),) = biases(layer)
    init.chrono_(layer, T_max=50)
    ((i, f, new_g, new_o),) = biases(layer)
    assert torch.equal(i, -f)
    spans = f.exp().sort().values  # uniform from 1 to 49
    assert_close(spans, torch.linspace(1, 49, 4000).double(), rtol=0, atol=2.5)
    assert torch.equal(g, new_g)
    assert torch.equal(o, new_o)


def test_layers_and_directions_are_drawn_each_by_itself() -> None:
    layer = init.chrono_(build(cells.LSTMCell), 20)
    drawn = [f for _, f, _, _ in biases(layer)]
    assert len({tuple(f.tolist()) for f in drawn}) == len(drawn) == 4


def test_a_cell_without_an_input_gate_gets_the_forget_bias_alone() -> None:
    class Janet(flexrnn.Cell):
        State = cells.HiddenState
        gates = ("f", "g")

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)
            self.inner = torch.nn.Linear(input_size, 2 * hidden_size, bias, device, dtype)

        def step(self, x: Tensor, state: Any) -> Any:
            f, g = self.inner(x).chunk(2, -1)
            return cells.HiddenState(f.sigmoid() * state.h + (1 - f.sigmoid()) * g.tanh())

    layer = FlexRNN(Janet, I, H)
    before = layer.get_parameter("inner_bias_l0").detach().clone()
    init.chrono_(layer, 10)
    f, g = layer.get_parameter("inner_bias_l0").detach().chunk(2)
    assert bool((f >= 0).all())
    assert torch.equal(g, before.chunk(2)[1])


def test_a_parametrized_weight_is_changed_through_its_parametrization() -> None:
    layer = flexrnn.RNN(I, H)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    init.orthogonal_(layer)
    W: Any = layer.weight_hh_l0
    assert_close(W.detach() @ W.detach().T, torch.eye(H))


def test_a_seed_repeats_them() -> None:
    def drawn() -> list[Tensor]:
        torch.manual_seed(3)
        layer = init.chrono_(init.orthogonal_(flexrnn.LSTM(I, H)), 9)
        return [p.detach() for p in layer.parameters()]

    assert_close(drawn(), drawn(), rtol=0, atol=0)


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: init.orthogonal_(flexrnn.NaiveLSTM(I, H)),
        ValueError,
        "orthogonal_: expected a cell with parameters weight_hh* of blocks of H rows, got "
        "NaiveLSTMCell with U_i, V_i, ...",
    ),
    (
        lambda: init.orthogonal_(flexrnn.ArticlePeepholeLSTM(I, H)),
        ValueError,
        "orthogonal_: ... ArticlePeepholeLSTMCell with weight_ih, weight_ch, bias_ih",
    ),
    (
        lambda: init.forget_bias_(flexrnn.GRU(I, H)),
        ValueError,
        "forget_bias_: expected a cell with a gate 'f', got GRUCell with gates ('r', 'z', 'n')",
    ),
    (
        lambda: init.chrono_(flexrnn.RNN(I, H), 10),
        ValueError,
        "chrono_: expected a cell with a gate 'f', got RNNCell with gates ()",
    ),
    (
        lambda: init.forget_bias_(flexrnn.LSTM(I, H, bias=False)),
        ValueError,
        "forget_bias_: expected a cell with biases of its gates, got LSTMCell with weight_ih, ...",
    ),
    (
        lambda: init.chrono_(flexrnn.LSTM(I, H), 2),
        ValueError,
        "T_max: expected a finite number above 2, got 2",
    ),
    (
        lambda: init.chrono_(flexrnn.LSTM(I, H), "10"),  # pyright: ignore[reportArgumentType]
        TypeError,
        "T_max: expected a number, got str",
    ),
    (
        lambda: init.orthogonal_(torch.nn.LSTM(I, H)),
        TypeError,
        "orthogonal_: expected a FlexRNN, got LSTM",
    ),
    (
        lambda: init.forget_bias_(flexrnn.LSTM(I, H), True),
        TypeError,
        "value: expected a number, got bool",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    refused: Any, call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    refused(call, error, message)
