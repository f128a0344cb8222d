# pyright: reportPrivateUsage=false
"""Products of the input before a loop, and for its gradient behind one: by whom, and how exact."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler.graph import BATCH, Node
from flexrnn.engine.cpu import chunks, nodes, outer, plan
from flexrnn.engine.cpu.outer import Outer
from flexrnn.engine.step import CannotRunError

Judge = Callable[..., None]
DOUBLE, SINGLE = torch.float64, torch.float32
T, I, H = 10, 3, 11


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Outer]]:
    """What our library is asked for by nodes; it is taken to be faster than torch."""
    found: list[Sequence[Outer]] = []

    def multiply(products: Sequence[Outer], threads: int) -> None:
        found.append(products)
        outer.multiply(products, threads)

    for module in (nodes, outer):
        monkeypatch.setattr(module, "is_faster", lambda: True)
    monkeypatch.setattr(nodes, "multiply", multiply)
    return found


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "layer norm", "projection"])
def test_a_layer(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, products: str, name: str, dtype: torch.dtype
) -> None:
    """One row, whose input is multiplied before the loop, and chunks of a few steps."""
    cell: Any = {"GRU": cells.GRUCell, "layer norm": cells.LayerNormLSTMCell}.get(
        name, cells.LSTMCell
    )
    monkeypatch.setattr(plan, "_SMALL", 0)
    monkeypatch.setattr(chunks, "ROWS", 4)
    monkeypatch.setattr(chunks, "BYTES", 1)
    asked: list[str] = []
    by = nodes.multiply

    def multiply(*args: Any) -> None:
        asked.append(products)
        by(*args)

    monkeypatch.setattr(nodes, "multiply", multiply)
    options: dict[str, Any] = {"proj_size": 2} if name == "projection" else {}
    layer = flexrnn.FlexRNN(cell, I, H, dtype=dtype, bidirectional=True, **options)
    judge(layer, torch.randn(T, 1, I, dtype=dtype))
    assert set(asked) == ({"own"} if products == "own" else set())


def product(rows: int, into: Tensor | None = None, dtype: torch.dtype = SINGLE) -> Tensor:
    """Rows of numbers by a weight, judged."""
    a, w = torch.randn(rows, 1, 5, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    node = Node("product", (0, 1), (), (BATCH, 4), boolean=False)
    found = nodes.compute(node, [a, w], (rows, 1), w[0], 2, into)
    assert_close(found, a @ w)
    return found


def test_into_memory_that_there_is(multiplied: list[Sequence[Outer]]) -> None:
    into = torch.full((6, 1, 4), float("nan"))
    assert product(6, into) is into
    assert len(multiplied) == 1


def test_little_is_for_torch(
    multiplied: list[Sequence[Outer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_LITTLE", 6 * 20)
    product(5)
    product(5, torch.empty(5, 1, 4))
    assert not multiplied
    product(6)
    assert len(multiplied) == 1


def test_other_dtypes_are_for_torch(multiplied: list[Sequence[Outer]]) -> None:
    like = torch.zeros(1)
    a, w = torch.randn(3, 2, dtype=DOUBLE), torch.randn(2, 2, dtype=DOUBLE)
    found = nodes.compute(
        Node("product", (0, 1), (), (BATCH, 2), boolean=False), [a, w], (3,), like, 1
    )
    assert_close(found, a @ w)
    assert not multiplied


def test_a_layer_that_is_only_run_falls_back_before_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(*_: Any, **__: Any) -> Any:
        raise CannotRunError("no products here")

    outer._run.cache_clear()
    monkeypatch.setattr(outer, "is_faster", lambda: True)
    monkeypatch.setattr(outer, "library", library)
    monkeypatch.setattr(plan, "_SMALL", 0)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    layer = flexrnn.LSTM(I, H)
    with torch.no_grad(), pytest.warns(flexrnn.FallbackWarning, match="no products here"):
        layer(torch.randn(9, 1, I))
