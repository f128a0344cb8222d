"""States that several cells share."""

from typing import NamedTuple

from torch import Tensor


class HiddenState(NamedTuple):
    """The state of a cell whose memory is its output."""

    h: Tensor  # (..., H) hidden state, the output


class LSTMState(NamedTuple):
    """The state of a cell with a memory of its own."""

    h: Tensor  # (..., H) hidden state, the output; narrower under a projection
    c: Tensor  # (..., H) cell state


def check_drop(drop: str, known: str) -> str:
    """What recurrent dropout acts on, by its letter in the equations."""
    if drop not in tuple(known):
        expected = " or ".join(repr(letter) for letter in known)
        raise ValueError(f"drop: expected {expected}, got {drop!r}")
    return drop
