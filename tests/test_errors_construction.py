"""Mistakes in building a cell or a layer are refused by name, expectation and what came."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import GRUCell, HiddenState, LSTMCell

Refused = Callable[[Callable[[], object], type[Exception], str], None]


@pytest.mark.parametrize("missing", ["bias", "device", "dtype"])
def test_a_constructor_that_lacks_an_argument(refused: Refused, missing: str) -> None:
    class NoBias(GRUCell):
        def __init__(
            self, input_size: int, hidden_size: int, device: Any = None, dtype: Any = None
        ):
            super().__init__(input_size, hidden_size, True, device, dtype)

    class NoDevice(GRUCell):
        def __init__(self, input_size: int, hidden_size: int, bias: bool = True, dtype: Any = None):
            super().__init__(input_size, hidden_size, bias, None, dtype)

    class NoDtype(GRUCell):
        def __init__(
            self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None
        ):
            super().__init__(input_size, hidden_size, bias, device)

    cell = {"bias": NoBias, "device": NoDevice, "dtype": NoDtype}[missing]
    message = f"{cell.__name__}.__init__: expected an argument '{missing}'; a layer calls cell(..."
    refused(lambda: FlexRNN(cell, 3, 5), TypeError, message)


class NoState(flexrnn.Cell):
    def step(self, x: Tensor, state: Any) -> Any:
        return state


class NoStep(flexrnn.Cell):
    State = HiddenState


class TupleState(NoState):
    State = tuple


class Colliding(GRUCell):
    def __init__(self, input_size: int, hidden_size: int, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.weight = nn.Linear(1, 1)
        self.weight_weight = nn.Parameter(torch.zeros(1))


CELL_CLASSES: list[tuple[Any, type[Exception], str]] = [
    (NoState, TypeError, "NoState: expected a class attribute State, a NamedTuple ..., got None"),
    (TupleState, TypeError, "TupleState: expected a class attribute State, a NamedTuple class ..."),
    (NoStep, TypeError, "NoStep: expected a method step(self, x, state)"),
]


@pytest.mark.parametrize(("cell", "error", "message"), CELL_CLASSES)
def test_cell_classes(refused: Refused, cell: Any, error: type[Exception], message: str) -> None:
    refused(lambda: cell(3, 5), error, message)


def test_parameters_that_would_get_the_same_name(refused: Refused) -> None:
    message = "Colliding: parameter weight.weight would be the layer's weight_weight_l0, a name ..."
    refused(lambda: FlexRNN(Colliding, 3, 5), ValueError, message)


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_size": 0}, ValueError, "input_size must be greater than zero, got 0"),
    ({"input_size": -1}, ValueError, "input_size must be greater than zero, got -1"),
    ({"input_size": 3.0}, TypeError, "input_size should be of type int, got: float"),
    ({"input_size": True}, TypeError, "input_size should be of type int, got: bool"),
    ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero, got 0"),
    ({"hidden_size": "5"}, TypeError, "hidden_size should be of type int, got: str"),
    ({"hidden_size": None}, TypeError, "hidden_size should be of type int, got: NoneType"),
    ({"num_layers": 0}, ValueError, "num_layers must be greater than zero, got 0"),
    ({"num_layers": 1.5}, TypeError, "num_layers should be of type int, got: float"),
    ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ({"batch_first": None}, TypeError, "batch_first should be of type bool, got: NoneType"),
    ({"bidirectional": "yes"}, TypeError, "bidirectional should be of type bool, got: str"),
    ({"dropout": -0.1}, ValueError, "dropout should be a number in range [0, 1] ..., got -0.1"),
    ({"dropout": 1.1}, ValueError, "dropout should be a number in range [0, 1] ..., got 1.1"),
    ({"dropout": float("nan")}, ValueError, "dropout should be a number ..., got nan"),
    ({"dropout": True}, ValueError, "dropout should be a number in range [0, 1] ..., got True"),
    ({"dropout": "0.1"}, ValueError, "dropout should be a number in range [0, 1] ..., got '0.1'"),
    ({"proj_size": -1}, ValueError, "proj_size should be a positive integer or zero ..."),
    ({"proj_size": 5}, ValueError, "proj_size has to be smaller than hidden_size, got 5 and 5"),
    ({"proj_size": 2.0}, TypeError, "proj_size should be of type int, got: float"),
    ({"backend": "gpu"}, ValueError, "backend: expected one of 'auto', 'reference'..., got 'gpu'"),
    ({"backend": None}, ValueError, "backend: expected one of 'auto', ..., got None"),
    (
        {"surprise": 1},
        TypeError,
        "unexpected keyword argument 'surprise': neither the layer nor LSTMCell has it",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_options_of_a_layer(
    refused: Refused, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    sizes = {"input_size": 3, "hidden_size": 5}
    refused(lambda: FlexRNN(LSTMCell, **{**sizes, **options}), error, message)
    refused(lambda: flexrnn.LSTM(**{**sizes, **options}), error, message)


NOT_CLASSES: list[tuple[Any, str]] = [
    (
        GRUCell(3, 5),
        "cell: expected a subclass of flexrnn.Cell, the class itself, got GRUCell(3, 5)",
    ),
    (nn.LSTMCell, "cell: expected a subclass of flexrnn.Cell, got <class 'torch...LSTMCell'>"),
    (flexrnn.LSTM, "cell: expected a subclass of flexrnn.Cell, got <class 'flexrnn...LSTM'>"),
    ("lstm", "cell: expected a subclass of flexrnn.Cell, got 'lstm'"),
    (None, "cell: expected a subclass of flexrnn.Cell, got None"),
]


@pytest.mark.parametrize(("cell", "message"), NOT_CLASSES)
def test_what_is_not_a_cell_class(refused: Refused, cell: Any, message: str) -> None:
    refused(lambda: FlexRNN(cell, 3, 5), TypeError, message)


def test_the_abstract_cell_has_no_state(refused: Refused) -> None:
    refused(lambda: flexrnn.Cell(3, 5), TypeError, "Cell: expected a class attribute State, ...")
    refused(
        lambda: FlexRNN(flexrnn.Cell, 3, 5), TypeError, "Cell.__init__: expected an argument ..."
    )


def test_a_projection_of_a_cell_that_has_none(refused: Refused) -> None:
    message = "proj_size argument is only supported for LSTM, not GRUCell, whose constructor ..."
    refused(lambda: FlexRNN(GRUCell, 3, 5, proj_size=2), ValueError, message)
    refused(lambda: flexrnn.GRU(3, 5, proj_size=2), ValueError, message)


CELLS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((3.0, 5), TypeError, "input_size should be of type int, got: float"),
    ((3, "5"), TypeError, "hidden_size should be of type int, got: str"),
    ((3, True), TypeError, "hidden_size should be of type int, got: bool"),
    ((-1, 5), ValueError, "input_size must not be negative, got -1"),
    ((3, -5), ValueError, "hidden_size must not be negative, got -5"),
]


@pytest.mark.parametrize(("sizes", "error", "message"), CELLS)
def test_sizes_of_a_cell(
    refused: Refused, sizes: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    for cell in (flexrnn.LSTMCell, flexrnn.GRUCell, flexrnn.RNNCell):
        refused(lambda cell=cell: cell(*sizes), error, message)


def test_nonlinearities(refused: Refused) -> None:
    message = "Unknown nonlinearity 'selu'. Select from 'tanh' or 'relu'."
    for cls in (flexrnn.RNN, flexrnn.RNNCell):
        refused(lambda cls=cls: cls(3, 5, nonlinearity="selu"), ValueError, message)


def test_a_backend_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^backend: expected one of 'auto', .*, got 'gpu'$"):  # noqa: SIM117
        with flexrnn.backend("gpu"):
            pass
