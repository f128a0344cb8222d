"""The shape of tiles; products after a loop, right on both sides of every border."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.engine import again
from flexrnn.engine.cpu import after, chunks, plan
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.emit.products import Shape, Tile, tile_of

DOUBLE = torch.float64
T, I, H = 6, 70, 5


MANY = 1 << 40
WAYS = [("own", 0, 0), *(("torch", few, long) for few in (0, MANY) for long in (0, MANY))]


@pytest.mark.parametrize(("products", "few", "long"), WAYS, indirect=["products"])
@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.NaiveLSTMCell])
@pytest.mark.parametrize("B", [1, 3])
def test_however_they_are_done(
    judge: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cell: type[flexrnn.Cell],
    few: int,
    long: int,
    B: int,
) -> None:
    """By large products or small ones side by side, turned over or not; columns and weights few."""
    monkeypatch.setattr(after, "_FEW", few)
    monkeypatch.setattr(after, "_LONG", long)
    for size, width in ((I, H), (3, 70)):
        layer = FlexRNN(cell, size, width, dtype=DOUBLE, bidirectional=True)
        hx = tuple(torch.randn(2, B, width, dtype=DOUBLE) for _ in range(2))
        judge(layer, torch.randn(T, B, size, dtype=DOUBLE), hx)


def test_gradients_of_parameters_lie_in_one_piece(
    products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after, "_FEW", 0 if products == "own" else MANY)
    layer = FlexRNN(cells.NaiveLSTMCell, I, H, dtype=DOUBLE)
    x = torch.randn(T, 2, I, dtype=DOUBLE)
    params = list(layer.parameters())
    found = torch.autograd.grad(layer(x)[0].square().sum(), params)
    assert all(gradient.is_contiguous() for gradient in found)
    with flexrnn.backend("reference"):
        expected = torch.autograd.grad(layer(x)[0].square().sum(), params)
    assert_close(found, expected, rtol=1e-11, atol=1e-13)
    kept = [gradient.clone() for gradient in found]
    found[0].zero_()  # though several lie in one memory, each has its own place there
    assert_close(list(found[1:]), kept[1:], rtol=0, atol=0)


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.usefixtures("products")
def test_calls_that_come_again_are_written_down(monkeypatch: pytest.MonkeyPatch, B: int) -> None:
    known: list[bool] = []
    written = again.written

    def noted(*args: Any) -> Any:
        result, replay = written(*args)
        known.append(replay is not None)
        return result, replay

    monkeypatch.setattr(again, "written", noted)
    monkeypatch.setattr(chunks, "ROWS", 3)
    monkeypatch.setattr(chunks, "BYTES", 1)
    for cell in (cells.LSTMCell, cells.NaiveLSTMCell):
        layer, x = FlexRNN(cell, I, H), torch.randn(T, B, I, requires_grad=True)
        found = [
            torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
            for _ in range(8)
        ]
        assert known == [True, True]  # the way forward, and the way back
        assert_close(found[-1], found[0], rtol=0, atol=0)
        known.clear()


@pytest.mark.parametrize("registers", [12, 24])
@pytest.mark.parametrize("sums", range(1, 40))
def test_sums_fit_the_registers(sums: int, registers: int) -> None:
    for shape in Shape:
        for full in (True, False):
            tile = tile_of(sums, registers, shape, full=full, vectors=99)
            assert min(tile._replace(few=1)) >= 1
            assert tile.at_once <= sums
            assert tile.few <= tile.rows
            if shape is Shape.ROWS and tile.rows > 1:
                assert tile.rows * tile.at_once * tile.width <= registers
            if shape is Shape.ROWS and tile.at_once < sums:
                assert tile.few * sums * tile.width <= registers


def test_few_registers_hold_parts_of_many_rows() -> None:
    def tile(sums: int, registers: int, *, full: bool = True) -> Tile:
        return tile_of(sums, registers, Shape.ROWS, full=full, vectors=64)

    assert tile(4, 24) == Tile(rows=6, width=1, at_once=4, few=6)
    assert tile(4, 12) == Tile(rows=6, width=1, at_once=2, few=3)
    assert tile(13, 12) == Tile(rows=4, width=1, at_once=3, few=0)
    assert tile(1, 12) == Tile(rows=6, width=2, at_once=1, few=6)
    assert tile(3, 12) == Tile(rows=4, width=1, at_once=3, few=4)
    assert tile(4, 12, full=False) == Tile(rows=3, width=1, at_once=4, few=3)


@pytest.mark.parametrize(
    ("vectors", "width"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (8, 4), (13, 2), (16, 4)],
)
def test_tiles_are_as_wide_as_rows_want(vectors: int, width: int) -> None:
    tile = tile_of(1, 24, Shape.ROWS, full=True, vectors=vectors)
    assert (tile.width, tile.rows) == (width, min(8, 24 // width))


@pytest.mark.parametrize("vectors", [1, 2, 3, 5, 11])
def test_tiles_of_every_width(judge: Callable[..., None], isa: Isa, vectors: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_ISA", isa.name)
        patch.setattr(plan, "_known", WeakKeyDictionary())
        units = vectors * isa.vector_bytes // DOUBLE.itemsize - 1
        judge(FlexRNN(cells.RNNCell, 3, units, dtype=DOUBLE), torch.randn(T, 9, 3, dtype=DOUBLE))


class Gates(flexrnn.Cell):
    """One product of `count` parts, for tiles whose sums come in unlike parts."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, count=5):
        super().__init__(input_size, hidden_size)
        self.count = count
        shape = input_size + hidden_size, count * hidden_size
        self.W = torch.nn.Parameter(torch.randn(shape, device=device, dtype=dtype) / 4)

    def step(self, x: torch.Tensor, state: cells.HiddenState) -> cells.HiddenState:
        first, *rest = (torch.cat([x, state.h], -1) @ self.W).chunk(self.count, -1)
        # Sums of parts as they are would be made of summed weights.
        return cells.HiddenState(first.tanh() * sum(part.sigmoid() for part in rest))


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 13])
def test_parts_of_unlike_width(judge: Callable[..., None], isa: Isa, count: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_ISA", isa.name)
        patch.setattr(plan, "_known", WeakKeyDictionary())
        layer = FlexRNN(Gates, 3, 19, dtype=DOUBLE, count=count)
        judge(layer, torch.randn(T, rows, 3, dtype=DOUBLE))
