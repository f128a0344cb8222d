"""The simple recurrent network, as `torch.nn.RNNCell` computes it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flexrnn.cell import Cell
from flexrnn.cells.state import HiddenState


class RNNCell(Cell):
    """Simple recurrent network.

        h ← φ(W_ih x + b_ih + W_hh h + b_hh)              φ = tanh or relu

    Source: Elman 1990.

    Parameters: `weight_ih (H, I)`, `weight_hh (H, H)`, `bias_ih (H,)`, `bias_hh (H,)`.

    Raises:
        ValueError: `nonlinearity` is neither `"tanh"` nor `"relu"`.

    Example:
        >>> import torch, flexrnn
        >>> flexrnn.RNNCell(3, 5, nonlinearity="relu")(torch.randn(2, 3)).shape
        torch.Size([2, 5])
    """

    State = HiddenState
    torch_equivalent = "rnn"

    def __init__(
        self, input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None
    ):
        super().__init__(input_size, hidden_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.bias, self.nonlinearity = bias, nonlinearity
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(H, input_size, **kwargs))
        self.weight_hh = nn.Parameter(torch.empty(H, H, **kwargs))
        self.bias_ih = nn.Parameter(torch.empty(H, **kwargs)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(H, **kwargs)) if bias else None
        self.reset_parameters()

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        h = self.drop_recurrent(state.h)
        z = linear(x, self.weight_ih, self.bias_ih) + linear(h, self.weight_hh, self.bias_hh)
        h = z.tanh() if self.nonlinearity == "tanh" else z.relu()
        self.tap(h=h)
        return HiddenState(h=h)

    def extra_repr(self) -> str:
        phi = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + phi
