"""Complex numbers inside a step: two real ones each, with the derivatives that torch gives them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn import cells

from .written import Cell, halves

DOUBLE = torch.complex128


class Complex(Cell):
    """It has complex weights, too."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lam = nn.Parameter(torch.randn(4, dtype=DOUBLE) / 2)
        self.A = nn.Parameter(torch.randn(4, 4, dtype=DOUBLE) / 2)
        self.register_buffer("table", torch.randn(4, dtype=torch.complex64))

    def z(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.complex(h, x @ self.W)


@pytest.fixture
def judge(same_by_program: Callable[..., None]) -> Callable[..., None]:
    """Assert that the engines agree on a step with complex weights."""

    def check(function: Callable[..., Tensor], **options: Any) -> None:
        layer = flexrnn.FlexRNN(Complex, 3, 4, dtype=torch.float64, function=function)
        for steps, batch in ((3, 2), (1, 1)):
            x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
            h = torch.randn(1, batch, 4, dtype=torch.float64, requires_grad=True)
            same_by_program(layer, x, h, **options)

    return check


def at_zero(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """About half of the parts are 0, and a few numbers; torch has no derivative there, but 0."""
    z = torch.complex(h.relu(), (x @ c.W).relu())
    return z.abs() + z.sgn().real + z.angle() + z.norm(dim=-1, keepdim=True) + h


def without_gradients(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = c.z(x, h)
    with torch.no_grad():
        less = (z * c.lam).clone()
        less *= 2
        less[:, 0] = 1j
    return (less * z).abs() + (z.detach() * z).real + z.data.imag


def written_to(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z, w = c.z(x, h).clone(), torch.empty(h.shape[0], 4, dtype=DOUBLE)
    z += 1j
    z[:, 0] = h[:, 1]
    z.real.mul_(2)
    z.imag[:, 1:] += 1
    z[h > 1] = 0
    z[:, [1, 0]] = z[:, [0, 1]] * 1j
    z[:, c.places] = z * 2
    z *= c.lam
    w.real, w.imag = h, x @ c.W
    return z.real + z.abs() + (w * c.lam).real


def weights_written_to(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Torch has no derivative of how it writes them down once writes have become functions."""
    w, v = c.A.clone(), torch.zeros(4, 4, dtype=DOUBLE)
    w[0, 0] = 2j
    w[1:3, 2] *= c.lam[:2]
    v[0] = c.lam
    v.diagonal().add_(c.lam)
    return (c.z(x, h) @ w).imag + (c.z(x, h) @ v).real


def reflected(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z, v = c.z(x, h), c.lam
    return (z - 2 * v * (z @ v.conj()).unsqueeze(-1) / (v.abs() ** 2).sum()).real


def mod_relu(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = c.z(x, h)
    size = z.abs()
    return (F.relu(size + c.b) * z / (size + 1e-5)).imag


def read(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = c.z(x, h)
    known = z.is_complex() and torch.is_complex(z) and z.shape[1:] == (4,) and z.dtype == DOUBLE
    return z.imag * 2 if known else z.real


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "made and seen": lambda c, x, h: (
        torch.view_as_real(torch.view_as_complex(halves(h)) * c.lam[:2]).flatten(1) + x @ c.W
    ),
    "polar": lambda c, x, h: (torch.polar(h.abs() + 0.1, x @ c.W) * c.lam).real,
    "real rows and complex weights": lambda c, x, h: (
        (h * c.lam).real + ((x @ c.W + 0j) @ c.A.T).imag + (1j * h * c.lam).imag
        + (c.A @ (h + 0j).unsqueeze(-1)).squeeze(-1).imag
    ),
    "weights of other dtypes": lambda c, x, h: (h * c.table).imag + x @ c.W,
    "made ahead": lambda c, x, h: (
        c.z(x, h) * torch.exp(-torch.exp(c.b) + 1j * torch.exp(c.V[0]))
        + c.z(x, h) @ torch.matrix_exp(c.A - c.A.mH) + h.to(DOUBLE) @ torch.complex(c.U, c.V).T
    ).real,
    "sums": lambda c, x, h: (
        (c.z(x, h) * 2 - 1j * h + c.lam.conj() * h - 0.5).real + (1 - c.z(x, h)).imag
        + (c.z(x, h).mul(1j).add(h, alpha=2) - c.z(x, h).sub(c.lam, alpha=3j)).imag
        + torch.addcmul(c.z(x, h), c.z(x, h), c.lam, value=0.5).imag
        + torch.rsub(c.z(x, h), h + 1j, alpha=2).imag + torch.rsub(c.z(x, h), 3j, alpha=2j).real
        + torch.lerp(c.z(x, h), h + 1j, 0.3).imag
    ),
    "divided": lambda c, x, h: (
        (c.z(x, h) / (c.z(x, h) * c.lam + 3)).real + (1 / (c.z(x, h) + 2j)).imag
        + (c.z(x, h) / h.exp()).abs() + (h / (2j + c.z(x, h).real)).real
    ),
    "powers": lambda c, x, h: (
        (c.z(x, h) ** 2 + c.z(x, h) ** 3 * 0.1 + (c.z(x, h) + 4) ** -1).abs() * 0.1
        + (c.z(x, h) ** 0.5 + 2 ** c.z(x, h) + c.z(x, h).square() * 0.1).imag.tanh()
        + (c.z(x, h) ** 7 * 1e-3 + c.z(x, h) ** 0 + c.z(x, h) ** 1.7).real.tanh()
        - c.z(x, h).sqrt().real - (c.z(x, h) + 2).rsqrt().imag
    ),
    "powers of real numbers": lambda c, x, h: (
        ((2 + 1j) ** h).imag.tanh() + (1j**h).real + (h ** (2 + 0j)).real.tanh() + x @ c.W
    ),
    "exponentials": lambda c, x, h: (
        (c.z(x, h).exp() + c.z(x, h).log() + c.z(x, h).sin()).imag.tanh()
        + (c.z(x, h).cos() - c.z(x, h).sinh() + c.z(x, h).cosh()).real.tanh()
    ),
    "sigmoids": lambda c, x, h: (
        c.z(x, h).tanh().imag.tanh() + (c.z(x, h) / 5).sigmoid().real + (h + 3j).tan().imag
        + (c.z(x, h) + 2).reciprocal().imag + (c.z(x, h) / 4).tan().real
    ),
    "far out": lambda c, x, h: (
        (c.z(x, h) * 1e200).abs() * 1e-200 + (c.z(x, h) * 1e-200).abs() * 1e200
        + (c.z(x, h) * 500).tanh().real
    ),
    "at zero": at_zero,
    "conjugates": lambda c, x, h: (
        (c.z(x, h).conj() * 1j).imag + c.z(x, h).conj().resolve_conj().imag + c.z(x, h).mH.real.T
        + c.z(x, h).conj().imag + (c.z(x, h) @ c.A.mH).real + (c.z(x, h) @ c.A.conj()).imag
    ),
    "products": lambda c, x, h: (
        torch.einsum("bh,kh->bk", c.z(x, h), c.A).angle().tanh()
        + F.linear(c.z(x, h), c.A, c.lam).real
        + (c.z(x, h).view(-1, 2, 2) @ c.A[:2, :2]).real.flatten(1)
        + F.linear(c.z(x, h).view(-1, 2, 2), c.A[:2, :2]).imag.flatten(1)
        + torch.einsum("bgk,gko->bgo", c.z(x, h).view(-1, 2, 2), c.A.view(4, 2, 2)[:2])
        .flatten(1).real
        + torch.addmm(c.lam, c.z(x, h), c.A, beta=1j, alpha=2 - 1j).imag
        + torch.tensordot(c.z(x, h), c.A, dims=1).imag
    ),
    "products of rows": lambda c, x, h: (
        (torch.einsum("bi,bj->bij", c.z(x, h), c.z(x, h).conj()) @ (h + 1j).unsqueeze(-1))
        .squeeze(-1).real.tanh()
        + (c.z(x, h).view(-1, 2, 2) @ c.z(x, h).view(-1, 2, 2).mH).real.flatten(1).tanh()
        + torch.linalg.vecdot(c.z(x, h), c.z(x, h) * 2j).imag.unsqueeze(-1).tanh()
    ),
    "joined and cut": lambda c, x, h: (
        torch.cat([torch.stack([c.z(x, h), h + 0j], 1).sum(1)[:, :2], c.z(x, h).chunk(2, 1)[1]], 1)
        .unflatten(1, (2, 2)).transpose(1, 2).flatten(1).unsqueeze(-1).squeeze(-1).imag.flip(1)
        + c.z(x, h).mean(-1, keepdim=True).real * h + c.z(x, h).roll(1, -1).real
        + c.z(x, h)[:, ::2].repeat(1, 2).imag + c.z(x, h).cumsum(-1).imag
        + F.pad(c.z(x, h)[:, 1:], (1, 0), value=1.0).imag
    ),
    "picked": lambda c, x, h: (
        c.z(x, h)[:, [2, 0, 1, 3]].real + c.z(x, h)[:, c.places].imag
        + c.z(x, h).gather(1, h.argsort(-1)).real
    ),
    "chosen": lambda c, x, h: (
        torch.where(h > 0, c.z(x, h), 0.5).imag + torch.where(h > 0, c.z(x, h), h * 2j).imag
        + torch.where(c.z(x, h).abs() > 1, c.z(x, h) / c.z(x, h).abs(), c.z(x, h)).imag
        + torch.where(c.z(x, h) == h, h, h * 2) + torch.where(c.z(x, h) != 0, x @ c.W, h)
        + c.z(x, h).isnan() * h + (1 / (c.z(x, h) * (h > 0))).isfinite() * h
    ),
    "new tensors": lambda c, x, h: (
        (torch.zeros(h.shape[0], 4, dtype=DOUBLE) + torch.zeros_like(h, dtype=DOUBLE) + h).real
        + (c.z(x, h) * 0j + x @ c.W).real + (c.z(x, h) * 0).imag + torch.zeros_like(c.z(x, h)).real
        + torch.full_like(c.z(x, h), 2 + 1j).imag + c.z(x, h).new_ones(h.shape).real
    ),
    "stretched": lambda c, x, h: (
        (h + c.lam).sum(-1, keepdim=True).imag + torch.view_as_real(h + c.lam).sum(-1)
        + (h[:, :1] * 1j + h).imag + x @ c.W
        + torch.cat([h[:, :2] * (1j + c.lam[0]), h[:, :2].to(DOUBLE)], 1).imag
    ),
    "a reflection": reflected,
    "mod relu": mod_relu,
    "asked": read,
    "written to": written_to,
    "weights written to": weights_written_to,
    "without gradients": without_gradients,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name], rtol=1e-10)


def test_at_zero_there_is_no_slope() -> None:
    """Where both parts are, exactly."""

    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return torch.complex(h, h * 0).abs() + torch.complex(h, h * 2).sgn().real

    layer = flexrnn.FlexRNN(Complex, 3, 4, dtype=torch.float64, function=step)
    h = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)
    with flexrnn.backend("cpu"):
        y, _ = layer(torch.zeros(1, 2, 3, dtype=torch.float64), h)
    y.sum().backward()
    assert not y.any()
    assert h.grad is not None
    assert not h.grad.any()


def test_a_negative_length_has_the_derivative_of_its_definition() -> None:
    """Torch's own has the wrong sign there: it is that of |abs|."""

    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return torch.polar(h, h * 0 + 0.3).real

    layer = flexrnn.FlexRNN(Complex, 3, 4, dtype=torch.float64, function=step)
    h = torch.full((1, 2, 4), -1.0, dtype=torch.float64, requires_grad=True)
    with flexrnn.backend("cpu"):
        y, _ = layer(torch.zeros(1, 2, 3, dtype=torch.float64), h)
    y.sum().backward()
    expected = torch.full_like(h, math.cos(0.3) / 2)
    torch.testing.assert_close(h.grad, expected)


class LRUCell(flexrnn.Cell):
    """Orvieto et al. 2023; the state is the real parts, and behind them the imaginary ones."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, 2 * hidden_size)
        kind: Any = {"device": device, "dtype": dtype}
        weight = torch.randn(hidden_size, input_size, 2, **kind)
        self.B = nn.Parameter(torch.view_as_complex(weight))
        self.nu, self.theta = (nn.Parameter(torch.rand(hidden_size, **kind)) for _ in range(2))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        lam = torch.exp(-torch.exp(self.nu) + 1j * torch.exp(self.theta))
        h = lam * torch.complex(*state.h.chunk(2, -1))
        h = h + (1 - lam.abs() ** 2).sqrt() * (x.to(self.B.dtype) @ self.B.T)
        return cells.HiddenState(torch.cat([h.real, h.imag], -1))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_layer_of_a_complex_recurrence_is_the_reference(dtype: torch.dtype, rtol: float) -> None:
    layer, x = flexrnn.FlexRNN(LRUCell, 3, 4, dtype=dtype), torch.randn(9, 2, 3, dtype=dtype)
    found: list[list[Any]] = []
    for engine in ("reference", "cpu"):
        layer.zero_grad()
        with flexrnn.backend(engine):
            y, _ = layer(x)
            with torch.no_grad():
                torch.testing.assert_close(layer(x)[0], y.detach(), rtol=rtol, atol=rtol)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in layer.parameters())])
    for right, ours in zip(*found, strict=True):
        assert right.dtype == ours.dtype
        torch.testing.assert_close(ours, right, rtol=10 * rtol, atol=10 * rtol)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return (2 * z).real

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0] + 0j


def pairs(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda c, x, h: of(torch.complex(x, h)).real


def test_complex_numbers_that_are_drawn_are_the_same_by_every_engine() -> None:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return (torch.randn_like(c.z(x, h)) * c.lam + c.z(x, h)).imag

    layer = flexrnn.FlexRNN(Complex, 3, 4, dtype=torch.float64, function=step)
    x, found = torch.randn(3, 2, 3, dtype=torch.float64), list[Tensor]()
    for engine in ("reference", "interpreter", "cpu"):
        torch.manual_seed(1)
        with flexrnn.backend(engine):
            found.append(layer(x)[0])
    torch.testing.assert_close(found[1:], found[:1] * 2, rtol=1e-12, atol=1e-12)


NONE = "a program has no such operation on complex numbers, which two real ones can be"
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "a product": (pairs(lambda z: z.prod(-1, keepdim=True) + z), rf"aten\.prod\.dim_int .*{NONE}"),
    "an arcsine": (pairs(torch.asin), rf"aten\.asin\.default .*{NONE}"),
    "a variance": (pairs(lambda z: z.var(-1, keepdim=True) + z), NONE),
    "an order": (pairs(lambda z: (z > 0) * z), NONE),
    "truth values": (pairs(lambda z: z.bool() * z), "of complex numbers it makes others than real"),
    "a power by rows": (pairs(lambda z: z**z.real), "exponents that are a tensor's"),
    "a complex power": (pairs(lambda z: z**1j), "a complex power"),
    "a power of 0": (pairs(lambda z: 0**z), "a power of 0"),
    "a function of somebody's": (pairs(Doubled.apply), "Doubled cannot be compiled: it takes"),
    "across the batch": (pairs(lambda z: z + z.sum(0)), "it works across the batch"),
    "picked by a mask": (pairs(lambda z: z[z.real > 0]), "how many it picks is not known"),
    "solved": (
        lambda c, x, h: torch.linalg.det(h[:, :4].view(-1, 2, 2) + 0j).real.unsqueeze(-1) * h, NONE
    ),
    "eigenvalues": (
        lambda c, x, h: torch.linalg.eigvals(h[:, :4].view(-1, 2, 2)).real[:, :1] * h, NONE
    ),
    "a complex state": (lambda c, x, h: h + 0j, "expected h to keep its dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(*REFUSED[name])


def test_weights_without_a_derivative_are_refused() -> None:
    """Of complex numbers torch raises an error at once."""
    layer = flexrnn.FlexRNN(
        Complex, 3, 4, dtype=torch.float64, function=lambda c, x, h: (h * F.silu(c.lam)).real
    )
    reason = r"silu\.default cannot be compiled: it has no derivative"
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason):
        layer(torch.zeros(1, 2, 3, dtype=torch.float64))


def test_a_state_is_not_written_to() -> None:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(halves(h)).mul_(1j)).flatten(1)

    layer = flexrnn.FlexRNN(Complex, 3, 4, dtype=torch.float64, function=step)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=r"mul_ .* writes into the inp"):
        layer(torch.zeros(1, 2, 3, dtype=torch.float64))


def test_a_refusal_names_the_line(refuses: Callable[..., None]) -> None:
    refuses(pairs(lambda z: z.cumprod(-1)), rf"aten\.cumprod\.default .*{__file__}:\d+")
