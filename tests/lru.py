"""Cells whose states are complex, and one that says the same in real numbers by hand."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.engine.paired import complex_of


class LRUState(NamedTuple):
    y: Tensor
    z: Tensor


class LRUCell(flexrnn.Cell):
    """A linear recurrent unit (Orvieto et al. 2023): its memory is complex, its output real."""

    State: Any = LRUState
    complex_fields = ("z",)

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        kind: Any = {"device": device, "dtype": dtype}
        self.nu, self.theta = (nn.Parameter(torch.rand(hidden_size, **kind)) for _ in range(2))
        self.D = nn.Parameter(torch.randn(hidden_size, input_size, **kind) / 2)
        kind["dtype"] = complex_of(dtype or torch.get_default_dtype())
        self.B = nn.Parameter(torch.randn(hidden_size, input_size, **kind) / 2)
        self.C = nn.Parameter(torch.randn(hidden_size, hidden_size, **kind) / 2)

    def step(self, x: Tensor, state: Any) -> Any:
        lam = torch.exp(-torch.exp(self.nu) + 1j * torch.exp(self.theta))
        z = lam * state.z + x.to(self.B.dtype) @ self.B.T
        y = (z @ self.C.T).real + x.real @ self.D.T
        return LRUState(y.to(state.y.dtype), z)


class RealState(NamedTuple):
    y: Tensor
    re: Tensor
    im: Tensor


class RealLRUCell(flexrnn.Cell):
    """The same without a complex number in it."""

    State = RealState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        kind: Any = {"device": device, "dtype": dtype}
        self.nu, self.theta = (nn.Parameter(torch.rand(hidden_size, **kind)) for _ in range(2))
        shape, square = (hidden_size, input_size), (hidden_size, hidden_size)
        self.D, self.B_re, self.B_im = (nn.Parameter(torch.empty(shape, **kind)) for _ in range(3))
        self.C_re, self.C_im = (nn.Parameter(torch.empty(square, **kind)) for _ in range(2))

    def step(self, x: Tensor, state: Any) -> Any:
        size, turn = torch.exp(-torch.exp(self.nu)), torch.exp(self.theta)
        a, b = size * torch.cos(turn), size * torch.sin(turn)
        re = a * state.re - b * state.im + x @ self.B_re.T
        im = a * state.im + b * state.re + x @ self.B_im.T
        return RealState(re @ self.C_re.T - im @ self.C_im.T + x @ self.D.T, re, im)


class UnitaryState(NamedTuple):
    z: Tensor


class UnitaryCell(flexrnn.Cell):
    """A recurrence that turns, and shortens what is short; it has no real parameter at all."""

    State = UnitaryState
    complex_fields = ("z",)

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        kind: Any = {"device": device, "dtype": complex_of(dtype or torch.get_default_dtype())}
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size, **kind) / 2)
        self.weight_hh = nn.Parameter(torch.randn(hidden_size, hidden_size, **kind) / 2)
        self.bias = nn.Parameter(torch.randn(hidden_size, **kind) / 2)

    def step(self, x: Tensor, state: UnitaryState) -> UnitaryState:
        U = torch.matrix_exp(self.weight_hh - self.weight_hh.mH)
        z = x.to(U.dtype) @ self.weight_ih.T + self.drop_recurrent(state.z) @ U.T
        self.tap(z=z)
        return UnitaryState(z / (1 + z.abs()) + 0.1 * self.bias.conj() * state.z.conj())


class RealCell(UnitaryCell):
    """All its parameters are complex, and its state is real."""

    State = HiddenState
    complex_fields = ()

    def step(self, x: Tensor, state: Any) -> Any:
        z = x.to(self.bias.dtype) @ self.weight_ih.T + state.h.to(self.bias.dtype) @ self.weight_hh
        return HiddenState((z + self.bias).abs().tanh())
