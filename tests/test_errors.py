"""Mistakes in a call are refused with the argument's name, what was expected and what came."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import GRUCell, HiddenState, LSTMCell, LSTMState

Refused = Callable[[Callable[[], object], type[Exception], str], None]


zeros = torch.zeros
meta = partial(torch.zeros, device="meta")

INPUTS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "input: expected a tensor or a PackedSequence, got NoneType"),
    ([[0.0] * 3], TypeError, "input: expected a tensor or a PackedSequence, got list"),
    (zeros(3), ValueError, "LSTM: Expected input to be 2D or 3D, got 1D tensor instead ..."),
    (zeros(1, 4, 2, 3), ValueError, "LSTM: Expected input to be 2D or 3D, got 4D ...(1, 4, 2, 3))"),
    (
        zeros(4, 2, 2),
        RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 3, got 2 (input of shape (4, 2, 2))",
    ),
    (
        zeros(4, 2, 3).double(),
        ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32). ...",
    ),
    (
        zeros(4, 2, 3).long(),
        ValueError,
        "RNN input dtype (torch.int64) does not match weight dtype (torch.float32). ...",
    ),
    (meta(4, 2, 3), RuntimeError, "input: expected it on the weights' device cpu, got meta"),
    (
        zeros(0, 2, 3),
        RuntimeError,
        "Expected sequence length to be larger than 0 in RNN, got input of (0, 2, 3)",
    ),
]


@pytest.mark.parametrize(("x", "error", "message"), INPUTS)
def test_inputs_of_a_layer(refused: Refused, x: Any, error: type[Exception], message: str) -> None:
    refused(lambda: flexrnn.LSTM(3, 5)(x), error, message)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_inputs(refused: Refused) -> None:
    x = torch.nested.nested_tensor([zeros(4, 3), zeros(2, 3)])
    message = "input: expected an ordinary tensor or a PackedSequence, got a nested one"
    refused(lambda: flexrnn.LSTM(3, 5)(x), TypeError, message)
    message = "input: expected an ordinary tensor, got a nested one"
    refused(lambda: flexrnn.LSTMCell(3, 5)(x), TypeError, message)


h, s = zeros(1, 2, 5), zeros(1, 2, 5)

STATES: list[tuple[Any, type[Exception], str]] = [
    (h, TypeError, "hx: expected a tuple (h, c), got a tensor of shape (1, 2, 5)"),
    (zeros(2, 1, 2, 5), TypeError, "hx: expected a tuple (h, c), got a tensor of shape ..."),
    ((h,), TypeError, "hx: expected a tuple (h, c), got tuple of length 1"),
    ([h, s, s], TypeError, "hx: expected a tuple (h, c), got list of length 3"),
    ({"h": h, "c": s}, TypeError, "hx: expected a tuple (h, c), got dict"),
    ("hc", TypeError, "hx: expected a tuple (h, c), got str"),
    (0, TypeError, "hx: expected a tuple (h, c), got int"),
    ((h, None), TypeError, "hx: expected c to be a tensor, got NoneType"),
    ((h, s[0]), RuntimeError, "For batched 3-D input, hx and cx should also be 3-D but got ..."),
    ((h[:, :1], s), RuntimeError, "Expected hidden[0] size (1, 2, 5), got [1, 1, 5]"),
    ((h, s[..., :1]), RuntimeError, "Expected hidden[1] size (1, 2, 5), got [1, 2, 1]"),
    ((zeros(2, 2, 5), s), RuntimeError, "Expected hidden[0] size (1, 2, 5), got [2, 2, 5]"),
    (
        (h, s.double()),
        RuntimeError,
        "hx: expected c of the input's dtype torch.float32, got torch.float64",
    ),
    (
        (h.long(), s),
        RuntimeError,
        "hx: expected h of the input's dtype torch.float32, got torch.int64",
    ),
    ((h, meta(1, 2, 5)), RuntimeError, "hx: expected c on the input's device cpu, got meta"),
]


@pytest.mark.parametrize(("hx", "error", "message"), STATES)
def test_states_of_a_layer(refused: Refused, hx: Any, error: type[Exception], message: str) -> None:
    layer = flexrnn.LSTM(3, 5)
    refused(lambda: layer(zeros(4, 2, 3), hx), error, message)
    refused(lambda: layer.step(zeros(2, 3), hx), error, message)
    refused(lambda: layer(pack_sequence([zeros(4, 3), zeros(2, 3)]), hx), error, message)


def test_states_of_a_layer_with_one_field(refused: Refused) -> None:
    layer, x = flexrnn.GRU(3, 5), zeros(4, 2, 3)
    refused(lambda: layer(x, (h, s)), TypeError, "hx: expected a tensor, got tuple of length 2")
    refused(lambda: layer(x, 1.0), TypeError, "hx: expected a tensor, got float")
    refused(
        lambda: layer(x, h[0]), RuntimeError, "For batched 3-D input, hx should also be 3-D ..."
    )
    refused(
        lambda: layer(x, h[:, 1:]), RuntimeError, "Expected hidden size (1, 2, 5), got [1, 1, 5]"
    )


CELL_CALLS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    (("x",), TypeError, "input: expected a tensor, got str"),
    ((zeros(4, 2, 3),), ValueError, "LSTMCell: Expected input to be 1D or 2D, got 3D instead"),
    (
        (zeros(2, 4),),
        RuntimeError,
        "input has inconsistent input_size: got 4 expected 3 (input of shape (2, 4))",
    ),
    (
        (zeros(2, 3).double(),),
        RuntimeError,
        "input: expected dtype torch.float32, the weights', got torch.float64",
    ),
    ((meta(2, 3),), RuntimeError, "input: expected it on the weights' device cpu, got meta"),
    ((zeros(2, 3), h[0]), TypeError, "hx: expected a tuple (h, c), got a tensor of shape (2, 5)"),
    ((zeros(2, 3), (h[0],)), TypeError, "hx: expected a tuple (h, c), got tuple of length 1"),
    ((zeros(2, 3), (h, s[0])), ValueError, "LSTMCell: Expected hx[0] to be 1D or 2D, got 3D ..."),
    ((zeros(3), (h[0], s[0])), RuntimeError, "hx: expected h to have as many dimensions as ..."),
    ((zeros(2, 3), (h[0], s[0, :1])), RuntimeError, "Input batch size 2 doesn't match hidden1 ..."),
    (
        (zeros(2, 3), (h[0], s[0, :, :4])),
        RuntimeError,
        "hidden1 has inconsistent hidden_size: got 4, expected 5",
    ),
    (
        (zeros(2, 3), (h[0], s[0].half())),
        RuntimeError,
        "hx: expected c of the input's dtype torch.float32, got torch.float16",
    ),
    (
        (zeros(2, 3), (meta(2, 5), s[0])),
        RuntimeError,
        "hx: expected h on the input's device cpu, got meta",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), CELL_CALLS)
def test_calls_of_a_cell(
    refused: Refused, arguments: Any, error: type[Exception], message: str
) -> None:
    refused(lambda: flexrnn.LSTMCell(3, 5)(*arguments), error, message)


def test_steps_of_a_layer(refused: Refused) -> None:
    step: Any = flexrnn.LSTM(3, 5).step
    refused(lambda: step(None), TypeError, "x: expected a tensor (batch, input_size), got NoneType")
    refused(lambda: step(zeros(4, 2, 3)), ValueError, "x: expected shape ..., got (4, 2, 3)")
    refused(
        lambda: step(zeros(2, 4)), RuntimeError, "input.size(-1) must be equal to input_size..."
    )
    both_ways = flexrnn.LSTM(3, 5, bidirectional=True)
    refused(lambda: both_ways.step(zeros(2, 3)), RuntimeError, "step: expected one direction; ...")


index = torch.tensor

PACKED: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((zeros(3, 4, 3), index([3])), RuntimeError, "input must have 2 dimensions, got 3"),
    ((zeros(3, 3), index(3)), ValueError, "input: expected batch_sizes ... got () and torch.int64"),
    ((zeros(3, 3), index([2.0, 1.0])), ValueError, "input: expected batch_sizes ... torch.float32"),
    ((zeros(0, 3), index([0])), ValueError, "input: expected batch_sizes ... decreasing, got [0]"),
    ((zeros(3, 3), index([1, 2])), ValueError, "input: expected batch_sizes ..., got [1, 2]"),
    ((zeros(3, 3), index([2, 2])), ValueError, "input: expected 4 rows ..., got data of ...(3, 3)"),
    (
        (zeros(3, 3), index([2, 1]), index([0, 2]), index([0, 2])),
        ValueError,
        "input: expected sorted_indices and unsorted_indices ... permutations of 2 rows ...",
    ),
    (
        (zeros(6, 3), index([3, 3]), index([1, 2, 0]), index([1, 2, 0])),
        ValueError,
        "input: expected sorted_indices and unsorted_indices ... undo one another, got ...",
    ),
    (
        (zeros(3, 3), index([2, 1]), None, index([1, 0])),
        ValueError,
        "input: expected sorted_indices and unsorted_indices ... undo one another, got None ...",
    ),
]


@pytest.mark.parametrize(("parts", "error", "message"), PACKED)
def test_packed_sequences_whose_parts_contradict_one_another(
    refused: Refused, parts: Any, error: type[Exception], message: str
) -> None:
    refused(lambda: flexrnn.LSTM(3, 5)(PackedSequence(*parts)), error, message)


# What a cell of one's own may get wrong


class OtherState(NamedTuple):
    h: Tensor
    c: Tensor


WRONG_STEPS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda s: s.h, TypeError, "Wrong.step: expected LSTMState(h, c), got Tensor"),
    (lambda s: None, TypeError, "Wrong.step: expected LSTMState(h, c), got NoneType"),
    (tuple, TypeError, "Wrong.step: expected LSTMState(h, c), got tuple of length 2"),
    (
        lambda s: OtherState(*s),
        TypeError,
        "Wrong.step: expected LSTMState(h, c), got OtherState ...",
    ),
    (lambda s: s._replace(c=0.0), TypeError, "Wrong.step: expected c to be a tensor, got float"),
    (
        lambda s: s._replace(h=s.h[:, :1]),
        RuntimeError,
        "Wrong.step: expected h to keep its shape (2, 5), got (2, 1)",
    ),
    (
        lambda s: s._replace(c=s.c[:1]),
        RuntimeError,
        "Wrong.step: expected c to keep its shape (2, 5), got (1, 5)",
    ),
    (
        lambda s: s._replace(c=s.c.double()),
        RuntimeError,
        "Wrong.step: expected c to keep its dtype torch.float32, got torch.float64",
    ),
    (
        lambda s: s._replace(h=s.h.to("meta")),
        RuntimeError,
        "Wrong.step: expected h to stay on cpu, got meta",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_STEPS)
def test_what_step_returns(
    refused: Refused, wrong: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    class Wrong(LSTMCell):
        def step(self, x: Tensor, state: LSTMState) -> Any:
            return wrong(super().step(x, state))

    layer, x = FlexRNN(Wrong, 3, 5, num_layers=2), zeros(4, 2, 3)
    refused(lambda: layer(x), error, message)
    refused(lambda: layer.step(x[0]), error, message)
    refused(lambda: layer(pack_sequence([zeros(4, 3), zeros(2, 3)])), error, message)
    refused(lambda: Wrong(3, 5)(x[0]), error, message)


WRONG_STARTS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda s: s.h, TypeError, "Wrong.initial_state: expected HiddenState(h), got Tensor"),
    (
        lambda s: HiddenState(1.0),  # pyright: ignore[reportArgumentType]
        TypeError,
        "Wrong.initial_state: expected h to be a tensor, got float",
    ),
    (
        lambda s: HiddenState(s.h[:1]),
        RuntimeError,
        "Wrong.initial_state: expected h of shape (2, 5), ..., got shape (1, 5), ...",
    ),
    (
        lambda s: HiddenState(s.h.double()),
        RuntimeError,
        "Wrong.initial_state: expected h of ... torch.float32, ..., got ... torch.float64, on cpu",
    ),
    (
        lambda s: HiddenState(s.h.to("meta")),
        RuntimeError,
        "Wrong.initial_state: expected h of ..., on cpu, got ..., on meta",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG_STARTS)
def test_what_initial_state_returns(
    refused: Refused, wrong: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    class Wrong(GRUCell):
        def initial_state(self, *args: Any, **kwargs: Any) -> Any:
            return wrong(super().initial_state(*args, **kwargs))

    refused(lambda: FlexRNN(Wrong, 3, 5)(zeros(4, 2, 3)), error, message)
    refused(lambda: Wrong(3, 5)(zeros(2, 3)), error, message)
