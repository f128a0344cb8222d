"""The article's naive LSTM: its loop body, with its twelve parameters, as a cell."""

import torch
from torch import Tensor, nn, sigmoid, tanh

from flexrnn.cell import Cell
from flexrnn.cells.state import LSTMState


class NaiveLSTMCell(Cell):
    """LSTM, one line an equation: eight matrix products a step.

        i = σ(x U_i + h V_i + b_i)     f = σ(x U_f + h V_f + b_f)
        g = tanh(x U_c + h V_c + b_c)  o = σ(x U_o + h V_o + b_o)
        c ← f ∘ c + i ∘ g              h ← o ∘ tanh(c)

    Source: the article that FlexRNN starts from; `flexrnn.fromscratch.NaiveCustomLSTM` is the same
    loop with the same parameters. The function is that of `LSTMCell`.

    Parameters: for each block k of i, f, c, o: `U_k (I, H)`, `V_k (H, H)`, `b_k (H,)`.

    Example:
        >>> import torch, flexrnn
        >>> output, (h_n, c_n) = flexrnn.NaiveLSTM(3, 5)(torch.randn(7, 2, 3))
        >>> output.shape
        torch.Size([7, 2, 5])
    """

    State = LSTMState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.bias = bias
        I, H, kwargs = input_size, hidden_size, {"device": device, "dtype": dtype}  # noqa: E741

        def weights():
            U, V, b = (
                nn.Parameter(torch.empty(*shape, **kwargs)) for shape in ((I, H), (H, H), (H,))
            )
            return U, V, b if bias else 0.0

        self.U_i, self.V_i, self.b_i = weights()
        self.U_f, self.V_f, self.b_f = weights()
        self.U_c, self.V_c, self.b_c = weights()
        self.U_o, self.V_o, self.b_o = weights()
        self.reset_parameters()

    def step(self, x: Tensor, state: LSTMState) -> LSTMState:
        h, c = self.drop_recurrent(state.h), state.c
        i = sigmoid(x @ self.U_i + h @ self.V_i + self.b_i)
        f = sigmoid(x @ self.U_f + h @ self.V_f + self.b_f)
        g = tanh(x @ self.U_c + h @ self.V_c + self.b_c)
        o = sigmoid(x @ self.U_o + h @ self.V_o + self.b_o)
        self.tap(i=i, f=f, g=g, o=o)
        c = f * c + i * g
        h = o * tanh(c)
        return LSTMState(h=h, c=c)
