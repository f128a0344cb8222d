"""Cells of which a kernel has something that no cell of the library has."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

import flexrnn


class OddState(NamedTuple):
    h: Tensor
    m: Tensor


class Odd(flexrnn.Cell):
    """A state of H units, one of `width`, and weights; each kind says what is made of them."""

    State = OddState
    width = 1
    W: Tensor
    U: Tensor
    V: Tensor
    a: Tensor

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **options: Any):
        super().__init__(input_size, hidden_size)
        H = hidden_size
        shapes = {"W": (H, input_size), "U": (H, H), "V": (H, self.width or 1), "a": (1,)}
        for name, shape in shapes.items():
            weight = torch.randn(*shape, **options) * shape[-1] ** -0.5
            setattr(self, name, nn.Parameter(weight))

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"h": self.hidden_size, "m": self.width or self.hidden_size}

    def step(self, x: Tensor, state: OddState) -> OddState:
        return OddState(*self.news(linear(x, self.W), *state))

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class ShortAndLong(Odd):
    """Two products of a stage, the first of few columns."""

    width = 5

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return (x + linear(m, self.V) + linear(h, self.U)).tanh(), m * 0.5 + x[:, :5]


class Joined(Odd):
    """The same as a product with what is joined."""

    width = 5

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.V, self.U], -1)
        return (x + linear(torch.cat([m, h], -1), both)).tanh(), m * 0.5 + x[:, :5]


class Everywhere(Odd):
    """A new state that is one number of each row, in all units."""

    width = 0

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return (x + linear(h, self.U) + m).tanh(), torch.tanh(x[:, :1].expand_as(h))


class Seen(Odd):
    """A new state of ones and zeros, as a number of each row says."""

    width = 0

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        begins = x[:, :1] > 0
        ones = torch.where(begins, torch.ones_like(m), torch.zeros_like(m))
        return torch.where(begins, 0.0, (x + linear(h, self.U) + m).tanh()), ones


class Multiplied(Odd):
    """A product of one number of each row, in all units."""

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = 0.5 * m + x[:, :1]
        return torch.tanh(x * h + linear(m.tanh().expand(-1, h.shape[-1]), self.U)), m


class OneNumber(Odd):
    """A parameter of one number, for all rows."""

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x + h * m), torch.where(x[:, :1] > 0, self.a.expand_as(m), m * 0.5)


class Constants(Odd):
    """Functions of which an operand is a number."""

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return torch.remainder(x + h, 2.0) - 1.0, torch.hypot(m * 0.5, torch.full_like(m, 0.3))


class Drawing(Odd):
    """Truth values and numbers that are drawn, for units and for the row."""

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        h = dropout(torch.tanh(x + linear(h, self.U)), 0.3) + 0.1 * torch.randn_like(h)
        return h, 0.5 * m + torch.rand_like(m)


class Turned(Odd):
    """A row's own matrix with its axes exchanged, in a product and element by element."""

    width = 0

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(x.unsqueeze(1) + h[:, :9].unsqueeze(2))  # (B, 9, H)
        z = y.transpose(1, 2) @ self.U[:9, :9]  # (B, H, 9)
        z = z.transpose(1, 2).sigmoid() * y
        return torch.tanh(x + z.sum(1) + linear(h, self.U)), 0.5 * m + z[:, 4]


class Matrices(Odd):
    """Matrices of a row, multiplied with one another."""

    width = 0

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        y, z = x.unsqueeze(1) + h[:, :9].unsqueeze(2), m.unsqueeze(1) * h[:, 1:10].unsqueeze(2)
        near = (y @ z.transpose(1, 2)).softmax(-1)  # (B, 9, 9)
        return torch.tanh((near @ y).mean(1) + linear(h, self.U)), 0.5 * m + x


class Totals(Odd):
    """Sums along the axis before the last: of 20 places, and of more than are taken one by one."""

    width = 0

    def news(self, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        a, b = h.unsqueeze(2) * m.unsqueeze(1), m.unsqueeze(2) * x.unsqueeze(1)
        few, many = torch.cat([a[:, :10], b[:, :10]], 1), torch.cat([a, b], 1)
        return torch.tanh(x + few.mean(1)), torch.tanh(m + (many.sin() * self.a).sum(1))


ODD = [
    ShortAndLong,
    Joined,
    Everywhere,
    Seen,
    Multiplied,
    OneNumber,
    Constants,
    Drawing,
    Turned,
    Matrices,
    Totals,
]
