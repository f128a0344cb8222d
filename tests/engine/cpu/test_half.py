"""Half types and autocast: float32 inside, rounded at the ends."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells

from ..autocasted import Autocast

T, B, I, H = 6, 3, 5, 9
BFLOAT16, FLOAT16 = HALF = (torch.bfloat16, torch.float16)
LENGTHS, RESET = torch.tensor([6, 2, 4]), torch.arange(T * B).view(T, B) % 4 == 1
CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (cells.LSTMCell, {}),
    "projection": (cells.LSTMCell, {"proj_size": 4}),
    "GRU": (cells.GRUCell, {}),
    "peephole": (cells.PeepholeLSTMCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
}


class Turned(flexrnn.Cell):
    """What torch makes of parameters, and draws for each row, comes before the program."""

    State = cells.HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        self.W = nn.Parameter(torch.randn(input_size, hidden_size, **options))
        self.A = nn.Parameter(torch.randn(hidden_size, hidden_size, **options) / hidden_size)

    def step(self, x: Any, state: Any) -> Any:
        turn = torch.matrix_exp((self.A - self.A.T).float()).to(x.dtype)
        kept = nn.functional.dropout(state.h @ turn, 0.3, self.training)
        return cells.HiddenState(torch.tanh(x @ self.W + kept))


@pytest.fixture(params=[False, True], ids=["half", "autocast"])
def make(request: pytest.FixtureRequest) -> Callable[..., flexrnn.FlexRNN]:
    """A layer that computes in a half type: its parameters are of it, or autocast makes them so."""

    def made(half: torch.dtype, cell: Any, I: int, H: int, **options: Any) -> flexrnn.FlexRNN:
        if not request.param:
            return flexrnn.FlexRNN(cell, I, H, dtype=half, **options)
        layer = Autocast(cell, I, H, **options)
        layer.casts_to = half
        return layer

    return made


def input_of(layer: flexrnn.FlexRNN, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=next(layer.parameters()).dtype)


@pytest.mark.usefixtures("multiplied_in")
@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("name", CELLS)
def test_it_keeps_to_the_tolerance_rule(
    make: Callable[..., flexrnn.FlexRNN], judge: Callable[..., None], name: str, half: torch.dtype
) -> None:
    cell, options = CELLS[name]
    layer = make(half, cell, I, H, **options)
    fields = [options.get("proj_size", H), H][: len(cell.State._fields)]
    hx = tuple(input_of(layer, 1, B, width) for width in fields)
    judge(layer, input_of(layer, T, B, I), hx, half)


@pytest.mark.usefixtures("multiplied_in")
def test_so_it_does_with_everything_that_a_layer_adds(
    make: Callable[..., flexrnn.FlexRNN], judge: Callable[..., None]
) -> None:
    options: dict[str, Any] = {"zoneout": 0.3, "recurrent_dropout": 0.5, "checkpoint_every": 4}
    layer = make(BFLOAT16, cells.GRUCell, I, H, bidirectional=True, num_layers=2, **options)
    judge(layer, input_of(layer, T, B, I), None, BFLOAT16, lengths=LENGTHS, reset=RESET)


@torch.no_grad()
def exported(layer: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), file)
    file.seek(0)
    return torch.export.load(file).module()(x)


WAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "call": lambda layer, x: layer(x),
    "states": lambda layer, x: layer(x, return_states=True),
    "lengths": lambda layer, x: layer(x, lengths=LENGTHS),
    "packed": lambda layer, x: layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False)),
    "reset": lambda layer, x: layer(x, reset=RESET),
    "no gradient": lambda layer, x: torch.no_grad()(layer)(x),
    "compile": lambda layer, x: torch.compile(layer, backend="aot_eager", fullgraph=True)(x),
    "export": exported,
}


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for part in value for t in tensors(part)]


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cell", [cells.LSTMCell, Turned])
def test_it_is_float32_rounded_to_the_last_bit(
    make: Callable[..., flexrnn.FlexRNN], cell: Any, way: str
) -> None:
    """By `auto`, without a warning; gradients are those of what is rounded."""
    layer = make(BFLOAT16, cell, I, H)
    single = flexrnn.FlexRNN(cell, I, H, backend="cpu")
    single.load_state_dict(layer.state_dict())
    found = []
    for each in (layer, single):
        torch.manual_seed(1)
        x = torch.randn(T, B, I).bfloat16().to(next(each.parameters()).dtype).requires_grad_()
        results = [t for t in tensors(WAYS[way](each, x)) if t.is_floating_point()]
        rounded = [t.bfloat16() for t in results]
        if each is layer:
            assert {t.dtype for t in results} == {BFLOAT16}
        gradients = []
        if results[0].requires_grad:
            loss = torch.stack([(t.float() * t.detach().float().cos()).sum() for t in rounded])
            gradients = torch.autograd.grad(loss.sum(), [x, *each.parameters()])
        found.append([*rounded, *(g.to(x.dtype) for g in gradients)])
        torch.compiler.reset()
    ours, right = found
    assert all(torch.equal(o, r.to(o.dtype)) for o, r in zip(ours, right, strict=True))


def test_float64_is_left_alone() -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    with flexrnn.backend("cpu"):
        right = layer(x)[0]
        with torch.autocast("cpu"):
            assert torch.equal(layer(x)[0], right)


@pytest.mark.parametrize("within", [False, True])
def test_autocast_does_not_reach_a_backward_pass(within: bool) -> None:
    layer, x = flexrnn.LSTM(I, H, backend="cpu"), torch.randn(T, B, I)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", enabled=within):
            output = layer(x)[0]
        with torch.autocast("cpu", enabled=enabled):
            ones = torch.ones_like(output)
            found.append(torch.autograd.grad(output, list(layer.parameters()), ones))
    assert {g.dtype for gradients in found for g in gradients} == {torch.float32}
    assert_close(*found, rtol=0, atol=0)


@pytest.mark.usefixtures("multiplied_in")
def test_gradients_have_gradients() -> None:
    layer = flexrnn.GRU(I, H, dtype=BFLOAT16, backend="cpu")
    exact = copy.deepcopy(layer).double()
    found = []
    for each in (layer, exact):
        torch.manual_seed(1)
        x = torch.randn(T, B, I).to(next(each.parameters()).dtype).requires_grad_()
        (first,) = torch.autograd.grad(each(x)[0].square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append(second.double())
    assert (found[0] - found[1]).norm() <= 16 * torch.finfo(BFLOAT16).eps * found[1].norm()


@pytest.mark.usefixtures("in_float32")
def test_scan_returns_the_state_in_its_own_dtype() -> None:
    def step(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(h @ w + x)

    h, w, x = torch.randn(B, H), torch.randn(H, H), torch.randn(T, B, H)
    with flexrnn.backend("cpu"):
        exact = flexrnn.scan(step, h, x, w)
        with torch.autocast("cpu"):
            assert_close(flexrnn.scan(step, h, x, w), exact, rtol=0, atol=0)
        for states in flexrnn.scan(step, h.half(), x.half(), w.half()):
            assert states.dtype == FLOAT16


def test_explain_knows() -> None:
    told = flexrnn.explain(flexrnn.LSTM(I, H, dtype=BFLOAT16), torch.randn(T, B, I).bfloat16())
    assert (told.engine, told.steps[0].dtype, told.steps[0].causes) == ("cpu", torch.float32, ())


@pytest.mark.usefixtures("in_float32")
def test_a_single_step_is_rounded_as_a_sequence_is() -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=BFLOAT16), torch.randn(T, B, I).bfloat16()
    assert flexrnn.explain(layer, x[:1]).engine == "cpu"
    right = layer(x)[0][:1]
    assert torch.equal(layer(x[:1])[0], right)
    with torch.no_grad():
        assert torch.equal(layer.step(x[0])[0], right[0])


def test_compiled_ahead_it_needs_no_more(folder: Any) -> None:
    layer = flexrnn.compile(flexrnn.GRU(I, H, dtype=BFLOAT16))
    there = set(folder.rglob("*.so"))
    layer(torch.randn(T, B, I).bfloat16())[0].sum().backward()
    assert there
    assert set(folder.rglob("*.so")) == there
