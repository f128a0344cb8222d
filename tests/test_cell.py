"""`Cell`: what a class of one's own inherits."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flexrnn import Cell, FlexRNN, GRUCell, LSTMCell, RNNCell, backend
from flexrnn.cell import accepts
from flexrnn.cells import HiddenState, LSTMState
from flexrnn.fields import field_names, field_sizes, unwrap, wrap

Refused = Callable[[Callable[[], object], type[Exception], str], None]


class Trio(NamedTuple):
    out: Tensor
    memory: Tensor
    last_x: Tensor


class TrioCell(Cell):
    """Three fields of three widths; the initial state is not zero."""

    State = Trio

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.mix = nn.Linear(input_size + hidden_size, 2, device=device, dtype=dtype)
        self.keep = nn.Linear(2, hidden_size, device=device, dtype=dtype)

    @property
    def state_sizes(self) -> Mapping[str, int]:
        return {"out": 2, "last_x": self.input_size}

    def initial_state(self, batch_shape=(), dtype=None, device=None) -> Trio:
        zeros = super().initial_state(batch_shape, dtype, device)
        return zeros._replace(memory=zeros.memory + 1)

    def step(self, x: Tensor, state: Trio) -> Trio:
        out = self.mix(torch.cat([x - state.last_x, state.memory], -1)).tanh()
        return Trio(out, 0.5 * state.memory + self.keep(out), x)


I, H, B, T = 3, 5, 4, 6


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


class MatrixStateCell(TrioCell):
    """A width that is none."""

    @property
    def state_sizes(self) -> Any:
        return {"memory": (4, 4)}


def test_a_width_is_a_number(refused: Refused) -> None:
    message = (
        "MatrixStateCell.state_sizes: expected the width of memory as an int, got (4, 4); a matrix "
        "is kept flat, and viewed as one in step"
    )
    refused(lambda: FlexRNN(MatrixStateCell, I, H), TypeError, message)


class MethodCell(TrioCell):
    """A mapping that wants to be called."""

    def state_sizes(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {"memory": 4}


class MisspeltCell(TrioCell):
    """A width of a field that is none."""

    @property
    def state_sizes(self) -> Mapping[str, int]:
        return {"memmory": 4}


class BareCell(TrioCell):
    """Its sizes are nowhere."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        nn.Module.__init__(self)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            MethodCell,
            "MethodCell.state_sizes: expected a property that is a mapping, got method; put "
            "@property in front of the method",
        ),
        (
            MisspeltCell,
            "MisspeltCell.state_sizes: expected names of State's fields (out, memory, last_x), "
            "got 'memmory'",
        ),
        (BareCell, "BareCell.__init__: expected super().__init__(input_size, hidden_size)"),
    ],
)
def test_a_state_whose_widths_cannot_be_told(refused: Refused, cell: Any, message: str) -> None:
    refused(lambda: FlexRNN(cell, I, H), TypeError, message)


class ForgottenCell(TrioCell):
    """Its widths are made of what it has not."""

    @property
    def state_sizes(self) -> Any:
        return {"memory": self.heads}


def test_what_is_missing_inside_of_widths_is_said(refused: Refused) -> None:
    message = "ForgottenCell.state_sizes: 'ForgottenCell' object has no attribute 'heads'"
    refused(lambda: FlexRNN(ForgottenCell, I, H), TypeError, message)


def test_names_and_widths_of_the_state() -> None:
    cell = TrioCell(I, H)
    assert field_names(cell) == field_names(TrioCell) == ("out", "memory", "last_x")
    assert field_sizes(cell) == (2, H, I)
    assert cell.output_size == 2
    assert (LSTMCell(I, H).output_size, LSTMCell(I, H, proj_size=2).output_size) == (H, 2)


@pytest.mark.parametrize("batch_shape", [(), (B,), (2, B), (0,)])
def test_the_initial_state_has_the_shape_dtype_and_device_asked_for(
    batch_shape: tuple[int, ...],
) -> None:
    state = TrioCell(I, H).initial_state(batch_shape, torch.float16, "meta")
    assert isinstance(state, Trio)
    assert [tuple(s.shape) for s in state] == [(*batch_shape, w) for w in (2, H, I)]
    assert {(s.dtype, s.device.type) for s in state} == {(torch.float16, "meta")}
    assert not LSTMCell(I, H).initial_state(batch_shape).c.any()


def test_a_call_is_one_step_from_the_initial_state() -> None:
    cell, x = TrioCell(I, H, dtype=torch.float64), randn(B, I)
    start = cell.initial_state((B,), torch.float64)
    assert_close(cell(x), cell.step(x, start), rtol=0, atol=0)
    assert isinstance(cell(x), Trio)
    assert_close(cell(x, list(start)), cell(x), rtol=0, atol=0)
    one = cell(x[0])
    assert isinstance(one, Trio)
    assert [tuple(s.shape) for s in one] == [(2,), (H,), (I,)]
    assert_close(cell(x[0], one), Trio(*(s[0] for s in cell(x[:1], Trio(*(s[None] for s in one))))))


def test_layers_whose_states_have_unlike_widths_are_refused(refused: Refused) -> None:
    message = "num_layers: expected the state's field last_x of TrioCell to be as wide in every "
    message += "layer, got 3 at input_size 3 and 2 at input_size 2"
    refused(lambda: FlexRNN(TrioCell, I, H, num_layers=2), ValueError, message)
    output, final = FlexRNN(TrioCell, 2, H, num_layers=2)(torch.randn(T, B, 2))
    assert output.shape == (T, B, 2)
    assert [tuple(s.shape) for s in final] == [(2, B, 2), (2, B, H), (2, B, 2)]


def test_a_layer_of_one_direction_is_its_cell_in_a_loop() -> None:
    layer = FlexRNN(TrioCell, I, H, dtype=torch.float64)
    cell = TrioCell(I, H, dtype=torch.float64)
    for mine, theirs in zip(cell.parameters(), layer.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    x, state, rows = randn(T, B, I), None, []
    for row in x:
        state = cell(row, state)
        rows.append(state.out)
    output, final = layer(x)
    assert_close(output, torch.stack(rows), rtol=1e-12, atol=1e-12)
    assert_close(Trio(*(s[0] for s in final)), state, rtol=1e-12, atol=1e-12)


def test_a_state_of_one_field_is_the_bare_tensor_outside_step() -> None:
    seen: list[type] = []

    class Watched(GRUCell):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            seen.append(type(state))
            return super().step(x, state)

    cell, x = Watched(I, H, dtype=torch.float64), randn(B, I)
    h = cell(x)
    assert type(h) is Tensor
    assert_close(cell(x, h), cell(x, (h,)), rtol=0, atol=0)
    assert type(FlexRNN(Watched, I, H, dtype=torch.float64)(x[None], h[None])[1]) is Tensor
    assert set(seen) == {HiddenState}


def test_wrap_and_unwrap_are_inverse() -> None:
    gru, lstm, h, c = GRUCell(I, H), LSTMCell(I, H), torch.ones(H), torch.zeros(H)
    assert unwrap(gru.State(*wrap(gru, h))) is h
    assert unwrap(lstm.State(*wrap(lstm, [h, c]))) == LSTMState(h, c)
    with pytest.raises(
        TypeError, match=r"^state: expected a tuple \(h, c\), got tuple of length 1$"
    ):
        wrap(lstm, (h,), "state")


def test_parameters_are_drawn_within_torchs_bound() -> None:
    bound = 1 / math.sqrt(64)
    for cell in (LSTMCell(64, 64), GRUCell(64, 64), RNNCell(64, 64)):
        for parameter in cell.parameters():
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.9 * bound


def test_a_cell_without_units_draws_nothing_and_divides_by_nothing() -> None:
    cell = GRUCell(I, 0)
    cell.reset_parameters()
    assert [p.numel() for p in cell.parameters()] == [0, 0, 0, 0]


def test_torchs_equivalent_is_lost_by_whoever_overrides_step() -> None:
    class Renamed(LSTMCell):
        pass

    class Changed(LSTMCell):
        def step(self, x: Tensor, state: LSTMState) -> LSTMState:
            return super().step(2 * x, state)

    class Grandchild(Changed):
        pass

    class Same(LSTMCell):
        torch_equivalent = "lstm"

        def step(self, x: Tensor, state: LSTMState) -> LSTMState:
            return super().step(x, state)

    assert LSTMCell.torch_equivalent == Renamed.torch_equivalent == Same.torch_equivalent == "lstm"
    assert Changed.torch_equivalent is None
    assert Grandchild.torch_equivalent is None
    assert TrioCell.torch_equivalent is None


def test_tap_and_drop_recurrent_do_nothing_by_themselves() -> None:
    cell, h = GRUCell(I, H), torch.ones(H)
    assert cell.tap(h=h) is None
    assert cell.drop_recurrent(h) is h


def test_gates_and_state_are_declared_on_the_class() -> None:
    assert not hasattr(TrioCell, "gates")
    assert LSTMCell.gates == ("i", "f", "g", "o")
    assert LSTMCell.State is LSTMState


@pytest.mark.parametrize(
    "kind", [nn.Linear, nn.ModuleList, nn.Parameter, Tensor], ids=lambda kind: kind.__name__
)
def test_what_a_cell_has_may_be_called_gates(kind: Any) -> None:
    class Gated(RNNCell):
        def __init__(self, input_size: int, hidden_size: int, **options: Any):
            super().__init__(input_size, hidden_size, **options)
            made: dict[Any, Callable[[], Any]] = {
                nn.Linear: lambda: nn.Linear(I + H, H),
                nn.ModuleList: lambda: nn.ModuleList([nn.Linear(I + H, H)]),
                nn.Parameter: lambda: nn.Parameter(torch.randn(H, I + H)),
            }
            if kind in made:
                self.gates = made[kind]()  # pyright: ignore[reportAttributeAccessIssue]
            else:
                self.register_buffer("gates", torch.randn(H, I + H))

        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            both, gates = torch.cat([x, state.h], -1), cast(Any, self.gates)
            gates = gates[0] if kind is nn.ModuleList else gates
            new = gates(both) if isinstance(gates, nn.Module) else both @ gates.T
            return HiddenState(torch.tanh(new))

    cell, layer, x = Gated(I, H), FlexRNN(Gated, I, H), torch.randn(1, 2, I)
    assert not hasattr(Gated, "gates")
    assert isinstance(cell.gates, kind)
    assert cell(x[0]).shape == (2, H)
    with backend("reference"):
        expected = layer(x)[0]
    assert_close(layer(x)[0], expected)
    assert not hasattr(RNNCell(I, H), "gates")


def test_accepts_knows_keyword_arguments() -> None:
    class Open(GRUCell):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)

    assert accepts(LSTMCell, "proj_size")
    assert not accepts(GRUCell, "proj_size")
    assert accepts(Open, "proj_size")


def test_repr_shows_the_sizes_and_a_missing_bias() -> None:
    assert repr(GRUCell(I, H)) == "GRUCell(3, 5)"
    assert repr(GRUCell(I, H, bias=False)) == "GRUCell(3, 5, bias=False)"
    assert repr(TrioCell(I, H)).startswith("TrioCell(\n  3, 5\n  (mix): Linear(")
