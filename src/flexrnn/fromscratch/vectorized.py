"""The same LSTM in two matrix products a step, and the article's peephole variant of it."""

import math

import torch
from torch import Tensor, nn

from flexrnn.fromscratch.check import check_input, check_sizes, check_states


class CustomLSTM(nn.Module):
    r"""A long short-term memory layer whose four gates lie side by side in one matrix.

        z_t = x_t W + h_{t−1} U + bias             all four blocks at once, (B, 4H): i, f, g, o
        i_t = σ(z_i)   f_t = σ(z_f)   g_t = tanh(z_g)   o_t = σ(z_o)
        c_t = f_t ∘ c_{t−1} + i_t ∘ g_t            cell state, the long-term memory
        h_t = o_t ∘ tanh(c_t)                      output, the short-term memory

    This is the function of `NaiveCustomLSTM`. With `peephole=True` the gates read the cell state
    *instead of* the output (the article's full-matrix form; the peephole of the literature, Gers &
    Schmidhuber 2000, keeps the recurrence on h and adds one weight per unit):

        z_t = x_t W + c_{t−1} U + bias             c, not h, feeds back
        i_t = σ(z_i)   f_t = σ(z_f)   o_t = σ(z_o)
        c_t = f_t ∘ c_{t−1} + i_t ∘ σ(x_t W + bias)_g    candidate: input only, a sigmoid
        h_t = tanh(o_t ∘ c_t)

    There the g block of `U` is unused and gets a zero gradient, and h_0 has no influence.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.

    Args:
        input_sz: I, the number of features of one time step.
        hidden_sz: H, the number of hidden units.
        peephole: let the gates read the cell state instead of the output.

    Shapes: `W` is `(I, 4H)`, `U` `(H, 4H)`, `bias` `(4H,)`, column blocks in the order i, f, g, o;
    each is drawn from U(−1/√H, 1/√H).

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import CustomLSTM
        >>> layer = CustomLSTM(3, 5, peephole=True)
        >>> hidden_seq, (h_T, c_T) = layer(torch.randn(2, 7, 3))
        >>> hidden_seq.shape, h_T.shape, c_T.shape
        (torch.Size([2, 7, 5]), torch.Size([2, 5]), torch.Size([2, 5]))
    """

    def __init__(self, input_sz: int, hidden_sz: int, peephole: bool = False):
        super().__init__()
        check_sizes(input_sz, hidden_sz)
        if not isinstance(peephole, bool):
            raise TypeError(f"peephole: expected a bool, got {peephole!r}")
        I, H = self.input_sz, self.hidden_sz = input_sz, hidden_sz  # noqa: E741
        self.peephole = peephole

        self.W = nn.Parameter(torch.empty(I, 4 * H))
        self.U = nn.Parameter(torch.empty(H, 4 * H))
        self.bias = nn.Parameter(torch.empty(4 * H))

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
            # x W + bias: (B, I) @ (I, 4H) + (4H,) -> (B, 4H)
            x_part = x_t @ self.W + self.bias
            if self.peephole:
                # z = x W + c U + bias: (B, 4H) + (B, H) @ (H, 4H) -> (B, 4H), cut into four (B, H)
                z_i, z_f, _, z_o = (x_part + c @ self.U).chunk(4, dim=-1)
                # i = σ(z_i), f = σ(z_f), o = σ(z_o), each (B, H)
                i, f, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.sigmoid(z_o)
                # g = σ(x W + bias)_g, (B, H)
                g = torch.sigmoid(x_part.chunk(4, dim=-1)[2])
                # c ← f ∘ c + i ∘ g, each (B, H)
                c = f * c + i * g
                # h ← tanh(o ∘ c), each (B, H)
                h = torch.tanh(o * c)
            else:
                # z = x W + h U + bias: (B, 4H) + (B, H) @ (H, 4H) -> (B, 4H), cut into four (B, H)
                z_i, z_f, z_g, z_o = (x_part + h @ self.U).chunk(4, dim=-1)
                # i = σ(z_i), f = σ(z_f), o = σ(z_o), each (B, H)
                i, f, o = torch.sigmoid(z_i), torch.sigmoid(z_f), torch.sigmoid(z_o)
                # g = tanh(z_g), (B, H)
                g = torch.tanh(z_g)
                # c ← f ∘ c + i ∘ g, each (B, H)
                c = f * c + i * g
                # h ← o ∘ tanh(c), each (B, H)
                h = o * torch.tanh(c)
            hidden_seq.append(h)

        return torch.stack(hidden_seq, dim=1), (h, c)  # T times (B, H) -> (B, T, H)

    def extra_repr(self) -> str:
        """Sizes, as `repr` shows them."""
        return f"{self.input_sz}, {self.hidden_sz}" + (", peephole=True" if self.peephole else "")
