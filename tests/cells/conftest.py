"""Every cell of the zoo, in each of its forms, as a layer in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from flexrnn import FlexRNN, cells

Make = Callable[..., FlexRNN]


def projected(input_size: int, hidden_size: int, **options: Any) -> FlexRNN:
    return FlexRNN(
        cells.LSTMCell, input_size, hidden_size, proj_size=hidden_size // 2, **options
    )  # fmt: skip


MAKERS: dict[str, Make] = {
    "lstm": partial(FlexRNN, cells.LSTMCell),
    "lstm projected": projected,
    "gru": partial(FlexRNN, cells.GRUCell),
    "rnn tanh": partial(FlexRNN, cells.RNNCell),
    "rnn relu": partial(FlexRNN, cells.RNNCell, nonlinearity="relu"),
    "peephole": partial(FlexRNN, cells.PeepholeLSTMCell),
    "article peephole": partial(FlexRNN, cells.ArticlePeepholeLSTMCell),
    "layer norm": partial(FlexRNN, cells.LayerNormLSTMCell),
    "layer norm, normalised carry": partial(FlexRNN, cells.LayerNormLSTMCell, carry_raw=False),
    "naive": partial(FlexRNN, cells.NaiveLSTMCell),
}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of each cell, and of each of its forms, in turn."""
    return request.param


@pytest.fixture(scope="module")
def make(kind: str) -> Make:
    """A layer of that cell in float64, as a function of `FlexRNN`'s arguments after the cell.

    Norms get a gain and a shift of their own: at 1 and 0 they would hide a mistake.
    """

    def made(input_size: int, hidden_size: int, **options: Any) -> FlexRNN:
        layer = MAKERS[kind](input_size, hidden_size, dtype=torch.float64, **options)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.startswith("norm"):
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return layer

    return made
