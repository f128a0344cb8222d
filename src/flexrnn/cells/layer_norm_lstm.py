"""The layer-normalised LSTM."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import LSTMState, check_drop


class LayerNormLSTMCell(Cell):
    """LSTM with layer normalisation of both products and of the cell state.

        i, f, g, o = LN_ih(W_ih x) + LN_hh(W_hh h) + b    LN over all 4H rows
        c ← σ(f) ∘ c + σ(i) ∘ tanh(g)
        h ← σ(o) ∘ tanh(LN_c(c))

    Source: Ba, Kiros & Hinton 2016, appendix; b stands for the shifts of LN_ih and LN_hh too. The
    raw c travels on, as there and in Haste; `carry_raw=False`: LN_c(c), as in TensorFlow Addons.
    Recurrent dropout acts on h, in its product, or with `drop="g"` on tanh(g) (Semeniuta 2016).

    Parameters: `weight_ih (4H, I)`, `weight_hh (4H, H)`, `bias (4H,)`, `norm_ih.weight (4H,)`,
    `norm_hh.weight (4H,)`, `norm_c.weight (H,)`, `norm_c.bias (H,)`.

    Example:
        >>> import torch, flexrnn
        >>> flexrnn.LayerNormLSTM(3, 5)(torch.randn(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])
    """

    State = LSTMState
    gates = ("i", "f", "g", "o")

    def __init__(
        self, input_size, hidden_size, bias=True, device=None, dtype=None, eps=1e-5,
        carry_raw=True, drop="h",
    ):  # fmt: skip
        super().__init__(input_size, hidden_size)
        self.carry_raw, self.drop = carry_raw, check_drop(drop, "hg")
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(4 * H, input_size, **kwargs))
        self.weight_hh = nn.Parameter(torch.empty(4 * H, H, **kwargs))
        self.bias = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.norm_ih = nn.LayerNorm(4 * H, eps, bias=False, device=device, dtype=dtype)
        self.norm_hh = nn.LayerNorm(4 * H, eps, bias=False, device=device, dtype=dtype)
        self.norm_c = nn.LayerNorm(H, eps, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for norm in (self.norm_ih, self.norm_hh, self.norm_c):
            norm.reset_parameters()

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        h, c = state
        h = self.drop_recurrent(h) if self.drop == "h" else h
        z = self.norm_ih(linear(x, self.weight_ih)) + self.norm_hh(linear(h, self.weight_hh))
        i, f, g, o = (z if self.bias is None else z + self.bias).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        self.tap(i=i, f=f, g=g, o=o)
        g = self.drop_recurrent(g) if self.drop == "g" else g
        c = f * c + i * g
        normalized = self.norm_c(c)
        return LSTMState(h=o * normalized.tanh(), c=c if self.carry_raw else normalized)
