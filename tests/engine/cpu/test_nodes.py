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
from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import BATCH, Node
from flexrnn.engine.cpu import after, before, chunks, nodes, outer, plan
from flexrnn.engine.cpu.outer import Outer
from flexrnn.engine.step import CannotRunError

Judge = Callable[..., None]
DOUBLE, SINGLE = torch.float64, torch.float32
T, I, H = 10, 3, 11


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Outer]]:
    """What our library is asked for by nodes; it is taken to be faster than torch."""
    found: list[Sequence[Outer]] = []

    def multiply(products: Sequence[Outer], threads: int, *, narrow: bool) -> None:
        found.append(products)
        outer.multiply(products, threads, narrow=narrow)

    for module in (nodes, outer):
        monkeypatch.setattr(module, "is_faster", lambda: True)
    monkeypatch.setattr(nodes, "multiply", multiply)
    return found


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("name", ["LSTM", "naive", "GRU", "layer norm", "projection"])
def test_a_layer(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, products: str, name: str, dtype: torch.dtype
) -> None:
    """One row, whose input is multiplied before the loop, and chunks of a few steps."""
    cell: Any = {
        "GRU": cells.GRUCell,
        "layer norm": cells.LayerNormLSTMCell,
        "naive": cells.NaiveLSTMCell,
    }.get(name, cells.LSTMCell)
    monkeypatch.setattr(plan, "_SMALL", 0)
    monkeypatch.setattr(chunks, "ROWS", 4)
    monkeypatch.setattr(chunks, "BYTES", 1)
    asked: list[str] = []
    by = nodes.multiply

    def multiply(*args: Any, **options: Any) -> None:
        asked.append(products)
        by(*args, **options)

    for module in (nodes, before):
        monkeypatch.setattr(module, "multiply", multiply)
    options: dict[str, Any] = {"proj_size": 2} if name == "projection" else {}
    layer = flexrnn.FlexRNN(cell, I, H, dtype=dtype, bidirectional=True, **options)
    judge(layer, torch.randn(T, 1, I, dtype=dtype))
    assert set(asked) == ({"own"} if products == "own" else set())


@pytest.mark.parametrize("rows", [1, 5])
def test_weights_in_pieces_are_not_put_together(
    monkeypatch: pytest.MonkeyPatch, products: str, rows: int
) -> None:
    """The naive body's, in the loops and in the products of the input and for its gradient."""
    monkeypatch.setattr(plan, "_SMALL", 0)
    asked: list[str] = []
    by = interpreter.compute

    def compute(node: Node, *args: Any) -> Tensor:
        asked.append(node.op)
        return by(node, *args)

    with monkeypatch.context() as watching:
        watching.setattr(interpreter, "compute", compute)
        layer, x = flexrnn.NaiveLSTM(I, H, backend="cpu"), torch.randn(T, rows, I)
        layer(x.requires_grad_())[0].sum().backward()
    assert ("concat" in asked) == (products != "own")


def test_a_parameter_that_multiplies_a_weight_in_pieces(products: str) -> None:
    """Its gradient is such a product as well, but of no rows of steps."""

    def step(x: Tensor, h: Tensor, a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(x @ (a @ torch.cat([b, c], 1)) + h @ u)

    shapes = ((I, 4), (4, 3), (4, 2), (5, 5))
    params = [torch.randn(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes]
    x, h = torch.randn(T, 2, I, dtype=DOUBLE), torch.zeros(2, 5, dtype=DOUBLE)
    found = []
    for engine in ("cpu", "reference"):
        with flexrnn.backend(engine):
            states, _ = flexrnn.scan(step, h, x, tuple(params))
        found.append(torch.autograd.grad(states.sum(), params))
    assert_close(*found, rtol=1e-11, atol=1e-12)


def test_a_cast_weight_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch casts for it has no place of its own."""
    monkeypatch.setattr(plan, "_SMALL", 0)
    masks = [torch.rand(I, H) > 0.5 for _ in range(2)]

    def step(x: Tensor, h: Tensor, u: Tensor, *masks: Tensor) -> Tensor:
        return torch.tanh(x @ torch.cat([m.to(x.dtype) for m in masks], -1) + h @ u)

    h, u = torch.zeros(1, 2 * H), torch.randn(2 * H, 2 * H)
    x = torch.randn(T, 1, I)
    found = []
    for engine in ("cpu", "reference"):
        with flexrnn.backend(engine):
            found.append(flexrnn.scan(step, h, x, (u, *masks))[0])
    assert_close(*found, rtol=1e-5, atol=1e-5)


def product(rows: int, into: Tensor | None = None, *, inner: int = 5, columns: int = 4) -> Tensor:
    """Rows of numbers by a weight, judged."""
    a, w = torch.randn(rows, 1, inner), torch.randn(inner, columns)
    node = Node("product", (0, 1), (), (BATCH, columns), boolean=False)
    found = nodes.compute(node, [a, w], (rows, 1), w[0], 2, into)
    assert_close(found, a @ w)
    return found


def test_into_memory_that_there_is(multiplied: list[Sequence[Outer]]) -> None:
    into = torch.full((6, 1, 4), float("nan"))
    assert product(6, into) is into
    assert len(multiplied) == 1


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "ours"),
    [(10, 2, 6, True), (10, 2, 5, False), (3, 9, 9, False), (4, 9, 9, True), (99, 1, 9, False),
     (99, 9, 1, False)],
)  # fmt: skip
def test_little_and_thin_products_are_torchs(
    multiplied: list[Sequence[Outer]],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    inner: int,
    columns: int,
    ours: bool,
    filled: bool,
) -> None:
    monkeypatch.setattr(nodes, "_LITTLE", 10 * 2 * 6)
    monkeypatch.setattr(nodes, "_FEW", 3)
    into = torch.empty(rows, 1, columns) if filled else None
    product(rows, into, inner=inner, columns=columns)
    assert bool(multiplied) is ours


def test_other_dtypes_are_for_torch(multiplied: list[Sequence[Outer]]) -> None:
    node = Node("product", (0, 1), (), (BATCH, 2), boolean=False)
    a, w = torch.randn(3, 2, dtype=DOUBLE), torch.randn(2, 2, dtype=DOUBLE)
    assert_close(nodes.compute(node, [a, w], (3,), torch.zeros(1), 1), a @ w)
    assert not multiplied
    nodes.compute(node, [a, w], (3,), torch.zeros(1, dtype=DOUBLE), 1)
    assert multiplied


@pytest.mark.parametrize(("T", "I", "ours"), [(4, 2, True), (3, 2, False), (9, 1, False)])
def test_the_gradient_of_an_input(
    monkeypatch: pytest.MonkeyPatch, T: int, I: int, ours: bool
) -> None:
    """Those of few rows and of one feature are torch's."""
    monkeypatch.setattr(nodes, "_FEW", 3)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    asked: list[int] = []
    compute = after.compute

    def noted(*args: Any, **options: Any) -> Tensor:
        asked.append(1)
        return compute(*args, **options)

    monkeypatch.setattr(after, "compute", noted)
    layer = flexrnn.LSTM(I, H, dtype=DOUBLE)
    x, gradients = torch.randn(T, 1, I, dtype=DOUBLE, requires_grad=True), list[Tensor]()
    for engine in ("cpu", "reference"):
        with flexrnn.backend(engine):
            gradients += torch.autograd.grad(layer(x)[0].sum(), x)
    assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert bool(asked) != ours


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
