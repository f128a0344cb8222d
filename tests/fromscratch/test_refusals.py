"""Wrong arguments are refused with the argument's name, what was expected and what came."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

Layer = NaiveCustomLSTM | CustomLSTM


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


X_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (
        torch.zeros(7, 3),
        ValueError,
        "x: expected 3 dimensions (batch, sequence, 3), got (7, 3)",
    ),
    (
        torch.zeros(1, 2, 7, 3),
        ValueError,
        "x: expected 3 dimensions (batch, sequence, 3), got (1, 2, 7, 3)",
    ),
    (
        torch.zeros(2, 7, 4),
        ValueError,
        "x: expected last dimension 3 (input_sz), got x of shape (2, 7, 4)",
    ),
    (
        torch.zeros(2, 7, 0),
        ValueError,
        "x: expected last dimension 3 (input_sz), got x of shape (2, 7, 0)",
    ),
    (
        torch.zeros(2, 0, 3),
        ValueError,
        "x: expected at least one time step, got x of shape (2, 0, 3)",
    ),
    (
        torch.zeros(2, 7, 3, dtype=torch.int64),
        TypeError,
        "x: expected a floating-point dtype, got torch.int64",
    ),
    (
        torch.zeros(2, 7, 3, dtype=torch.complex64),
        TypeError,
        "x: expected a floating-point dtype, got torch.complex64",
    ),
    ("abc", TypeError, "x: expected a tensor (batch, sequence, 3), got str"),
    ([0.0], TypeError, "x: expected a tensor (batch, sequence, 3), got list of length 1"),
    (None, TypeError, "x: expected a tensor (batch, sequence, 3), got NoneType"),
    (
        pack_sequence([torch.zeros(7, 3)]),
        TypeError,
        "x: expected a tensor (batch, sequence, 3), got PackedSequence of length 4",
    ),
]


@pytest.mark.parametrize(("x", "error", "message"), X_REFUSALS)
def test_x(make: Callable[[int, int], Layer], x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=exactly(message)):
        make(3, 5)(x)


good = torch.zeros(2, 5)

STATE_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (
        (torch.zeros(2, 4), good),
        ValueError,
        "init_states: expected h_0 of shape (2, 5) (batch, hidden_sz), got (2, 4)",
    ),
    (
        (good, torch.zeros(3, 5)),
        ValueError,
        "init_states: expected c_0 of shape (2, 5) (batch, hidden_sz), got (3, 5)",
    ),
    (
        (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)),
        ValueError,
        "init_states: expected h_0 of shape (2, 5) (batch, hidden_sz), got (1, 2, 5)",
    ),
    (
        (good, torch.zeros(5)),
        ValueError,
        "init_states: expected c_0 of shape (2, 5) (batch, hidden_sz), got (5,)",
    ),
    (
        (good, torch.zeros(1, 5)),  # would broadcast
        ValueError,
        "init_states: expected c_0 of shape (2, 5) (batch, hidden_sz), got (1, 5)",
    ),
    (
        (good.double(), good),
        TypeError,
        "init_states: expected h_0 of dtype torch.float32, got torch.float64",
    ),
    (
        (good, good.half()),  # would be promoted in silence
        TypeError,
        "init_states: expected c_0 of dtype torch.float32, got torch.float16",
    ),
    (
        (good, good.long()),
        TypeError,
        "init_states: expected c_0 of dtype torch.float32, got torch.int64",
    ),
    (good, TypeError, "init_states: expected a pair (h_0, c_0), got Tensor of shape (2, 5)"),
    (
        torch.zeros(2, 2, 5),  # unpacks into two, and is no pair
        TypeError,
        "init_states: expected a pair (h_0, c_0), got Tensor of shape (2, 2, 5)",
    ),
    ((good,), TypeError, "init_states: expected a pair (h_0, c_0), got tuple of length 1"),
    (
        [good, good, good],
        TypeError,
        "init_states: expected a pair (h_0, c_0), got list of length 3",
    ),
    ((), TypeError, "init_states: expected a pair (h_0, c_0), got tuple of length 0"),
    ("hc", TypeError, "init_states: expected a pair (h_0, c_0), got str"),
    (0, TypeError, "init_states: expected a pair (h_0, c_0), got int"),
    ((None, good), TypeError, "init_states: expected h_0 to be a tensor, got NoneType"),
    ((good, 0.0), TypeError, "init_states: expected c_0 to be a tensor, got float"),
]


@pytest.mark.parametrize(("states", "error", "message"), STATE_REFUSALS)
def test_init_states(
    make: Callable[[int, int], Layer], states: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=exactly(message)):
        make(3, 5)(torch.zeros(2, 7, 3), states)


SIZE_REFUSALS: list[tuple[Any, Any, type[Exception], str]] = [
    (0, 5, ValueError, "input_sz: expected at least 1, got 0"),
    (3, 0, ValueError, "hidden_sz: expected at least 1, got 0"),
    (3, -1, ValueError, "hidden_sz: expected at least 1, got -1"),
    (3.0, 5, TypeError, "input_sz: expected an int, got 3.0"),
    (3, "5", TypeError, "hidden_sz: expected an int, got '5'"),
    (3, True, TypeError, "hidden_sz: expected an int, got True"),
    (3, None, TypeError, "hidden_sz: expected an int, got None"),
]


@pytest.mark.parametrize(("input_sz", "hidden_sz", "error", "message"), SIZE_REFUSALS)
def test_sizes(
    make: Callable[[Any, Any], Layer],
    input_sz: Any,
    hidden_sz: Any,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=exactly(message)):
        make(input_sz, hidden_sz)
