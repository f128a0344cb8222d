"""Agreement, products, times and gates: that what the tables say is what was computed."""

import platform
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import flexrnn
from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM
from flexrnn.lab import agreement, results, speed, terminal
from flexrnn.lab.gates import of_custom_lstm
from flexrnn.lab.results import Speed, summaries
from flexrnn.lab.table import TABLE, Entry, choose, naive_from_torch, torch_lstm

SIZE = {"batch": 3, "seq": 7, "hidden": 5}


def entry(key: str) -> Entry:
    return next(entry for entry in TABLE if entry.key == key)


@pytest.mark.parametrize("key", ["naive", "vectorized", "lstm", "naive-lstm", "torch"])
def test_the_same_function_in_float64(key: str):
    row = agreement.measure(entry(key), SIZE, torch.float64, seed=0)
    assert set(row.gradients) == {"x", "weight_ih", "weight_hh", "bias_ih"}
    for difference in (row.output, row.states, *row.gradients.values()):
        assert difference is not None
        assert difference < 1e-12
    assert all(scale > 1e-3 for scale in row.scale.values())  # else the differences say nothing


def test_float32_is_measured_in_float32():
    row = agreement.measure(entry("naive"), SIZE, torch.float32, seed=0)
    assert row.output is not None
    assert 1e-12 < row.output < 1e-6


OTHER_FUNCTIONS = [entry.key for entry in TABLE if entry.carry is None]


@pytest.mark.parametrize("key", OTHER_FUNCTIONS)
def test_another_function_gets_a_reason_instead_of_a_number(key: str):
    row = agreement.measure(entry(key), SIZE, torch.float64, seed=0)
    assert row.output is None
    assert "another function" in row.why_not


class Twisted(NaiveCustomLSTM):
    """Wrong by a little: a test of the test."""

    def forward(self, x: Any, init_states: Any = None) -> Any:
        output, (h, c) = super().forward(x, init_states)
        return output, (h, c + 1e-3 * c.detach())


def test_a_wrong_final_state_is_noticed():
    def carry(lstm: nn.LSTM) -> nn.Module:
        twisted = Twisted(SIZE["hidden"], SIZE["hidden"]).double()
        twisted.load_state_dict(naive_from_torch(lstm).state_dict())
        return twisted

    wrong = Entry("wrong", "Wrong", "#000", Twisted, carry, entry("naive").back)
    row = agreement.measure(wrong, SIZE, torch.float64, seed=0)
    assert row.output is not None
    assert row.states is not None
    assert row.output < 1e-12
    assert row.states > 1e-5


@pytest.mark.parametrize(
    ("key", "products"),
    [
        ("naive", (8, 0)),
        ("vectorized", (2, 0)),
        ("peephole", (2, 0)),
        ("torch", (1, 1)),
    ],
)
def test_products_are_counted(key: str, products: tuple[int, int]):
    assert speed.count_products(entry(key).build(3, 4), 3) == products


@pytest.mark.parametrize(
    ("key", "as_written"), [("naive-lstm", (8, 0)), ("lstm", (2, 0)), ("gru", (2, 0))]
)
def test_products_of_what_is_compiled_are_its_programs(key: str, as_written: tuple[int, int]):
    layer = entry(key).build(3, 4)
    with flexrnn.backend("interpreter"):
        assert speed.count_products(layer, 3) == (1, 1)
    with flexrnn.backend("reference"):
        assert speed.count_products(layer, 3) == as_written


def test_counting_leaves_onednn_as_it_was():
    before = torch.backends.mkldnn.enabled
    speed.count_products(torch_lstm(3, 4), 3)
    assert torch.backends.mkldnn.enabled == before


def test_times_come_in_whole_rounds_and_survive_an_early_end():
    rows: list[Speed] = []
    entries = choose()
    rounds = speed.measure(entries, SIZE, rows, rounds=9)
    assert [next(rounds), next(rounds)] == [1, 2]
    cast(Any, rounds).close()
    assert [row.key for row in rows] == [entry.key for entry in entries]
    assert all(len(row.forward) == len(row.training) == 2 for row in rows)
    assert all(time > 0 for row in rows for time in row.forward + row.training)


def test_rounds_end_with_the_time_but_not_before_five():
    rows: list[Speed] = []
    assert list(speed.measure(choose(), SIZE, rows, rounds=9, seconds=0)) == [1, 2, 3, 4, 5]


def test_sizes_follow_the_options():
    assert speed.sizes(3, 7, 8) == [
        {"batch": 1, "seq": 7, "hidden": 8},
        {"batch": 3, "seq": 7, "hidden": 2},
        {"batch": 3, "seq": 7, "hidden": 8},
        {"batch": 3, "seq": 7, "hidden": 16},
    ]
    assert len(speed.sizes(1, 7, 8)) == 3


def test_the_headline_is_of_the_naive_body_at_the_size_trained():
    rows = [
        Speed(key, label, SIZE, 1, 0, [], [ms])
        for key, label, ms in (
            ("naive", "Naive", 42.0),
            ("naive-lstm", "Compiled", 4.5),
            ("torch", "T", 4.0),
        )
    ]
    said = terminal.headline({"options": SIZE, "speed": summaries(rows)})
    assert "at B 3 T 7 H 5: 10.5 times as long" in said
    assert "compiled, 1.12 times" in said
    assert not terminal.headline({"options": {**SIZE, "seq": 6}, "speed": summaries(rows)})
    assert not terminal.headline({"options": SIZE, "speed": summaries(rows[1:])})


def test_medians_quartiles_and_ratios():
    ours = Speed("a", "A", SIZE, 8, 0, [3.0, 1.0, 100.0], [4.0])
    theirs = Speed("torch", "T", SIZE, 1, 1, [2.0, 1.5, 1.0], [])
    forward, training = (summaries([ours, theirs])[0][kind] for kind in ("forward", "training"))
    assert forward == {"median_ms": 3, "quartiles_ms": [1, 100], "rounds": 3, "ratio": 2}
    assert training == {"median_ms": 4, "quartiles_ms": [None, None], "rounds": 1, "ratio": None}


@pytest.mark.parametrize("peephole", [False, True])
def test_recorded_gates_are_the_layers_own(peephole: bool):
    layer = CustomLSTM(3, 5, peephole=peephole).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    r = of_custom_lstm(layer, x)
    output, (_, c) = layer(x[None])
    assert_close(r.h, output[0], rtol=1e-12, atol=1e-12)
    assert_close(r.c[-1:], c, rtol=1e-12, atol=1e-12)
    before = torch.cat([torch.zeros_like(r.c[:1]), r.c[:-1]])
    assert_close(r.c, r.f * before + r.i * r.g, rtol=1e-12, atol=1e-12)
    h = torch.tanh(r.o * r.c) if peephole else r.o * torch.tanh(r.c)
    assert_close(r.h, h, rtol=1e-12, atol=1e-12)
    for gate in (r.i, r.f, r.o):
        assert 0 < gate.min() < gate.max() < 1


def test_a_recording_of_another_function_is_refused():
    layer = CustomLSTM(3, 5)
    layer.register_forward_hook(lambda layer, args, result: (result[0] * 1.01, result[1]))
    with pytest.raises(RuntimeError, match="recorded gates"):
        of_custom_lstm(layer, torch.randn(7, 3))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC", "AMD EPYC (family 26, model 2)"),
        ("cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon @ 2.00GHz", "Xeon @ 2.00GHz"),
        ("model name\t: Fast", "Fast"),
        ("CPU part\t: 0xd0c", ""),
    ],
)
def test_a_processor_has_its_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, expected: str
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{said}\n\nprocessor\t: 1\nmodel name\t: another")
    monkeypatch.setattr(results, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(sys, "platform", "linux")
    assert results.machine()["processor"] == (
        expected or platform.processor() or platform.machine()
    )
