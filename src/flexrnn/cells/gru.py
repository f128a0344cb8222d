"""The gated recurrent unit, as `torch.nn.GRUCell` computes it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import HiddenState, check_drop


class GRUCell(Cell):
    """Gated recurrent unit.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)              reset gate
        z = σ(W_iz x + b_iz + W_hz h + b_hz)              update gate
        n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn))     candidate
        h ← (1 − z) ∘ n + z ∘ h

    Source: Cho et al. 2014. Convention: torch's. The reset gate acts after the product with W_hn,
    as in the paper's first preprint (as published it acts before, on h); z, as there, is the share
    of the old state; the rows are r, z, n.
    Recurrent dropout acts on h, in its products alone, or with `drop="n"` on n (Semeniuta 2016).

    Parameters: `weight_ih (3H, I)`, `weight_hh (3H, H)`, `bias_ih (3H,)`, `bias_hh (3H,)`.

    Example:
        >>> import torch, flexrnn
        >>> flexrnn.GRUCell(3, 5)(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

    State = HiddenState
    gates = ("r", "z", "n")
    torch_equivalent = "gru"

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, drop="h"):
        super().__init__(input_size, hidden_size)
        self.bias, self.drop = bias, check_drop(drop, "hn")
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(3 * H, input_size, **kwargs))
        self.weight_hh = nn.Parameter(torch.empty(3 * H, H, **kwargs))
        self.bias_ih = nn.Parameter(torch.empty(3 * H, **kwargs)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(3 * H, **kwargs)) if bias else None
        self.reset_parameters()

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        (h,) = state
        x_r, x_z, x_n = linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        dropped = self.drop_recurrent(h) if self.drop == "h" else h
        h_r, h_z, h_n = linear(dropped, self.weight_hh, self.bias_hh).chunk(3, -1)
        r = (x_r + h_r).sigmoid()
        z = (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        self.tap(r=r, z=z, n=n)
        n = self.drop_recurrent(n) if self.drop == "n" else n
        return HiddenState(h=(1 - z) * n + z * h)
