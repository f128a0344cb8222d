"""The article's peephole LSTM, in which the cell state feeds back instead of the output."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import LSTMState


class ArticlePeepholeLSTMCell(Cell):
    """LSTM with full peephole matrices, which replace the recurrence on h.

        u = W_ih x + b_ih                                 four blocks of H rows: i, f, g, o
        z = u + W_ch c                                    c, not h, feeds back
        i, f, o = σ(z_i), σ(z_f), σ(z_o)
        c ← f ∘ c + i ∘ σ(u_g)                            candidate: input only, a sigmoid
        h ← tanh(o ∘ c)

    Source: the article that FlexRNN starts from; `flexrnn.fromscratch.CustomLSTM(peephole=True)` is
    the same function with `W = weight_ihᵀ`, `U = weight_chᵀ`, `bias = bias_ih`. The g rows of
    `weight_ch` are unused (their gradient is zero), and so is the initial h.

    Parameters: `weight_ih (4H, I)`, `weight_ch (4H, H)`, `bias_ih (4H,)`.

    Example:
        >>> import torch, flexrnn
        >>> output, (h_n, c_n) = flexrnn.ArticlePeepholeLSTM(3, 5)(torch.randn(7, 2, 3))
        >>> output.shape
        torch.Size([7, 2, 5])
    """

    State = LSTMState
    gates = ("i", "f", "g", "o")

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.bias = bias
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(4 * H, input_size, **kwargs))
        self.weight_ch = nn.Parameter(torch.empty(4 * H, H, **kwargs))
        self.bias_ih = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.reset_parameters()

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        c = state.c
        u = linear(x, self.weight_ih, self.bias_ih)
        z_i, z_f, _, z_o = (u + linear(self.drop_recurrent(c), self.weight_ch)).chunk(4, -1)
        i, f, g, o = z_i.sigmoid(), z_f.sigmoid(), u.chunk(4, -1)[2].sigmoid(), z_o.sigmoid()
        self.tap(i=i, f=f, g=g, o=o)
        c = f * c + i * g
        return LSTMState(h=(o * c).tanh(), c=c)
