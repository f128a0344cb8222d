"""The long short-term memory, as `torch.nn.LSTMCell` computes it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import LSTMState, check_drop


class LSTMCell(Cell):
    """Long short-term memory.

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh        four blocks of H rows
        c ← σ(f) ∘ c + σ(i) ∘ tanh(g)
        h ← σ(o) ∘ tanh(c)                                W_hr (σ(o) ∘ tanh(c)) with a projection

    Source: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000;
    projection: Sak, Senior & Beaufays 2014. Convention: torch's order i, f, g, o and two biases.
    Recurrent dropout acts on h, in its product, or with `drop="g"` on tanh(g) (Semeniuta 2016).

    Parameters: `weight_ih (4H, I)`, `weight_hh (4H, P or H)`, `bias_ih (4H,)`, `bias_hh (4H,)`,
    and with `proj_size=P > 0` `weight_hr (P, H)`.

    Example:
        >>> import torch, flexrnn
        >>> flexrnn.LSTMCell(3, 5, proj_size=4)(torch.randn(2, 3)).h.shape
        torch.Size([2, 4])
    """

    State = LSTMState
    gates = ("i", "f", "g", "o")
    torch_equivalent = "lstm"

    def __init__(
        self, input_size, hidden_size, bias=True, device=None, dtype=None, proj_size=0, drop="h"
    ):
        super().__init__(input_size, hidden_size)
        self.bias, self.proj_size, self.drop = bias, proj_size, check_drop(drop, "hg")
        H, P, kwargs = hidden_size, proj_size or hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(4 * H, input_size, **kwargs))
        self.weight_hh = nn.Parameter(torch.empty(4 * H, P, **kwargs))
        self.bias_ih = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(4 * H, **kwargs)) if bias else None
        self.weight_hr = nn.Parameter(torch.empty(P, H, **kwargs)) if proj_size else None
        self.reset_parameters()

    @property
    def state_sizes(self) -> Mapping[str, int]:
        return {"h": self.proj_size} if self.proj_size else {}

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        h, c = state
        h = self.drop_recurrent(h) if self.drop == "h" else h
        z = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = z.chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        self.tap(i=i, f=f, g=g, o=o)
        g = self.drop_recurrent(g) if self.drop == "g" else g
        c = f * c + i * g
        h = o * c.tanh()
        return LSTMState(h=h if self.weight_hr is None else linear(h, self.weight_hr), c=c)
