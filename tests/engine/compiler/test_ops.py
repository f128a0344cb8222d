"""Every row of the table: its derivative against autograd's, and the ways to spell it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

from flexrnn.engine.compiler.ops import OPS, Op

ATTRIBUTES: dict[str, dict[str, float]] = {"clamp": {"low": -1.0, "high": 1.5}}
BOOLEAN_OPERANDS = {"and": (0, 1), "or": (0, 1), "not": (0,), "where": (0,)}


def operands(op: Op) -> list[Tensor]:
    drawn = [torch.empty(301, dtype=torch.float64).uniform_(*domain) for domain in op.domain]
    for k in BOOLEAN_OPERANDS.get(op.name, ()):
        drawn[k] = drawn[k] > 0.5
    return drawn


def attributes(op: Op) -> dict[str, float]:
    return {**dict(op.attributes), **ATTRIBUTES.get(op.name, {})}


def test_the_table_has_about_sixty_real_operations_with_their_derivative() -> None:
    assert sum(not op.boolean for op in OPS.values()) >= 60
    flat = {name for name, op in OPS.items() if op.vjp is None and not op.boolean}
    assert flat == {"sign", "floor", "ceil", "round", "trunc"}


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_the_derivative_is_autograds(op: Op) -> None:
    given, more = operands(op), attributes(op)
    leaves = [g.requires_grad_() if g.is_floating_point() else g for g in given]
    y = op.torch(*leaves, **more)
    assert (y.dtype == torch.bool) == op.boolean
    if op.boolean:
        return
    g = torch.randn(301, dtype=torch.float64)
    real = [leaf for leaf in leaves if leaf.is_floating_point()]
    expected = torch.autograd.grad(y, real, g)
    if op.name == "hardsigmoid":  # autograd's own has 1/6 in float32
        expected = (g / 6 * (given[0].abs() < 3),)
    if op.vjp is None:
        assert not any(e.any() for e in expected)
        return
    detached = [leaf.detach() for leaf in leaves]
    got = [c for c in op.vjp(g, y.detach(), *detached, **more) if c is not None]
    for ours, right in zip(got, expected, strict=True):
        assert_close(ours, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("elu", [[-16.2, -40.0, -0.1]]),
        ("selu", [[-9.1, -40.0, -0.1]]),
        ("logaddexp", [[1e4, -1e4, 1e10], [1e4, -1e4, 1e10]]),
        ("remainder", [[1.0, 3.0, -0.7], [0.1, 0.3, 0.1]]),
        ("remainder", [[-2.0, 2.0, -2.0, 2.0], [math.inf, math.inf, -math.inf, -math.inf]]),
        ("fmod", [[1.0, 3.0, -0.7], [0.1, 0.3, 0.1]]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_derivative_loses_no_digits_where_the_value_is_rounded(
    name: str, given: list[list[float]], dtype: torch.dtype
) -> None:
    op = OPS[name]
    leaves = [torch.tensor(each, dtype=dtype, requires_grad=True) for each in given]
    y = op.torch(*leaves, **attributes(op))
    g = torch.ones_like(y)
    expected = torch.autograd.grad(y, leaves, g)
    assert op.vjp is not None
    detached = [leaf.detach() for leaf in leaves]
    for ours, right in zip(
        op.vjp(g, y.detach(), *detached, **attributes(op)), expected, strict=True
    ):
        assert_close(ours, right, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_at_a_tie_maximum_shares_and_relu_is_flat_at_zero() -> None:
    zero, g = torch.zeros(1), torch.ones(1)
    assert OPS["maximum"].vjp is not None
    assert OPS["relu"].vjp is not None
    assert [float(c) for c in OPS["maximum"].vjp(g, zero, zero, zero)] == [0.5, 0.5]
    assert float(OPS["relu"].vjp(g, zero, zero)[0]) == 0.0


def test_relu_hands_on_what_reaches_nan_as_torch_does() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, math.nan], requires_grad=True)
    y, vjp = OPS["relu"].torch(x), OPS["relu"].vjp
    assert vjp is not None
    (expected,) = torch.autograd.grad(y.sum(), x)
    assert_close(vjp(torch.ones(4), y.detach(), x.detach())[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fmax", "fmin"])
def test_fmax_has_the_derivative_of_this_torch_at_ties_and_where_one_is_no_number(
    name: str,
) -> None:
    a = [0.0, 1.0, 2.0, math.nan, 1.0, math.nan, math.inf]
    b = [0.0, 2.0, 1.0, 1.0, math.nan, math.nan, math.inf]
    leaves = [torch.tensor(each, requires_grad=True) for each in (a, b)]
    y, vjp = OPS[name].torch(*leaves), OPS[name].vjp
    expected = torch.autograd.grad(y.sum(), leaves)
    assert vjp is not None
    found = vjp(torch.ones(7), y.detach(), *(leaf.detach() for leaf in leaves))
    assert_close(found, expected, rtol=0, atol=0)


SPELLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "operators": lambda z, h: (1 - z) * h / 2 + (-z) ** 2 - 3 * h + 1 / (z * z + 1),
    "power": lambda z, h: (z.abs() + 0.5) ** 1.5 + z**3 + (z * z + 1) ** 0.5 + h,
    "silu": lambda z, h: F.silu(z) + h,
    "clamp one side": lambda z, h: z.clamp(min=0) + h.clamp(max=0.2),
    "clamp both": lambda z, h: torch.clamp(z, -0.5, 0.5) + h,
    "where with a number": lambda z, h: torch.where(z > 0, h, 0.0) + z,
    "comparison of both": lambda z, h: torch.where((z > h) & (z < 1), z, h * 2),
    "softmax": lambda z, h: F.softmax(z, -1) + h,
    "log_softmax": lambda z, h: F.log_softmax(z, -1) * 0.1 + h,
    "logsumexp": lambda z, h: h * 0.5 + torch.logsumexp(z, -1, keepdim=True),
    "mean": lambda z, h: h - z.mean(-1, keepdim=True),
    "sum without keepdim": lambda z, h: h * 0.1 + z.sum(-1).unsqueeze(-1),
    "var": lambda z, h: h * 0.1 + z.var(-1, keepdim=True),
    "std, biased": lambda z, h: h * 0.1 + z.std(-1, keepdim=True, correction=0),
    "amax": lambda z, h: h * 0.1 + z.amax(-1, keepdim=True),
    "layer_norm": lambda z, h: F.layer_norm(z + h, (5,)),
    "rms_norm": lambda z, h: F.rms_norm(z + h, (5,)),
    "normalize": lambda z, h: F.normalize(z + h, dim=-1),
    "norm": lambda z, h: h * 0.1 + z.norm(dim=-1, keepdim=True),
    "gelu": lambda z, h: F.gelu(z) + F.gelu(h, approximate="tanh"),
    # 0.5, since autograd rounds the constants of celu (and of hardswish) to float32.
    "elu, selu, celu": lambda z, h: F.elu(z) + F.selu(h) + F.celu(z, 0.5),
    "hard": lambda z, h: F.hardtanh(z) + F.relu6(h * 9),
    "soft": lambda z, h: F.softplus(z) + F.softsign(h) + F.logsigmoid(z),
    "leaky": lambda z, h: F.leaky_relu(z, 0.2) + F.mish(h),
    "lerp": lambda z, h: torch.lerp(h, z, torch.sigmoid(z)) + torch.lerp(h, z, 0.3),
    "addcmul": lambda z, h: torch.addcmul(h, z, z, value=0.5),
    "extrema": lambda z, h: torch.maximum(z, h) - torch.minimum(z, h) * 0.5,
    "circular": lambda z, h: torch.sin(z) + torch.cos(h) + torch.atan2(z, h + 9),
    "rounding": lambda z, h: h * 0.5 + torch.floor(z * 3) + torch.round(z),
    "rounding to a digit": lambda z, h: (
        h * z.round(decimals=1) + torch.round(9 * h, decimals=-1) + h * (z * 3).round_(decimals=2)
    ),
    "glu": lambda z, h: F.glu(torch.cat([z, h], -1), -1),
    "own temporary in place": lambda z, h: (z * 2).add_(h).tanh_(),
    "chunks": lambda z, h: torch.cat(torch.cat([z, h], -1).chunk(2, -1)[::-1], -1)[..., :5],
    "stack": lambda z, h: torch.stack([z, h], -1).sum(-1) * 0.5,
    "flatten": lambda z, h: torch.stack([z, h], 1).flatten(1)[:, 3:8],
    "split": lambda z, h: torch.cat([part * 2 for part in z.split([2, 3], -1)], -1) + h,
    "narrow": lambda z, h: z.narrow(-1, 1, 3).sum(-1, keepdim=True) + h,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_a_person_writes_compiles(
    name: str, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    function = SPELLINGS[name]
    layer = function_layer(lambda cell, z, h: function(z, h))
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x, h)


def test_a_wrong_derivative_is_noticed(
    monkeypatch: pytest.MonkeyPatch, function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    wrong = OPS["erf"]._replace(vjp=lambda g, y, x: (g * y,))
    monkeypatch.setitem(OPS, "erf", wrong)
    layer = function_layer(lambda cell, z, h: torch.erf(z) + h)
    with pytest.raises(AssertionError):
        same_by_program(layer, torch.randn(3, 2, 3, dtype=torch.float64))
