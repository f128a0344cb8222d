# pyright: reportPrivateUsage=false
# Caches and settings of Dynamo have no public names.
"""Layers by programs, and rows of the table by engines; and what their numbers have to be."""

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import engines, fallback, interpreter
from flexrnn.engine.compiler.ops import Op


@pytest.fixture
def by_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Everything runs by the interpreter if it can; yields `forward` and `backward` as they ran."""
    ran: list[str] = []

    class Noted:
        prepare = staticmethod(interpreter.prepare)
        saved_like = staticmethod(interpreter.saved_like)

        @staticmethod
        def forward(*args: Any, **kwargs: Any) -> Any:
            ran.append("forward")
            return interpreter.forward(*args, **kwargs)

        @staticmethod
        def backward(*args: Any, **kwargs: Any) -> Any:
            ran.append("backward")
            return interpreter.backward(*args, **kwargs)

    monkeypatch.setitem(engines.ENGINES, "interpreter", Noted())
    monkeypatch.setattr(engines, "AUTO", ("interpreter", "reference"))
    monkeypatch.setattr(fallback, "_warned", set())
    yield ran
    torch._dynamo.reset()


@pytest.fixture
def same_as_reference() -> Callable[..., None]:
    """Assert that a call, and its gradients by all parameters and inputs, are the reference's."""

    def check(call: Callable[..., Any], layer: nn.Module, *inputs: Tensor) -> None:
        found = []
        for engine in ("auto", "reference"):
            leaves = [*layer.parameters(), *(x for x in inputs if x.requires_grad)]
            with flexrnn.backend(engine):
                torch.manual_seed(1)
                outs = [o for o in tensors(call(*inputs)) if o.is_floating_point()]
                loss = torch.stack([(o * o.detach().cos()).sum() for o in outs]).sum()
                grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            found.append([*outs, *grads])
        assert_close(*found, rtol=1e-10, atol=1e-12)

    return check


def tensors(value: Any) -> list[Tensor]:
    """The tensors inside nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for part in value for t in tensors(part)]


ATTRIBUTES: dict[str, dict[str, float]] = {"clamp": {"low": -1.0, "high": 1.5}}
TRUTHS = {"and": (0, 1), "or": (0, 1), "not": (0,), "where": (0,)}  # operands that are truth values


def attributes(op: Op) -> dict[str, float]:
    return {**dict(op.attributes), **ATTRIBUTES.get(op.name, {})}


def special(dtype: torch.dtype) -> list[float]:
    """NaN, infinities, both zeros, denormal and huge numbers, ties, and where a row changes."""
    info = torch.finfo(dtype)
    positive = [0.0, info.smallest_normal * info.eps, info.smallest_normal, info.eps, 0.25, 0.5,
                1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 6.0, 20.0, 20.5, 88.5, 100.0, 104.0, 710.0, 745.5,
                2.0**24 + 2, 1 / info.eps, info.max, torch.inf]  # fmt: skip
    return [torch.nan, *positive, *(-p for p in positive)]


def points(op: Op, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Numbers of the row's domain, ten times as large, and every combination of special ones."""
    count, values = len(op.domain), special(dtype)
    if count == 3:
        values = values[:1] + values[1::4]
    combined = torch.tensor(list(itertools.product(values, repeat=count)), dtype=dtype)
    columns = []
    for k, (low, high) in enumerate(op.domain):
        drawn = torch.empty(4001, dtype=dtype).uniform_(low, high)
        wide = torch.empty(4001, dtype=dtype).uniform_(10 * low, 10 * high)
        column = torch.cat([drawn, wide, combined[:, k]])
        if k in TRUTHS.get(op.name, ()):
            column = torch.where(column.isnan(), column, (column > 0.5).to(dtype))
        columns.append(column)
    return tuple(columns)


def by_torch(op: Op, given: tuple[Tensor, ...]) -> Tensor:
    truths = TRUTHS.get(op.name, ())
    operands = [x != 0 if k in truths else x for k, x in enumerate(given)]
    return op.torch(*operands, **attributes(op)).to(given[0].dtype)


def _sigmoid(x: Any) -> Any:
    return np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x)))


def _softplus(x: Any) -> Any:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def _elu(x: Any, alpha: float = 1.0) -> Any:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)) * alpha)


def _gelu(x: Any) -> Any:
    half = torch.special.erfc(torch.from_numpy(-x.astype(np.float64)) * 0.5**0.5) * 0.5
    return x * half.numpy()


# On numbers with 64 bits of mantissa: where torch's own function in float64 is not the best there
# is. It loses digits (sigmoid, gelu, elu), fails where the result is huge (cosh) or an operand
# denormal (fmod), or is not the nearest number (sqrt). All others are torch's in float64.
GOLDEN: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
       "tanh", "sinh", "cosh", "sqrt", "fmod", "remainder")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "gelu": _gelu,
    "elu": _elu,
    "selu": lambda x: _elu(x, 1.6732632423543772) * 1.0507009873554805,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * (np.clip(x + 3, 0, 6) / 6),
}  # fmt: skip


def golden(op: Op, given: tuple[Tensor, ...]) -> np.ndarray:
    wide = [x.double().numpy().astype(np.longdouble) for x in given]
    with np.errstate(all="ignore"):
        if op.name in GOLDEN:
            return GOLDEN[op.name](*wide)
        return by_torch(op, tuple(x.double() for x in given)).numpy().astype(np.longdouble)


# Units in the last place; what is not here is the nearest number to the exact result.
ULPS = {
    "exp": 1.5, "exp2": 2, "expm1": 3, "log": 2, "log2": 3, "log10": 3, "log1p": 3, "sigmoid": 3,
    "log_sigmoid": 4, "softplus": 4, "tanh": 3, "sinh": 3, "cosh": 3, "asinh": 3, "acosh": 3,
    "atanh": 3, "erf": 3, "erfc": 5, "sin": 2, "cos": 2, "tan": 2, "asin": 2, "acos": 2, "atan": 3,
    "pow": 3, "atan2": 3, "hypot": 2, "logaddexp": 4, "remainder": 1, "lerp": 3, "rsqrt": 2,
    "elu": 3, "selu": 4, "gelu": 2, "gelu_tanh": 2, "silu": 4, "mish": 8, "hardsigmoid": 2,
    "hardswish": 3, "leaky_relu": 1,
}  # fmt: skip
# Whose digits are those of an operand, for that is what cancels in torch's formula and in ours.
CANCELS = {"lerp", "logaddexp", "gelu", "gelu_tanh", "hardsigmoid", "hardswish"}


# Which make a factor that has underflowed grow again.
SINKS = {"silu", "mish"}


def errors(name: str, got: Tensor, golden: np.ndarray, given: tuple[Tensor, ...]) -> np.ndarray:
    """Of each element, in units of the last place; infinite where only one is NaN."""
    dtype = got.numpy().dtype
    info = np.finfo(dtype)
    with np.errstate(all="ignore"):
        rounded = golden.astype(dtype)
        size = np.abs(rounded)
        if name in CANCELS:
            for x in given:
                size = np.maximum(size, np.abs(x.numpy()))
        if name in SINKS:
            size = np.maximum(size, info.tiny * np.abs(given[0].numpy()))
        size = np.clip(size, info.tiny, info.max * (1 - info.eps))
        off = np.abs(got.numpy().astype(np.longdouble) - golden) / np.spacing(size)
    same = (got.numpy() == rounded) | (np.isnan(got.numpy()) & np.isnan(rounded))
    off[same] = 0
    return np.where(np.isnan(off), np.inf, off)


def all_numbers(dtype: torch.dtype) -> Tensor:
    """Of every size and sign that there is, and where an exponential is neither 0 nor infinite."""
    info = torch.finfo(dtype)
    lowest, highest = {torch.float32: (-45, 38), torch.float64: (-320, 308)}[dtype]
    sizes = 10 ** torch.empty(40_000, dtype=torch.float64).uniform_(lowest, highest)
    sizes = sizes.to(dtype)
    top = -torch.log(torch.tensor(info.smallest_normal * info.eps, dtype=torch.float64)) + 2
    ranges = torch.empty(40_000, dtype=dtype).uniform_(-float(top), float(top))
    return torch.cat([sizes, -sizes, ranges, ranges / 10, ranges / 100])


# torch's own answer changes with the length of the tensor; that of gelu with the machine, too.
NO_SIGN = {"maximum", "minimum", "fmax", "fmin", "gelu"}


@pytest.fixture(scope="session")
def rows() -> SimpleNamespace:
    """For a test that compares an engine's rows with torch: numbers, results, and how far off."""
    return SimpleNamespace(
        TRUTHS=TRUTHS,
        ULPS=ULPS,
        NO_SIGN=NO_SIGN,
        attributes=attributes,
        points=points,
        all_numbers=all_numbers,
        by_torch=by_torch,
        golden=golden,
        errors=errors,
    )


def _results(
    layer: flexrnn.FlexRNN, engine: str, x: Tensor, hx: Any = None, **marks: Any
) -> dict[str, Tensor | None]:
    """What a layer returns, and every gradient of a weighted sum of it, by a named engine."""
    torch.manual_seed(1)  # of masks
    given = {"x": x, **{f"hx {k}": h for k, h in enumerate(tensors(hx))}}
    leaves = {**given, **dict(layer.named_parameters())}
    with flexrnn.backend(engine):
        outs = tensors(layer(x, hx, **marks))
    loss = torch.zeros((), dtype=x.dtype, device=x.device)
    for out in outs:  # weights of its own for every number, the same in both dtypes
        weights = torch.linspace(-1, 2, out.numel()).to(out).view_as(out)
        loss = loss + (out * weights).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named: dict[str, Tensor | None] = {f"result {k}": o.detach() for k, o in enumerate(outs)}
    return named | {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True)}


@pytest.fixture
def results() -> Callable[..., dict[str, Tensor | None]]:
    """What a layer returns, and every gradient of a weighted sum of it, by a named engine."""
    return _results


def _norms(name: str, ours: Tensor | None, theirs: Tensor | None, exact: Tensor | None) -> Tensor:
    """Norms: of the engine's error, of the reference's own, of the golden tensor."""
    if ours is None or theirs is None or exact is None:  # no influence: no gradient, or zeros
        assert not any(t is not None and t.any() for t in (ours, theirs, exact)), name
        return torch.zeros(3, dtype=torch.float64)
    assert ours.shape == exact.shape, name
    norms = ((ours - exact).norm(), (theirs - exact).norm(), exact.norm())
    return torch.stack([norm.double() for norm in norms]).cpu()


@pytest.fixture
def norms() -> Callable[..., Tensor]:
    """Norms of an engine's error, of the reference's own, and of the golden tensor."""
    return _norms


def _apart(tensor: Tensor) -> Tensor:
    """The same numbers, no row of which lies beside the next."""
    if not tensor.dim():
        return tensor
    return torch.cat([tensor, torch.ones_like(tensor)], -1)[..., : tensor.shape[-1]]


@pytest.fixture
def hand_over() -> Callable[..., None]:
    """Assert that gradients are the same however the saved tensors lie that hooks hand over."""

    def check(engine: str, layer: flexrnn.FlexRNN, x: Tensor, **marks: Any) -> None:
        x = x.requires_grad_()
        rows = (layer.num_layers * layer.num_directions, x.shape[1], layer.hidden_size)
        cells: Any = layer.cells
        hx: Any = tuple(x.new_empty(rows).normal_() for _ in cells[0].State._fields)
        found = []
        for unpack in (_apart, torch.clone):
            with (
                flexrnn.backend(engine),
                torch.autograd.graph.saved_tensors_hooks(torch.clone, unpack),
            ):
                output, _ = layer(x, hx if len(hx) > 1 else hx[0], **marks)
            found.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
        assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)

    return check
