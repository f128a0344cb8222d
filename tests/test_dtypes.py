"""Dtypes of cells, their states and their inputs, complex ones among them; what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, LSTMCell, backend
from flexrnn.dtypes import field_dtypes, first_weight, loop_dtypes, real_to
from flexrnn.fields import complex_fields

from .lru import LRUCell, LRUState, RealCell, UnitaryCell

T, B, I, H = 4, 2, 3, 5
Refused = Callable[[Callable[[], object], type[Exception], str], None]


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)]
)
def test_a_cell_begins_with_complex_zeros(dtype: torch.dtype, kind: torch.dtype) -> None:
    state = LRUCell(I, H).initial_state((B,), dtype)
    assert [field.dtype for field in state] == [dtype, kind]
    assert not any(field.any() for field in state)
    assert field_dtypes(LRUCell(I, H), dtype) == field_dtypes(LRUCell(I, H), kind) == (dtype, kind)
    assert field_dtypes(LSTMCell(I, H), dtype) == (dtype, dtype)


def test_without_a_dtype_it_is_the_default() -> None:
    assert [field.dtype for field in LRUCell(I, H).initial_state()] == [
        torch.float32,
        torch.complex64,
    ]
    with torch.device("meta"):
        assert LRUCell(I, H).initial_state().z.device.type == "meta"


def test_where_all_parameters_are_complex_the_dtype_is_that_of_their_parts() -> None:
    cell, x = UnitaryCell(I, H, dtype=torch.float64), torch.randn(B, I, dtype=torch.float64)
    weight = first_weight(cell)
    assert weight is not None
    assert weight.dtype == torch.complex128
    assert loop_dtypes(cell, x) == (torch.float64, torch.float64)
    assert cell(x).dtype == torch.complex128
    assert cell(x[0]).shape == (H,)


@pytest.mark.parametrize("engine", ["reference", "interpreter", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_state_of_complex_parameters(engine: str, dtype: torch.dtype) -> None:
    layer = FlexRNN(RealCell, I, H, dtype=dtype, learn_initial_state=True, num_layers=2)
    assert layer.initial_h_l0.dtype == dtype
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    found = []
    for name in ("reference", engine):
        with backend(name):
            output, final = layer(x)
            grads = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
        assert output.dtype == final.dtype == dtype
        found.append([output, final, *grads])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert_close(*found, rtol=tolerance, atol=tolerance)


class AllCell(UnitaryCell):
    """It says of nothing that it is complex."""

    complex_fields = ()


@pytest.mark.parametrize("engine", ["reference", "interpreter", "cpu"])
def test_where_everything_is_complex_nobody_has_to_say_so(engine: str) -> None:
    layer, said = (FlexRNN(cell, I, H, dtype=torch.float64) for cell in (AllCell, UnitaryCell))
    said.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.complex128)
    with backend(engine):
        assert_close(layer(x), said(x), rtol=1e-12, atol=1e-12)
    assert AllCell(I, H).initial_state((B,), torch.complex128).z.dtype == torch.complex128


@pytest.mark.parametrize("engine", ["interpreter", "cpu"])
@pytest.mark.parametrize("kind", [flexrnn.GRU, flexrnn.LSTM])
def test_a_layer_of_the_library_may_be_complex_as_a_whole(kind: Any, engine: str) -> None:
    layer = kind(I, H, num_layers=2, bidirectional=True, dtype=torch.complex128)
    x = torch.randn(T, B, I, dtype=torch.complex128, requires_grad=True)
    found = []
    for name in ("reference", engine):
        with backend(name):
            output, _ = layer(x, lengths=torch.tensor([T, 2]))
        loss = output.abs().square().sum()
        found.append([output, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    assert_close(*found, rtol=1e-9, atol=1e-9)


class PlainCell(flexrnn.Cell):
    """No parameters at all."""

    State = LRUState
    complex_fields = ("z",)

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)

    def step(self, x: Tensor, state: LRUState) -> LRUState:
        z = 0.5j * state.z + x
        return LRUState(z.imag, z)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_without_parameters_it_is_the_inputs(dtype: torch.dtype) -> None:
    layer = FlexRNN(PlainCell, 3, 3)
    output, (y, z) = layer(torch.ones(2, B, 3, dtype=dtype))
    assert output.dtype == y.dtype == torch.float64
    assert_close(z, torch.full((1, B, 3), 1 + 0.5j, dtype=torch.complex128))


def test_a_field_is_cast_unless_it_is_complex() -> None:
    real, z = torch.ones(3), torch.ones(3) + 1j
    assert real_to(real, torch.float32) is real
    assert real_to(real, torch.bfloat16).dtype == torch.bfloat16
    assert real_to(z, torch.bfloat16) is z


class ListedCell(LRUCell):
    complex_fields: Any = ["z"]  # noqa: RUF012  # which is refused


class SingleCell(LRUCell):
    complex_fields: Any = "z"


class UnknownCell(LRUCell):
    complex_fields = ("zz",)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (ListedCell, "ListedCell.complex_fields: expected a tuple of names, got list"),
        (SingleCell, "SingleCell.complex_fields: expected a tuple of names, got str"),
        (
            UnknownCell,
            "UnknownCell.complex_fields: expected names of State's fields (y, z), got 'zz'",
        ),
    ],
)
def test_what_is_complex_is_said_by_names(refused: Refused, cell: Any, message: str) -> None:
    refused(lambda: FlexRNN(cell, I, H), TypeError, message)
    refused(lambda: cell(I, H), TypeError, message)


def test_an_instance_may_say_it() -> None:
    class OptionCell(PlainCell):
        complex_fields = ()

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.complex_fields = ("z",)

    assert complex_fields(OptionCell(3, 3)) == ("z",)
    assert FlexRNN(OptionCell, 3, 3)(torch.ones(2, B, 3))[1].z.is_complex()


def test_a_given_state_is_of_the_dtype_that_the_layer_returns(refused: Refused) -> None:
    layer, x = FlexRNN(LRUCell, I, H), torch.randn(T, B, I)
    y, z = torch.zeros(1, B, H), torch.zeros(1, B, H, dtype=torch.complex64)
    layer(x, (y, z))
    message = "hx: expected z of torch.complex64, got torch.float32"
    refused(lambda: layer(x, (y, y)), RuntimeError, message)
    refused(lambda: layer.cells[0](x[0], (y[0], y[0])), RuntimeError, message)
    message = "hx: expected z of torch.complex64, got torch.complex128"
    refused(lambda: layer(x, (y, z.to(torch.complex128))), RuntimeError, message)
    message = "hx: expected y of the input's dtype torch.float32, got torch.complex64"
    refused(lambda: layer(x, (z, z)), RuntimeError, message)
    message = "hx: expected y of torch.float32, got torch.complex64"
    refused(lambda: layer(x + 0j, (z, z)), RuntimeError, message)


def test_an_input_is_of_the_layers_precision(refused: Refused) -> None:
    layer, x = FlexRNN(LRUCell, I, H), torch.randn(T, B, I)
    for dtype in (torch.float64, torch.complex128):
        refused(
            lambda dtype=dtype: layer(x.to(dtype)),
            ValueError,
            f"RNN input dtype ({dtype}) does not match weight dtype (torch.float32). Convert "
            "input: input.to(torch.float32), or make another layer: model.to would leave complex "
            "parameters or cut them",
        )
    message = "input: expected dtype torch.float32, the weights', got torch.complex128"
    refused(lambda: LRUCell(I, H)(x[0].to(torch.complex128)), RuntimeError, message)
    refused(
        lambda: flexrnn.LSTM(I, H)(x + 0j),
        ValueError,
        "RNN input dtype (torch.complex64) does not match weight dtype (torch.float32). Convert "
        "input: input.to(torch.float32), or convert model: model.to(torch.complex64)",
    )


class ForgottenCell(LRUCell):
    """Its step makes a real number of a complex one."""

    def step(self, x: Tensor, state: Any) -> Any:
        y, z = super().step(x, state)
        return LRUState(y, z.real)


class BeginsCell(LRUCell):
    """It begins with real numbers, where it has said that they are complex."""

    def initial_state(self, batch_shape=(), dtype=None, device=None) -> Any:
        zeros = torch.zeros(*batch_shape, self.hidden_size, dtype=dtype, device=device)
        return LRUState(zeros, zeros)


def test_a_cell_keeps_to_what_it_says(refused: Refused) -> None:
    x = torch.randn(T, B, I)
    message = "ForgottenCell.step: expected z to keep its dtype torch.complex64, got torch.float32"
    refused(lambda: FlexRNN(ForgottenCell, I, H)(x), RuntimeError, message)
    message = (
        f"BeginsCell.initial_state: expected z of shape {(B, H)}, torch.complex64, on cpu, got "
        f"shape {(B, H)}, torch.float32, on cpu"
    )
    refused(lambda: FlexRNN(BeginsCell, I, H)(x), RuntimeError, message)


class UndeclaredCell(LRUCell):
    complex_fields = ()


class BeginsUndeclaredCell(UndeclaredCell):
    def initial_state(self, batch_shape=(), dtype=None, device=None) -> Any:
        y, z = super().initial_state(batch_shape, dtype, device)
        return LRUState(y, z + 0j)


def test_who_has_not_said_it_is_told_how(refused: Refused) -> None:
    x, hint = torch.randn(T, B, I), "; complex_fields names the fields that are complex"
    message = "UndeclaredCell.step: expected z to keep its dtype torch.float32, got torch.complex64"
    refused(lambda: FlexRNN(UndeclaredCell, I, H)(x), RuntimeError, message + hint)
    message = (
        f"BeginsUndeclaredCell.initial_state: expected z of shape {(B, H)}, torch.float32, on cpu, "
        f"got shape {(B, H)}, torch.complex64, on cpu"
    )
    refused(lambda: FlexRNN(BeginsUndeclaredCell, I, H)(x), RuntimeError, message + hint)


class OnesCell(LRUCell):
    """Not zero at the beginning."""

    def initial_state(self, batch_shape=(), dtype=None, device=None) -> Any:
        y, z = super().initial_state(batch_shape, dtype, device)
        return LRUState(y, z + 1j)


def test_a_cell_may_begin_otherwise() -> None:
    ones, zeros, x = FlexRNN(OnesCell, I, H), FlexRNN(LRUCell, I, H), torch.randn(T, B, I)
    zeros.load_state_dict(ones.state_dict())
    hx = (torch.zeros(1, B, H), torch.full((1, B, H), 1j))
    assert_close(ones(x), zeros(x, hx), rtol=0, atol=0)
    learned = FlexRNN(OnesCell, I, H, learn_initial_state=True)
    assert_close(learned.initial_z_l0, nn.Parameter(torch.full((H,), 1j)))
