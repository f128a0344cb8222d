"""FlexRNN: write the body of a recurrent layer's loop in plain PyTorch; get a complete layer."""

from flexrnn import cells, fromscratch, init
from flexrnn.cell import Cell
from flexrnn.cells import GRUCell, LSTMCell, RNNCell
from flexrnn.dropin import (
    GRU,
    LSTM,
    RNN,
    ArticlePeepholeLSTM,
    LayerNormLSTM,
    NaiveLSTM,
    PeepholeLSTM,
)
from flexrnn.engine.explain import explain
from flexrnn.engine.fallback import FallbackWarning
from flexrnn.engine.scan import backend, scan
from flexrnn.layer import FlexRNN
from flexrnn.prepare import compile  # noqa: A004
from flexrnn.record import record
from flexrnn.swap import replace
from flexrnn.tbptt import tbptt

__version__ = "0.1.0.dev0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ArticlePeepholeLSTM",
    "Cell",
    "FallbackWarning",
    "FlexRNN",
    "GRUCell",
    "LSTMCell",
    "LayerNormLSTM",
    "NaiveLSTM",
    "PeepholeLSTM",
    "RNNCell",
    "backend",
    "cells",
    "compile",
    "explain",
    "fromscratch",
    "init",
    "record",
    "replace",
    "scan",
    "tbptt",
]
