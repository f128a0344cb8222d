"""Where weights are far away, the input of few rows is multiplied before the loop, too: for that
the battery.

`judge` says how exact, with 1, 2 and 3 threads.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import chunks, plan
from flexrnn.engine.cpu.build import isa
from flexrnn.engine.cpu.emit import Shape
from flexrnn.engine.cpu.plan import MANY_ROWS, Kind, Sizes

Judge = Callable[..., None]
DOUBLE, SINGLE = torch.float64, torch.float32
T, I, H = 10, 3, 11


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """No weight is near, and chunks are short. Yields which loops are asked for."""
    found: list[Kind] = []
    kind_of = plan.kind_of

    def noted(*args: Any) -> Kind:
        found.append(kind_of(*args))
        return found[-1]

    monkeypatch.setattr(plan, "last_cache", lambda: 1)
    monkeypatch.setattr(plan, "kind_of", noted)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    monkeypatch.setattr(chunks, "ROWS", 9)
    monkeypatch.setattr(chunks, "BYTES", 1)
    return found


CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (cells.LSTMCell, {"bidirectional": True}),
    "projection": (cells.LSTMCell, {"proj_size": 2, "num_layers": 2}),
    "GRU": (cells.GRUCell, {"bias": False}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
    "regularized": (cells.PeepholeLSTMCell, {"zoneout": 0.2, "recurrent_dropout": 0.3}),
}


@pytest.mark.parametrize("marks", ["none", "lengths", "reset"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell(judge: Judge, kinds: list[Kind], name: str, marks: str) -> None:
    cell, options = CELLS[name]
    layer = flexrnn.FlexRNN(cell, I, H, dtype=DOUBLE, **options)
    given: dict[str, Any] = {
        "none": {},
        "lengths": {"lengths": torch.tensor([10, 2, 5])},
        "reset": {"reset": torch.rand(T, 3) < 0.3, "return_states": True},
    }[marks]
    judge(layer, torch.randn(T, 3, I, dtype=DOUBLE), None, **given)
    assert {(kind.shape, kind.hoist) for kind in kinds} == {(Shape.ROWS, True)}


def test_the_layout_of_a_call_serves_other_lengths(kinds: list[Kind]) -> None:
    """The input's products lie in front of the weights, and are more in the second call."""
    layer, x = flexrnn.LSTM(I, H, dtype=DOUBLE), torch.randn(T, 3, I, dtype=DOUBLE)
    for some in ([10, 1, 1], [10, 10, 9], [10, 9, 1]):
        packed = pack_padded_sequence(x, torch.tensor(some))
        found: list[torch.Tensor] = []
        for engine in ("cpu", "reference"):
            with flexrnn.backend(engine), torch.no_grad():
                found.append(layer(packed)[0].data)
        assert_close(*found, rtol=1e-12, atol=1e-13)
    assert len(kinds) == 1


def test_many_rows(judge: Judge, kinds: list[Kind]) -> None:
    """The threads share units, and the input is multiplied in the loop."""
    layer = flexrnn.LSTM(I, H, dtype=DOUBLE)
    judge(layer, torch.randn(T, 3 * MANY_ROWS, I, dtype=DOUBLE))
    assert {(kind.shape, kind.hoist) for kind in kinds} == {(Shape.ROWS, False)}


def test_in_float32(judge: Judge, kinds: list[Kind]) -> None:
    judge(flexrnn.LSTM(I, 70), torch.randn(T, 3, I), None)
    assert all(kind.hoist for kind in kinds)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_far_is_what_takes_more_than_half_of_the_last_cache(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    x = torch.randn(T, 3, I, dtype=dtype)
    program = flexrnn.explain(flexrnn.LSTM(I, H, dtype=dtype), x).steps[0].program
    assert program is not None
    weights = 4 * H * (I + H) * dtype.itemsize

    def hoists(cache: int, rows: int, threads: int) -> bool:
        monkeypatch.setattr(plan, "last_cache", lambda: cache)
        return plan.kind_of(program, Sizes(T, rows, False, threads), dtype).hoist

    for threads in (1, 4):
        many = MANY_ROWS * threads
        assert hoists(2 * weights - 1, many - 1, threads)
        assert not hoists(2 * weights, many - 1, threads)
        assert not hoists(2 * weights - 1, many, threads)
        assert not hoists(0, many - 1, threads)  # nobody knows


def test_the_last_cache_is_a_size() -> None:
    assert isa.last_cache() == 0 or isa.last_cache() >= 1 << 18
    assert 0 <= isa.second_cache() <= isa.last_cache()


def test_caches_are_as_linux_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [("1", "48K"), ("1", "32K"), ("2", "1024K"), ("3", "32768K"), ("4", "many"), ("5", None)]
    for k, (level, size) in enumerate(said):
        (tmp_path / f"index{k}").mkdir()
        (tmp_path / f"index{k}" / "level").write_text(f"{level}\n")
        if size is not None:
            (tmp_path / f"index{k}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(isa, "_CACHES", tmp_path)
    assert isa.last_cache.__wrapped__() == 32 << 20
    assert isa.second_cache.__wrapped__() == 1 << 20
    monkeypatch.setattr(isa, "_CACHES", tmp_path / "nowhere")
    assert isa.last_cache.__wrapped__() == isa.second_cache.__wrapped__() == 0
