"""The LSTM whose gates look at the cell state: the peephole of the literature."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import LSTMState, check_drop


class PeepholeLSTMCell(Cell):
    """LSTM with diagonal peepholes.

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        i, f = σ(i + p_i ∘ c), σ(f + p_f ∘ c)             these two look at the old cell state
        c ← f ∘ c + i ∘ tanh(g)
        o = σ(o + p_o ∘ c)                                this one looks at the new one
        h ← o ∘ tanh(c)

    Source: Gers & Schmidhuber 2000; Gers, Schraudolph & Schmidhuber 2002. Convention: torch's
    order i, f, g, o and two biases; the rows of `weight_ch` are p_i, p_f, p_o.
    Recurrent dropout acts on h, in its product, or with `drop="g"` on tanh(g) (Semeniuta 2016).

    Parameters: `weight_ih (4H, I)`, `weight_hh (4H, H)`, `bias_ih (4H,)`, `bias_hh (4H,)`,
    `weight_ch (3, H)`.

    Example:
        >>> import torch, flexrnn
        >>> output, (h_n, c_n) = flexrnn.PeepholeLSTM(3, 5)(torch.randn(7, 2, 3))
        >>> output.shape
        torch.Size([7, 2, 5])
    """

    State = LSTMState
    gates = ("i", "f", "g", "o")

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, drop="h"):
        super().__init__(input_size, hidden_size)
        self.bias, self.drop = bias, check_drop(drop, "hg")
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(4 * H, input_size, **kwargs))
        self.weight_hh = nn.Parameter(torch.empty(4 * H, H, **kwargs))
        self.bias_ih = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.weight_ch = nn.Parameter(torch.empty(3, H, **kwargs))
        self.reset_parameters()

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        h, c = state
        h = self.drop_recurrent(h) if self.drop == "h" else h
        z = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = z.chunk(4, -1)
        p_i, p_f, p_o = self.weight_ch
        i, f, g = (i + p_i * c).sigmoid(), (f + p_f * c).sigmoid(), g.tanh()
        kept = self.drop_recurrent(g) if self.drop == "g" else g
        c = f * c + i * kept
        o = (o + p_o * c).sigmoid()
        self.tap(i=i, f=f, g=g, o=o)
        return LSTMState(h=o * c.tanh(), c=c)
