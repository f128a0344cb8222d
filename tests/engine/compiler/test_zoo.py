"""Cells of the literature that the library does not have yet, written in a few lines each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn, sigmoid, tanh

import flexrnn
from flexrnn import cells
from flexrnn.cells import HiddenState, LayerNormLSTMCell, LSTMCell


class SLSTMState(NamedTuple):
    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class Stacked(flexrnn.Cell):
    """Four blocks of weights, used as the cells below like."""

    State: Any = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        I, H, kwargs = input_size, hidden_size, {"device": device, "dtype": dtype}
        self.W = nn.Parameter(torch.empty(4 * H, I, **kwargs))
        self.U = nn.Parameter(torch.empty(4 * H, H, **kwargs))
        self.b = nn.Parameter(torch.empty(4 * H, **kwargs))
        self.Q = nn.Parameter(torch.empty(I, H, **kwargs))
        self.R = nn.Parameter(torch.empty(H, I, **kwargs))
        self.reset_parameters()

    def step(self, x: Tensor, state: Any) -> Any:
        raise NotImplementedError


class MGU(Stacked):  # Zhou 2016: a product with f ∘ h, two stages
    def step(self, x: Tensor, state: Any) -> Any:
        h, H = state.h, self.hidden_size
        f = sigmoid(x @ self.W[:H].T + h @ self.U[:H].T + self.b[:H])
        n = tanh(x @ self.W[H : 2 * H].T + (f * h) @ self.U[H : 2 * H].T)
        return HiddenState((1 - f) * h + f * n)


class IndRNN(Stacked):  # Li 2018: no recurrent product
    def step(self, x: Tensor, state: Any) -> Any:
        H = self.hidden_size
        return HiddenState(torch.relu(x @ self.W[:H].T + self.b[H : 2 * H] * state.h + self.b[:H]))


class Leaky(Stacked):  # no product at all
    def step(self, x: Tensor, state: Any) -> Any:
        H = self.hidden_size
        return HiddenState(
            sigmoid(self.b[:H]) * state.h + x.sum(-1, keepdim=True) * self.b[H : 2 * H]
        )


class SLSTM(Stacked):  # Beck 2024: four states, and a maximum among them
    State = SLSTMState

    def step(self, x: Tensor, state: Any) -> Any:
        h, c, n, m = state
        i, f, z, o = (x @ self.W.T + h @ self.U.T + self.b).chunk(4, -1)
        log_f = nn.functional.logsigmoid(f)
        m_new = torch.maximum(log_f + m, i)
        i, f = torch.exp(i - m_new), torch.exp(log_f + m - m_new)
        c, n = f * c + i * tanh(z), f * n + i
        return SLSTMState(sigmoid(o) * c / n, c, n, m_new)


class NAS(Stacked):  # Zoph & Le 2016: x̂ and ĥ multiply and are never summed
    def step(self, x: Tensor, state: Any) -> Any:
        a, b = (x @ self.W.T).chunk(4, -1), (state.h @ self.U.T).chunk(4, -1)
        return HiddenState(tanh(a[0] * b[0]) + sigmoid(a[1] + b[1]) * torch.relu(a[2] * b[2]))


class RHN(Stacked):  # Zilly 2016: three micro-steps a step
    def step(self, x: Tensor, state: Any) -> Any:
        h, H = state.h, self.hidden_size
        for k in range(3):
            first = x @ self.W[:H].T if k == 0 else 0
            z = tanh(first + h @ self.U[k * H : (k + 1) * H].T)
            t = sigmoid(h @ self.U[3 * H :].T + self.b[:H])
            h = z * t + h * (1 - t)
        return HiddenState(h)


class Mogrifier(Stacked):  # Melis 2019: the input depends on the state before the gates do
    def step(self, x: Tensor, state: Any) -> Any:
        h = state.h
        x = 2 * sigmoid(h @ self.Q.T) * x
        h = 2 * sigmoid(x @ self.R.T) * h
        i, f, g, o = (x @ self.W.T + h @ self.U.T + self.b).chunk(4, -1)
        return HiddenState(sigmoid(o) * tanh(sigmoid(f) * h + sigmoid(i) * tanh(g)))


class ONLSTM(flexrnn.Cell):  # Shen 2019: running sums of a softmax say which units are kept
    State = cells.LSTMState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, 6 * hidden_size, bias, device, dtype)

    def step(self, x: Tensor, state: Any) -> Any:
        h, c = state
        i, f, g, o, keep, fill = self.inner(torch.cat([x, h], -1)).chunk(6, -1)
        keep = torch.cumsum(keep.softmax(-1), -1)
        fill = 1 - fill.softmax(-1).cumsum(-1)
        both = keep * fill
        c = (sigmoid(f) * both + keep - both) * c + (sigmoid(i) * both + fill - both) * tanh(g)
        return cells.LSTMState(sigmoid(o) * tanh(c), c)


class EUNN(Stacked):  # Jing 2017: the state is turned in pairs of units, which change partners
    def step(self, x: Tensor, state: Any) -> Any:
        h, H = state.h, self.hidden_size
        for k, partner in enumerate(([1, 0, 3, 2, 4], [0, 2, 1, 4, 3])):
            angle = self.b[k * H : (k + 1) * H]
            h = angle.cos() * h + angle.sin() * h[:, partner]
        z = h + x @ self.Q
        return HiddenState(z.sign() * torch.relu(z.abs() + self.b[2 * H : 3 * H]))


# Products in all, and in the loop.
ZOO: dict[str, tuple[Any, dict[str, Any], tuple[int, int]]] = {
    "projection": (LSTMCell, {"proj_size": 2}, (3, 2)),
    "normalised c": (LayerNormLSTMCell, {"carry_raw": False}, (2, 1)),
    "MGU": (MGU, {}, (3, 2)),
    "IndRNN": (IndRNN, {}, (1, 0)),
    "no product": (Leaky, {}, (0, 0)),
    "sLSTM": (SLSTM, {}, (2, 1)),
    "NAS": (NAS, {}, (2, 1)),
    "RHN": (RHN, {}, (4, 3)),
    "ON-LSTM": (ONLSTM, {}, (4, 3)),  # of two softmaxes, and two running sums
    "EUNN": (EUNN, {}, (1, 0)),  # partners as they lie
    "Mogrifier": (Mogrifier, {}, (3, 3)),  # R and W share their left operand
}


@pytest.mark.parametrize("name", ZOO)
def test_a_cell_of_the_literature_is_its_program(
    name: str, same_by_program: Callable[..., None]
) -> None:
    cell, options, (products, in_loop) = ZOO[name]
    layer = flexrnn.FlexRNN(
        cell, 3, 5, num_layers=2, bidirectional=True, dtype=torch.float64, **options
    )
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    graph, plan = program
    assert sum(graph.nodes[i].op == "product" for i in (*plan.hoisted, *plan.loop)) == products
    assert sum(graph.nodes[i].op == "product" for i in plan.loop) == in_loop
    same_by_program(layer, x)
