"""A cell for whose program torch computes something ahead."""

import torch
from torch import Tensor, nn

from flexrnn import cells


class RotatedCell(cells.RNNCell):
    """Its recurrent weight is made of parameters by what programs do not know."""

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        U = torch.matrix_exp(self.weight_hh - self.weight_hh.T)
        past = nn.functional.linear(x, self.weight_ih, self.bias_ih) + state.h @ U
        return cells.HiddenState(torch.tanh(past))
