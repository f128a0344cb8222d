"""The article's ladder: an LSTM by hand, one equation a line, to be read and changed.

Nothing here calls an engine or any other part of FlexRNN. Read `naive.py` and `vectorized.py` side
by side; `convert.py` carries weights between them and `torch.nn.LSTM`.
"""

from flexrnn.fromscratch.convert import from_torch, to_naive, to_torch, to_vectorized
from flexrnn.fromscratch.naive import NaiveCustomLSTM
from flexrnn.fromscratch.vectorized import CustomLSTM

__all__ = [
    "CustomLSTM",
    "NaiveCustomLSTM",
    "from_torch",
    "to_naive",
    "to_torch",
    "to_vectorized",
]
