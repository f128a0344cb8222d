"""The LSTM of the equations: one line an equation, eight matrix products a step."""

import math

import torch
from torch import Tensor, nn

from flexrnn.fromscratch.check import check_input, check_sizes, check_states


class NaiveCustomLSTM(nn.Module):
    r"""A long short-term memory layer, written as its equations stand in a textbook.

        i_t = σ(x_t U_i + h_{t−1} V_i + b_i)       input gate:  what enters the memory
        f_t = σ(x_t U_f + h_{t−1} V_f + b_f)       forget gate: what stays in it
        g_t = tanh(x_t U_c + h_{t−1} V_c + b_c)    candidate:   what could enter
        o_t = σ(x_t U_o + h_{t−1} V_o + b_o)       output gate: what is shown of it
        c_t = f_t ∘ c_{t−1} + i_t ∘ g_t            cell state, the long-term memory
        h_t = o_t ∘ tanh(c_t)                      output, the short-term memory

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.

    Args:
        input_sz: I, the number of features of one time step.
        hidden_sz: H, the number of hidden units.

    Shapes: every `U_*` is `(I, H)`, every `V_*` `(H, H)`, every `b_*` `(H,)`; each is drawn from
    U(−1/√H, 1/√H).

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import NaiveCustomLSTM
        >>> layer = NaiveCustomLSTM(input_sz=3, hidden_sz=5)
        >>> hidden_seq, (h_T, c_T) = layer(torch.randn(2, 7, 3))
        >>> hidden_seq.shape, h_T.shape, c_T.shape
        (torch.Size([2, 7, 5]), torch.Size([2, 5]), torch.Size([2, 5]))
    """

    def __init__(self, input_sz: int, hidden_sz: int):
        super().__init__()
        check_sizes(input_sz, hidden_sz)
        I, H = self.input_sz, self.hidden_sz = input_sz, hidden_sz  # noqa: E741

        # input gate
        self.U_i = nn.Parameter(torch.empty(I, H))
        self.V_i = nn.Parameter(torch.empty(H, H))
        self.b_i = nn.Parameter(torch.empty(H))
        # forget gate
        self.U_f = nn.Parameter(torch.empty(I, H))
        self.V_f = nn.Parameter(torch.empty(H, H))
        self.b_f = nn.Parameter(torch.empty(H))
        # candidate
        self.U_c = nn.Parameter(torch.empty(I, H))
        self.V_c = nn.Parameter(torch.empty(H, H))
        self.b_c = nn.Parameter(torch.empty(H))
        # output gate
        self.U_o = nn.Parameter(torch.empty(I, H))
        self.V_o = nn.Parameter(torch.empty(H, H))
        self.b_o = nn.Parameter(torch.empty(H))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew from U(−1/√H, 1/√H), as `torch.nn.LSTM` does."""
        bound = 1 / math.sqrt(self.hidden_sz)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, x: Tensor, init_states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer over a batch of sequences.

        Args:
            x: the sequences, `(B, T, I)`: batch, time, feature.
            init_states: `(h_0, c_0)`, each `(B, H)` in x's dtype; zeros where `None`.

        Returns:
            `(hidden_seq, (h_T, c_T))`: the output at every step, `(B, T, H)`, and both states
            after the last one, each `(B, H)`.

        Raises:
            ValueError: a shape is wrong; the message names the argument.
            TypeError: `x` is not a floating-point tensor, or `init_states` is not a pair of tensors
                in x's dtype.
        """
        check_input(x, self.input_sz)  # (B, T, I)
        h, c = check_states(init_states, x, self.hidden_sz)  # (B, H), (B, H)

        hidden_seq = []
        for x_t in x.unbind(dim=1):  # x_t: (B, I)
            # In each of the next four lines:
            # (B, I) @ (I, H) + (B, H) @ (H, H) + (H,) -> (B, H)
            # i = σ(x U_i + h V_i + b_i)
            i = torch.sigmoid(x_t @ self.U_i + h @ self.V_i + self.b_i)
            # f = σ(x U_f + h V_f + b_f)
            f = torch.sigmoid(x_t @ self.U_f + h @ self.V_f + self.b_f)
            # g = tanh(x U_c + h V_c + b_c)
            g = torch.tanh(x_t @ self.U_c + h @ self.V_c + self.b_c)
            # o = σ(x U_o + h V_o + b_o)
            o = torch.sigmoid(x_t @ self.U_o + h @ self.V_o + self.b_o)
            # c ← f ∘ c + i ∘ g, each (B, H)
            c = f * c + i * g
            # h ← o ∘ tanh(c), each (B, H)
            h = o * torch.tanh(c)
            hidden_seq.append(h)

        return torch.stack(hidden_seq, dim=1), (h, c)  # T times (B, H) -> (B, T, H)

    def extra_repr(self) -> str:
        """Sizes, as `repr` shows them."""
        return f"{self.input_sz}, {self.hidden_sz}"
