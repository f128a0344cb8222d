"""The shortest way of `layer.step`: taken where it may be, with the numbers of the long one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN
from flexrnn.call import quick

Make = Callable[..., FlexRNN]
B, I, H = 4, 3, 5


@pytest.fixture(autouse=True)
def without_derivatives() -> Iterator[None]:
    with torch.no_grad():
        yield


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def begun(layer: FlexRNN, batch: int = B) -> Any:
    """A state that is not zero."""
    return layer.step(randn(batch, I))[1]


def is_taken(layer: FlexRNN, x: Tensor, state: Any) -> bool:
    return quick.step(layer, x, state) is not None


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize("layers", [1, 3])
def test_it_gives_the_numbers_of_the_reference(make: Make, layers: int, batch: int) -> None:
    layer = make(num_layers=layers, batch_first=layers == 3)
    state, x = begun(layer, batch), randn(batch, I)
    with flexrnn.backend("reference"):
        assert not is_taken(layer, x, state)
        expected = layer.step(x, state)
    found = layer.step(x, state)
    assert type(found[1]) is type(expected[1])
    assert_close(found, expected, rtol=1e-13, atol=1e-14)
    assert is_taken(layer, x, state)


def test_rows_that_begin_anew(make: Make) -> None:
    layer = make(num_layers=2)
    state, x, reset = begun(layer), randn(B, I), torch.tensor([True, False, True, False])
    for field in (state,) if isinstance(state, Tensor) else state:
        field[:, 0] = torch.nan  # of which nothing is left
    with flexrnn.backend("reference"):
        assert quick.step(layer, x, state, reset) is None
        expected = layer.step(x, state, reset=reset)
    for _ in range(4):  # prepared in the end
        found = quick.step(layer, x, state, reset)
        assert found is not None
        assert type(found[1]) is type(expected[1])
        assert_close(found, expected, rtol=1e-13, atol=1e-14)
    assert_close(quick.step(layer, x, None, reset), quick.step(layer, x, None), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, B])
@pytest.mark.parametrize("first", ["cut", "whole"])
def test_rows_begin_anew_in_a_state_that_is_the_same_for_all(
    make: Make, first: str, rows: int
) -> None:
    """It lies otherwise once some rows of it are zero."""
    layer, x = make(num_layers=3), randn(B, I)
    state, reset = begun(layer), torch.tensor([False, True, False, False])
    fields = (state,) if isinstance(state, Tensor) else state
    shared = tuple(field[:1, :rows].expand_as(field) for field in fields)
    given = shared[0] if isinstance(state, Tensor) else shared
    marks = [reset, None] if first == "cut" else [None, reset]
    for mark in marks * 2:
        with flexrnn.backend("reference"):
            expected = layer.step(x, given, reset=mark)
        for _ in range(3):  # prepared in the end
            found = quick.step(layer, x, given, mark)
            assert found is not None
            assert_close(found, expected, rtol=1e-13, atol=1e-14)


class OwnStart(flexrnn.cells.RNNCell):
    """Begins with its bias."""

    def initial_state(self, batch_shape: Any = (), dtype: Any = None, device: Any = None) -> Any:
        bias: Any = self.bias_hh
        return flexrnn.cells.HiddenState(bias.to(dtype).expand(*batch_shape, -1))


@pytest.mark.parametrize("kind", ["a start of its own", "a learned start", "parametrized"])
def test_rows_that_do_not_begin_with_zeros_take_the_long_way(kind: str) -> None:
    cell = OwnStart if kind == "a start of its own" else flexrnn.cells.RNNCell
    layer = FlexRNN(cell, I, H, learn_initial_state=kind == "a learned start")
    for parameter in layer.parameters():
        parameter.normal_()
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    x = torch.randn(B, I)
    state = layer.step(x)[1]
    reset = torch.tensor([True, False, True, False])
    assert quick.step(layer, x, state, reset) is None
    with flexrnn.backend("reference"):
        expected = layer.step(x, state, reset=reset)
    assert_close(layer.step(x, state, reset=reset), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [False, True])
def test_a_parametrization_is_computed_once_a_step(cut: bool) -> None:
    """It may change what it remembers, as `spectral_norm`'s does."""
    calls = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return weight

    class Uncompiled(flexrnn.cells.RNNCell):
        def step(self, x: Tensor, state: Any) -> Any:
            return super().step(x.sort().values, state)

    for cell in (flexrnn.cells.RNNCell, Uncompiled):
        layer = FlexRNN(cell, I, H)
        nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Counted())
        state = layer.step(torch.randn(B, I))[1]
        calls.clear()
        layer.step(torch.randn(B, I), state, reset=torch.ones(B).bool() if cut else None)
        assert len(calls) == 1


def test_what_cannot_begin_anew_takes_the_long_way(refused: Any) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(B, I)
    reset = torch.ones(B, dtype=torch.bool)
    for state in (torch.randn(1, B, H + 1), torch.randn(1, B, H).double(), (), [1, 2]):
        assert quick.step(layer, x, state, reset) is None
    state = layer.step(x)[1]
    for mark in (reset.to("meta"), reset.to_sparse()):
        for given in (None, state):
            assert quick.step(layer, x, given, mark) is None
    refused(lambda: layer.step(x, torch.randn(1, B, 2), reset=reset), RuntimeError,
            "Expected hidden size (1, 4, 5), got [1, 4, 2]")  # fmt: skip
    refused(lambda: layer.step(x, reset=reset.to("meta")), RuntimeError,
            "reset: expected it on the input's device cpu, got meta")  # fmt: skip


def test_a_sequence_of_one_step_takes_it_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(num_layers=2)
    x, state = randn(1, B, I), begun(layer)
    found = quick.call(layer, x, state)
    assert found is not None
    with flexrnn.backend("reference"):
        assert_close(found, layer(x, state), rtol=1e-13, atol=1e-14)
    with torch.enable_grad():
        found = gradients(layer, x, state)
        with flexrnn.backend("reference"):
            assert_close(found, gradients(layer, x, state), rtol=1e-12, atol=1e-13)
        assert quick.call(layer, x, state) is not None
        monkeypatch.setattr(quick, "_MANY", H)  # the reference has derivatives as fast
        other = make()
        assert quick.call(other, x, begun(other)) is None


def gradients(layer: FlexRNN, x: Tensor, state: Any) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x, state)[0].square().sum(), [x, *layer.parameters()])


def test_nothing_of_the_result_is_anybody_elses_memory() -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    state, x = begun(layer), randn(B, I)
    before = [s.clone() for s in state]
    output, (h, c) = layer.step(x, state)
    kept = h.clone()
    output.fill_(0)
    c.fill_(7)
    layer.step(x, state)
    assert_close(h, kept, rtol=0, atol=0)
    assert_close(list(state), before, rtol=0, atol=0)


def test_a_weight_counts_as_it_is_at_the_call() -> None:
    layer = flexrnn.GRU(I, H, dtype=torch.float64)
    state, x = begun(layer), randn(B, I)
    first = layer.step(x, state)[0]
    weight = layer.get_parameter("weight_hh_l0")
    weight.mul_(2)
    second = layer.step(x, state)[0]
    layer.weight_hh_l0 = nn.Parameter(weight / 2)
    assert is_taken(layer, x, state)
    assert not torch.equal(first, second)
    assert_close(layer.step(x, state)[0], first)
    weights = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}

    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.layer.step(x, state)[0]

    names = {f"layer.{name}": weight for name, weight in weights.items()}
    with_zeros = torch.func.functional_call(Stepped(), names, (x, state))
    assert_close(with_zeros, state[0] / 2)  # z = 1/2, n = 0


class ScaledCell(flexrnn.cells.RNNCell):
    scale = 1.0

    def step(self, x: Any, state: Any) -> Any:
        (h,) = super().step(x, state)
        h = h * self.scale
        extra = getattr(self, "offset", None)
        return self.State(h if extra is None else h + extra)


def test_what_the_cell_holds_counts_as_it_is_at_the_call() -> None:
    layer = FlexRNN(ScaledCell, I, H, dtype=torch.float64)
    cell: Any = layer.cells[0]
    state, x = begun(layer), randn(B, I)
    first = layer.step(x, state)[0]
    assert is_taken(layer, x, state)
    cell.scale = 3.0
    assert_close(layer.step(x, state)[0], 3 * first)
    cell.offset = torch.ones(H, dtype=torch.float64)
    assert not is_taken(layer, x, state)
    assert_close(layer.step(x, state)[0], 3 * first + 1)
    del cell.offset
    assert is_taken(layer, x, state)
    cell.register_buffer("offset", torch.ones(H, dtype=torch.float64))
    assert not is_taken(layer, x, state)
    assert_close(layer.step(x, state)[0], 3 * first + 1)


def test_it_is_not_taken_where_more_is_asked_for() -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    state, x = begun(layer), randn(B, I)
    assert is_taken(layer, x, state)
    with torch.enable_grad():
        assert not is_taken(layer, x, state)
    with flexrnn.record(layer):
        assert not is_taken(layer, x, state)
    with flexrnn.backend("interpreter"):
        assert not is_taken(layer, x, state)
    with torch.autocast("cpu"):
        assert not is_taken(layer, x, state)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert not is_taken(layer, x, state)
        handle.remove()
    assert is_taken(layer, x, None)
    for other in (state[0], state[:1], [*state], (state[0], state[1][:, :2]),
                  (state[0].float(), state[1])):  # fmt: skip
        assert not is_taken(layer, x, other)
    for wrong in (x[0], x[:, :2], x.float(), x[:2]):
        assert not is_taken(layer, wrong, state)
    assert is_taken(layer, x, state)
    zoned = flexrnn.LSTM(I, H, dtype=torch.float64, zoneout=0.1)
    assert not is_taken(zoned, x, state)
    dropped = flexrnn.LSTM(I, H, 2, dtype=torch.float64, dropout=0.1)
    assert not is_taken(dropped, x, begun(dropped))
    assert is_taken(dropped.eval(), x, begun(dropped))


def test_tensors_of_another_kind_take_the_long_way() -> None:
    layer = flexrnn.RNN(I, H, dtype=torch.float64)
    state, x = begun(layer), randn(B, I)
    mapped = torch.func.vmap(lambda x, state: layer.step(x, state)[0], (0, 1))
    assert_close(mapped(x[:, None], state[:, :, None]), layer.step(x, state)[0][:, None])
    with torch.inference_mode():
        assert_close(layer.step(x, state), tuple(t.clone() for t in layer.step(x, state)))
    assert not layer.step(x, state)[0].is_inference()


def test_a_step_that_is_no_program_takes_the_long_way() -> None:
    class Centred(flexrnn.cells.RNNCell):
        def step(self, x: Any, state: Any) -> Any:
            (h,) = super().step(x, state)
            return self.State(h - h.mean(0))

    layer = FlexRNN(Centred, I, H, dtype=torch.float64)
    state, x = torch.zeros(1, B, H, dtype=torch.float64), randn(B, I)
    assert not is_taken(layer, x, state)
    assert_close(layer.step(x, state)[0].mean(0), torch.zeros(H, dtype=torch.float64))


class TiedCell(flexrnn.Cell):
    State = flexrnn.cells.HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None, tied: bool = False):  # fmt: skip
        super().__init__(input_size, hidden_size)
        self.a = nn.Parameter(torch.rand(hidden_size, dtype=dtype))
        self.b = self.a if tied else nn.Parameter(torch.rand(hidden_size, dtype=dtype))
        self.register_parameter("c", nn.Parameter(torch.rand(hidden_size)) if bias else None)

    def step(self, x: Any, state: Any) -> Any:
        (h,) = state
        h = torch.tanh(h * self.a + x.sum(-1, keepdim=True)) + self.b
        c: Any = self.c
        return self.State(h if c is None else h + c.to(h.dtype))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_layers_that_differ_in_which_parameters_they_have_do_not_meet(order: int) -> None:
    options: list[dict[str, Any]] = [{"bias": False}, {"tied": True, "bias": False}, {}]
    layers = [FlexRNN(TiedCell, I, H, dtype=torch.float64, **o) for o in options]
    x, state = randn(B, I), randn(1, B, H)
    for layer in layers[order:] + layers[:order]:
        with flexrnn.backend("reference"):
            expected = layer.step(x, state)
        assert_close(layer.step(x, state), expected, rtol=1e-13, atol=1e-14)


def test_tensors_without_memory_take_the_long_way() -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    state, x = begun(layer), randn(B, I)
    assert not is_taken(layer, x, (state[0], state[1].to("meta")))
    assert not is_taken(layer.to("meta"), x, state)
