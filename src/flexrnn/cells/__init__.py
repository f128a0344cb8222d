"""The zoo: one file a cell, each its paper's equations and nothing else."""

from flexrnn.cells.article_peephole import ArticlePeepholeLSTMCell
from flexrnn.cells.gru import GRUCell
from flexrnn.cells.layer_norm_lstm import LayerNormLSTMCell
from flexrnn.cells.lstm import LSTMCell
from flexrnn.cells.naive_lstm import NaiveLSTMCell
from flexrnn.cells.peephole import PeepholeLSTMCell
from flexrnn.cells.rnn import RNNCell
from flexrnn.cells.state import HiddenState, LSTMState

__all__ = [
    "ArticlePeepholeLSTMCell",
    "GRUCell",
    "HiddenState",
    "LSTMCell",
    "LSTMState",
    "LayerNormLSTMCell",
    "NaiveLSTMCell",
    "PeepholeLSTMCell",
    "RNNCell",
]
