"""A cell that uses its weights several times a step: packed once, multiplied by one function."""

import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.engine.cpu import plan
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.emit.functions import Functions, Sums

DOUBLE = torch.float64
DEPTH = 3


class Repeated(flexrnn.Cell):
    """The same two maps three times: one of a whole matrix, one of a matrix a head."""

    State = HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        self.heads = nn.Parameter(torch.randn(2, hidden_size // 2, hidden_size // 2, **options))
        self.x = nn.Linear(input_size, hidden_size, bias, **options)
        self.h = nn.Linear(hidden_size, hidden_size, bias, **options)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        h = state.h
        for _ in range(DEPTH):
            z = torch.tanh(self.x(x) + self.h(h))
            blocks = torch.einsum("bgi,gij->bgj", z.view(*z.shape[:-1], 2, -1), self.heads)
            h = h + 0.3 * torch.sin(blocks.flatten(-2))
        return HiddenState(h)


@pytest.mark.parametrize(("steps", "rows"), [(7, 5), (2, 3), (9, 1)])
def test_every_kind_of_call(
    judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch, steps: int, rows: int
) -> None:
    if rows == 1:
        monkeypatch.setattr(plan, "_SMALL", 0)
    layer = flexrnn.FlexRNN(Repeated, 5, 38, dtype=DOUBLE, backend="cpu")
    judge(layer, torch.randn(steps, rows, 5, dtype=DOUBLE))


def test_every_set_of_instructions(judge: Callable[..., None], isa: Isa) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_ISA", isa.name)
        patch.setattr(plan, "_known", WeakKeyDictionary())
        judge(flexrnn.FlexRNN(Repeated, 5, 38, backend="cpu"), torch.randn(6, 7, 5))


def test_cells_share_what_makes_their_sums() -> None:
    def functions(layer: flexrnn.FlexRNN) -> list[str]:
        source = flexrnn.explain(layer, torch.randn(40, 20, 5, requires_grad=True)).steps[0].source
        return re.findall(r"^template <int R>\nALONE void rows.*?^}\n$", source, re.M | re.S)

    found = functions(flexrnn.LSTM(5, 38))
    assert len(found) == 2  # there and back
    assert functions(flexrnn.NaiveLSTM(5, 38)) == found
    assert functions(flexrnn.PeepholeLSTM(5, 38)) == found


def test_a_function_of_several_stages_is_in_none_of_them() -> None:
    functions = Functions("Term", apart=False)
    once, twice = Sums(((0,),), ("once;",)), Sums(((0,),), ("twice;",))
    assert [functions.name(sums) for sums in (once, twice, twice)] == [
        "products_0",
        "products_0_2",
        "products_0_2",
    ]
    assert "INLINE void products_0(" in functions.text()
    assert "ALONE void products_0_2(" in functions.text()


def test_the_source_holds_each_once() -> None:
    layer = flexrnn.FlexRNN(Repeated, 5, 38, backend="cpu")
    source = flexrnn.explain(layer, torch.randn(40, 20, 5, requires_grad=True)).steps[0].source
    assert source is not None
    for text in source.split("struct Frame")[1:]:  # forward and backward
        stages = len(re.findall(r"// Stage \d+: [1-9]\d* products", text))
        calls = re.findall(r"^ +(products_\w+)\(terms, out, n\);", text, re.MULTILINE)
        panels = set(re.findall(r"f\.(packed\d+_\d+) = ", text))
        assert stages >= 2 * DEPTH
        assert len(calls) == stages
        assert len({*calls}) < stages
        assert len(panels) <= 4 < stages  # x, h and heads, and another way round for another width
