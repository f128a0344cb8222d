"""Layers by the cuda engine against the reference: a sample of the kinds of programs there are.

`-m card` runs the whole battery, which would take an interpreter too long.
"""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import cells
from flexrnn.engine.cuda import kernels, plan

from ..rotated import RotatedCell

Judge = Callable[..., None]
DOUBLE = torch.float64
NARROW, WIDE = 9, 141  # units: within one tile, and over several, the last of them not full
FEWER = 37  # the same, where tiles are of 16 units
KINDS = {  # what each has that the others have not
    "LSTM": cells.LSTMCell,
    "peephole": cells.PeepholeLSTMCell,  # vectors of weights, the new state within the step
    "naive": cells.NaiveLSTMCell,  # eight weights, put together
    "article": cells.ArticlePeepholeLSTMCell,  # the state that is multiplied is not the output
    "layer norm": cells.LayerNormLSTMCell,  # reductions of rows
    "GRU": cells.GRUCell,  # a product whose result is read by parts in unlike ways
    "RNN": cells.RNNCell,  # one sum of products
}


class NoProduct(flexrnn.Cell):
    """No product with the state, only parameters that are stretched over rows or units."""

    State: Any = cells.LSTMCell.State

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kind: Any) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size, **kind) / 3)
        self.decay = nn.Parameter(torch.randn(hidden_size, **kind))

    def step(self, x: Tensor, state: Any) -> Any:
        h, c = state
        c = torch.sigmoid(self.decay).expand_as(c) * c + nn.functional.linear(x, self.weight_ih)
        return self.State(h=torch.tanh(c) * 0.5 + h * self.decay.expand_as(h), c=c)


class TwoProducts(flexrnn.Cell):
    """A product of what another one made, in the same step (an MGU with a candidate apart)."""

    State: Any = cells.RNNCell.State

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kind: Any) -> None:
        super().__init__(input_size, hidden_size)
        scale = hidden_size**-0.5
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size, **kind) / 3)
        self.weight_hh = nn.Parameter(torch.randn(2 * hidden_size, hidden_size, **kind) * scale)

    def step(self, x: Tensor, state: Any) -> Any:
        (h,) = state
        W, V = self.weight_hh.chunk(2)
        f = torch.sigmoid(nn.functional.linear(x, self.weight_ih) + nn.functional.linear(h, W))
        g = torch.softmax(nn.functional.linear(f * h, V), -1)
        return self.State(h=(1 - f) * h + f * g)


class DeepInput(flexrnn.Cell):
    """What is made of the input alone, and kept for the backward pass, is multiplied again."""

    State: Any = cells.RNNCell.State

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kind: Any) -> None:
        super().__init__(input_size, hidden_size)
        self.first = nn.Parameter(torch.randn(6, input_size, **kind) / 3)
        self.second = nn.Parameter(torch.randn(hidden_size, 6, **kind) / 3)
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, hidden_size, **kind) / hidden_size)

    def step(self, x: Tensor, state: Any) -> Any:
        deep = nn.functional.linear(torch.tanh(nn.functional.linear(x, self.first)), self.second)
        return self.State(h=torch.tanh(deep + nn.functional.linear(state.h, self.weight_hh)))


KINDS |= {"no product": NoProduct, "two products": TwoProducts, "deep input": DeepInput,
          "made ahead": RotatedCell}  # fmt: skip
SUMS = ("layer norm", "two products")  # kinds with sums over all units


def operands(layer: flexrnn.FlexRNN, T: int, B: int, I: int, device: str) -> tuple[Tensor, Any]:
    dtype = next(layer.parameters()).dtype
    x = torch.randn(T, B, I, dtype=dtype, device=device)
    with torch.no_grad(), flexrnn.backend("reference"):
        state = layer(x)[1]
    state = state if isinstance(state, tuple) else (state,)
    return x, tuple(torch.randn_like(s) for s in state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("many", [False, True], ids=["one tile", "several"])
def test_kinds_of_programs(judge: Judge, tier: str, kind: str, many: bool, device: str) -> None:
    # Interpreted, programs that meet for every sum over all units take a second each.
    wide = FEWER if kind in SUMS and tier != "sequence" else WIDE
    layer = flexrnn.FlexRNN(KINDS[kind], 5, wide if many else NARROW, dtype=DOUBLE, device=device)
    judge(layer, *operands(layer, 2, 3, 5, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["LSTM", "layer norm"])
def test_types(judge: Judge, tier: str, kind: str, dtype: torch.dtype, device: str) -> None:
    layer = flexrnn.FlexRNN(KINDS[kind], 5, NARROW, dtype=dtype, device=device)
    judge(layer, *operands(layer, 3, 3, 5, device))


@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (1, 17, 16), (4, 1, 3), (2, 33, 17)])
def test_odd_sizes(judge: Judge, tier: str, T: int, B: int, H: int, device: str) -> None:
    layer = flexrnn.LSTM(3, H, dtype=DOUBLE, device=device)
    judge(layer, *operands(layer, T, B, 3, device))


def test_no_stage_is_empty() -> None:
    """The share of the old state that zoneout expects waits for the new one, in a later stage."""
    layer = flexrnn.LayerNormLSTM(5, WIDE, zoneout=0.3).eval()
    program = flexrnn.explain(layer, torch.randn(2, 1, 5)).steps[0].program
    assert program is not None
    loop = plan.plan_of(program, program.fields[:1], torch.float32).forward.stages
    assert all(stage.values or stage.products or stage.reduced for stage in loop.stages)


def test_resets(judge: Judge, tier: str, device: str) -> None:
    layer = flexrnn.GRU(5, NARROW, dtype=DOUBLE, device=device)
    x, hx = operands(layer, 4, 3, 5, device)
    reset = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)
    judge(layer, x, hx, reset=reset.to(device))


def test_masks_and_projection(judge: Judge, tier: str, device: str) -> None:
    layer = flexrnn.FlexRNN(
        cells.PeepholeLSTMCell, 5, NARROW, zoneout=0.3, dtype=DOUBLE, device=device
    )
    judge(layer, *operands(layer, 3, 2, 5, device))
    layer = flexrnn.LSTM(5, NARROW, proj_size=4, dtype=DOUBLE, device=device)
    judge(layer, *operands(layer, 3, 2, 5, device))


@pytest.mark.card
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_on_a_card(judge: Judge, tier: str, kind: str, dtype: torch.dtype) -> None:
    for T, B, H in itertools.product((1, 40), (1, 17, 64), (1, 32, 100, 256, 777)):
        layer = flexrnn.FlexRNN(KINDS[kind], 5, H, dtype=dtype, device="cuda")
        x, hx = operands(layer, T, B, 5, "cuda")
        judge(layer, x, hx)
        judge(layer, x, hx, lengths=torch.randint(1, T + 1, (B,)))
        judge(layer, x, hx, lengths=torch.randint(1, T + 1, (B,), device="cuda"))
        judge(layer, x, hx, reset=torch.rand(T, B, device="cuda") < 0.1)


def test_views_empty_batches_and_what_does_not_learn(device: str) -> None:
    """Operands as layers get them: strided, shifted by a number, expanded, none at all."""
    layer = flexrnn.LSTM(5, NARROW, batch_first=True, dtype=DOUBLE, device=device)
    layer.bias_ih_l0.requires_grad_(False)
    whole = torch.randn(3, 4, 6, dtype=DOUBLE, device=device)
    for x in (whole[..., 1:], whole[..., :5].mT.contiguous().mT, whole[:1, :, :5].expand(3, 4, 5)):
        found = []
        for engine in ("cuda", "reference"):
            given = x.detach().requires_grad_()
            with flexrnn.backend(engine):
                output = layer(given)[0]
            learns = [given, *(p for p in layer.parameters() if p.requires_grad)]
            found.append([output, *torch.autograd.grad(output.sum(), learns)])
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)
    with flexrnn.backend("cuda"):
        output, (h, c) = layer(whole[:0, :, :5])
    assert output.shape == (0, 4, NARROW)
    assert h.shape == c.shape == (1, 0, NARROW)


def test_what_it_cannot_run_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    layer, x = flexrnn.GRU(3, 5, backend="cuda"), torch.randn(2, 1, 3)
    with flexrnn.backend("cuda"), pytest.raises(RuntimeError, match="there is nothing to run"):
        flexrnn.scan(lambda x, state: state, torch.zeros(1, 5, device=device), x.to(device))
    monkeypatch.setattr(kernels, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match="cuda engine runs on CUDA, got tensors on cpu"):
        layer(x)
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels.triton.cache_clear()
    with pytest.raises(RuntimeError, match="cuda engine needs Triton"):
        layer(x)


def test_the_operator_carries_it(device: str) -> None:
    layer = flexrnn.LSTM(5, NARROW, dtype=DOUBLE, device=device, backend="cuda")
    x = torch.randn(3, 2, 5, dtype=DOUBLE, device=device)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-13, atol=1e-14)
    torch.compiler.reset()
