# pyright: reportIncompatibleMethodOverride=false
"""Sequences that end at different steps: what is not there is neither computed nor read."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import flexrnn
from flexrnn.call import ragged
from flexrnn.engine.cuda import engine

DOUBLE = torch.float64
B, I = 18, 5
LENGTHS = torch.tensor([2, 0, 3, 1, 1, 3, 1, 2, 2, 1, 3, 2, 1, 2, 1, 3, 1, 0])
RESET = torch.tensor([[0, 1, 0] * 6, [1, 0, 0] * 6, [0, 0, 1] * 6], dtype=torch.bool)
LAYERS: dict[str, Any] = {
    "of one tile": partial(flexrnn.LSTM, hidden_size=9, bidirectional=True),
    "of several tiles": partial(flexrnn.LSTM, hidden_size=70, bidirectional=True),
    "reductions": partial(flexrnn.LayerNormLSTM, hidden_size=40),
}
MASKS = {"zoneout": 0.3, "recurrent_dropout": 0.3, "dropout": 0.3, "num_layers": 2}


@pytest.fixture
def compact(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The layouts with which loops have run."""
    seen: list[Tensor] = []
    made = engine.layout_of

    def noted(*args: Any) -> Tensor:
        seen.append(made(*args))
        return seen[-1]

    monkeypatch.setattr(engine, "layout_of", noted)
    return seen


@pytest.mark.parametrize("kind", LAYERS)
def test_kinds_of_programs(
    judge: Callable[..., None], kind: str, tier: str, device: str, compact: list[Tensor]
) -> None:
    layer = LAYERS[kind](I, dtype=DOUBLE, device=device)
    rows = B if kind == "of one tile" else 4  # two tiles of rows, or one
    judge(layer, torch.randn(3, rows, I, dtype=DOUBLE, device=device), lengths=LENGTHS[:rows])
    assert len(compact) == 2 * layer.num_directions  # there and back


def test_everything_that_a_layer_adds(
    judge: Callable[..., None], tier: str, device: str, compact: list[Tensor]
) -> None:
    layer = flexrnn.GRU(I, 7, dtype=DOUBLE, device=device, **MASKS)
    x = torch.randn(3, B, I, dtype=DOUBLE, device=device)
    judge(layer, x, lengths=LENGTHS, reset=RESET.to(device))
    assert compact


def test_half_types(judge: Callable[..., None], device: str, compact: list[Tensor]) -> None:
    layer = flexrnn.LSTM(I, 9, bidirectional=True, dtype=torch.bfloat16, device=device)
    judge(
        layer, torch.randn(3, B, I, dtype=torch.bfloat16, device=device), draws=1, lengths=LENGTHS
    )
    assert compact


def test_a_packed_sequence_is_read_as_it_lies(device: str, compact: list[Tensor]) -> None:
    layer = flexrnn.LSTM(I, 9, num_layers=2, bidirectional=True, dtype=DOUBLE, device=device)
    x = torch.randn(3, B, I, dtype=DOUBLE, device=device)
    found = []
    for backend in ("reference", "cuda"):
        given = x.detach().requires_grad_()
        packed = pack_padded_sequence(given, LENGTHS.clamp(min=1), enforce_sorted=False)
        with flexrnn.backend(backend):
            output, state = layer(packed)
        loss = output.data.square().sum() + sum(s.sum() for s in state)
        found.append(
            [output.data, *state, *torch.autograd.grad(loss, [given, *layer.parameters()])]
        )
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)
    assert len(compact) == 8


def test_gradients_have_gradients(device: str) -> None:
    layer = flexrnn.GRU(I, 4, dtype=DOUBLE, device=device)
    found = []
    for backend in ("reference", "cuda"):
        x = torch.ones(3, 2, I, dtype=DOUBLE, device=device, requires_grad=True)
        with flexrnn.backend(backend):
            output = layer(x, lengths=torch.tensor([1, 3]))[0]
        (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, *layer.parameters()][:3]))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)


def test_only_the_steps_that_are_there_are_computed(
    tier: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda":
        pytest.skip("the interpreter counts")
    from triton.runtime import interpreter

    products, dot = [], interpreter.interpreter_builder.create_dot

    def counted(*args: Any) -> Any:
        products.append(args)
        return dot(*args)

    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", counted)
    layer = flexrnn.LSTM(I, 9, dtype=DOUBLE, backend="cuda")
    lengths = torch.ones(B, dtype=torch.int64)
    lengths[7] = 5
    with torch.no_grad():
        layer(torch.randn(5, B, I, dtype=DOUBLE), lengths=lengths)
    steps = 5 + 1  # of the tile with the longest sequence, and of the other one
    assert len(products) == (steps if tier == "grid" else 4 * steps)  # gates side by side, or not


def test_lengths_of_another_device_are_marks(
    judge: Callable[..., None],
    tier: str,
    device: str,
    compact: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a card holds is not looked at."""
    if device == "cpu":
        monkeypatch.setattr(ragged, "serves", lambda *_: False)
    layer = flexrnn.LSTM(I, 9, bidirectional=True, dtype=DOUBLE, device=device)
    x = torch.randn(2, 3, I, dtype=DOUBLE, device=device)
    judge(layer, x, lengths=torch.tensor([1, 2, 1], device=device))
    assert not compact
