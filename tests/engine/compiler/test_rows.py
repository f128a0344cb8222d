"""Every row of the table inside a cell, reached by the name that torch has for it."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

import flexrnn
from flexrnn.engine.compiler.ops import OPS, Op

PUBLIC: dict[str, Callable[..., Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": torch.maximum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "minimum": torch.minimum,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "logaddexp": torch.logaddexp,
    "fmod": torch.fmod,
    "remainder": lambda a, b: a % b,
    "lerp": torch.lerp,
    "neg": lambda a: -a,
    "abs": lambda a: abs(a),
    "sign": lambda a: a.sign() * a,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "floor": lambda a: a.floor() * a,
    "ceil": lambda a: a.ceil() * a,
    "round": lambda a: a.round() * a,
    "trunc": lambda a: a.trunc() * a,
    "frac": torch.frac,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sigmoid": torch.special.expit,
    "log_sigmoid": F.logsigmoid,
    "softplus": F.softplus,
    "tanh": F.tanh,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.arcsinh,
    "acosh": torch.arccosh,
    "atanh": torch.arctanh,
    "erf": torch.special.erf,
    "erfc": torch.special.erfc,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.arcsin,
    "acos": torch.arccos,
    "atan": torch.arctan,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda a: F.leaky_relu(a, 0.2),
    "elu": lambda a: F.elu(a, 0.5),
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda a: F.gelu(a, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardtanh": lambda a: F.hardtanh(a, -0.7, 0.4),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "clamp": lambda a: a.clip(-0.7, 0.4),
    "gt": lambda a, b: a * (a > b),
    "ge": lambda a, b: a * (a >= b),
    "lt": lambda a, b: a * (a < b),
    "le": lambda a, b: a * (a <= b),
    "eq": lambda a, b: a * (a.round() == b.round()),
    "ne": lambda a, b: a * (a.round() != b.round()),
    "and": lambda a, b: a * ((a > 0) & (b > 0)),
    "or": lambda a, b: a * ((a > 0) | (b > 0)),
    "not": lambda a: a * ~(a > 0),
    "where": lambda c, a, b: torch.where(c > 0, a, b),
    "single": lambda a: a * ((a > 0).float() / 3),
}
ROUNDED = {  # autograd has constants of these in float32: its error, not ours
    "hardsigmoid": 1e-7,
    "hardswish": 1e-7,
}


def inside(domain: tuple[float, float], v: Tensor) -> Tensor:
    low, high = domain
    return low + (high - low) * torch.sigmoid(v)


def test_every_row_has_a_public_name() -> None:
    assert set(PUBLIC) == set(OPS)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_cell_that_applies_a_row_is_the_reference(
    name: str, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    row = OPS[name]

    def function(cell: Any, z: Tensor, h: Tensor) -> Tensor:
        drawn = [z, h, z * h + 0.3]
        operands = [inside(d, v) for d, v in zip(row.domain, drawn, strict=False)]
        return torch.tanh(PUBLIC[name](*operands)) + 0.1 * h

    layer = function_layer(function)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    assert name in {node.op for node in program.graph.nodes}
    same_by_program(layer, x, h, rtol=ROUNDED.get(name, 1e-11))


POINTS = (-30.0, -6.0, -3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 20.0, 20.5, 30.0)
REAL_ROWS = [op for op in OPS.values() if not op.boolean and op.name != "where"]


@pytest.mark.parametrize("row", REAL_ROWS, ids=lambda row: row.name)
def test_the_derivative_is_autograds_at_ties_at_borders_and_far_out(row: Op) -> None:
    grid = torch.tensor(list(product(POINTS, repeat=len(row.domain))), dtype=torch.float64)
    operands = [column.clone().requires_grad_() for column in grid.unbind(-1)]
    y = row.torch(*operands, **dict(row.attributes))
    g = torch.full_like(y, 1.3)
    expected = torch.autograd.grad(y, operands, g)
    if row.name == "hardsigmoid":  # autograd's own has 1/6 in float32
        expected = (g / 6 * (grid[:, 0].abs() < 3),)
    if row.vjp is None:
        assert not any(e.any() for e in expected)
        return
    detached = [o.detach() for o in operands]
    got = row.vjp(g, y.detach(), *detached, **dict(row.attributes))
    for ours, right in zip(got, expected, strict=True):
        assert_close(ours.expand_as(right), right, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("at", [0.0, -0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.maximum(a, b),
        lambda a, b: torch.minimum(a, b),
        lambda a, b: a.clamp(min=b),
        lambda a, b: a.clamp(b, b + 1),
        lambda a, b: torch.where(a > b, a, b * 2),
        lambda a, b: F.relu(a - b),
        lambda a, b: torch.stack([a, b, a], -1).amax(-1),
        lambda a, b: (a * 0).norm(dim=-1, keepdim=True) + b,
        lambda a, b: (a * 0).std(-1, keepdim=True) + b,
        lambda a, b: F.normalize(a * 0, dim=-1) + b,
        lambda a, b: F.cosine_similarity(a * 0, b, dim=-1).unsqueeze(-1) + b,
    ],
)
def test_ties_inside_a_cell_are_parted_as_autograd_parts_them(
    at: float,
    function: Callable[..., Tensor],
    function_layer: Any,
    same_by_program: Callable[..., None],
) -> None:
    layer = function_layer(lambda cell, z, h: function(z * 0 + h, h) + z)
    h = torch.full((1, 2, 5), at, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True), h)
