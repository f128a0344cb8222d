"""Tensors of a cell that it reaches by lists, dicts and functions, as liquid cells do."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState
from tests import test_references as references
from tests.test_references import (
    H,
    assert_is_the_loop,
    assert_stays_the_loop,
    by_loop,
    learned,
    pair,
)

PLACES = ("auto", "reference")


class Base(references.Base):
    """Two factors by what `set_up` makes of tensors, and one parameter more."""

    held: Any

    def __init__(self, input_size: int, hidden_size: int, **options: Any):
        super().__init__(input_size, hidden_size, **options)
        self.other = nn.Parameter(torch.rand_like(self.scale))

    def factors(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        scale, shift = self.factors()
        new = torch.tanh(self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(new * scale + shift + 0.1 * self.other)


class ByDict(Base):
    def set_up(self, options: dict[str, Any]) -> None:
        self.held = {"scale": self.scale, "more": {"shift": self.shift}}

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held["scale"], self.held["more"]["shift"]


class ByList(Base):
    def set_up(self, options: dict[str, Any]) -> None:
        self.held = [self.scale, (self.shift, 2.0)]

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held[0] * self.held[1][1], self.held[1][0]


class ByFunction(Base):
    """A closure, a default, `functools.partial`."""

    def set_up(self, options: dict[str, Any]) -> None:
        scale = self.scale
        self.held = lambda by=self.shift: (scale, by)
        self.partly = functools.partial(torch.add, self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        scale, shift = self.held()
        return self.partly(scale), shift


class Inner(nn.Module):
    """A module with a list of its own parameters."""

    def __init__(self, size: int, dtype: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size, dtype=dtype))
        self.all = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.all[0]


class OfAModule(Base):
    def set_up(self, options: dict[str, Any]) -> None:
        self.gain = Inner(len(self.scale), self.scale.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.gain(self.scale), self.shift


class WithAModule(Base):
    """A dict that leads to a module and to a tensor."""

    def set_up(self, options: dict[str, Any]) -> None:
        self.gain = Inner(len(self.scale), self.scale.dtype)
        self.held = {"gain": self.gain, "scale": self.scale}

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held["gain"](self.held["scale"]), self.shift


KINDS = [ByDict, ByList, ByFunction, OfAModule, WithAModule]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
def test_they_are_compiled(kind: Any) -> None:
    layer, cell, x = pair(kind)
    (step,) = flexrnn.explain(layer, x).steps
    assert (step.engine, step.refusal) == ("cpu", "")
    for backend in PLACES:
        with flexrnn.backend(backend):
            assert_stays_the_loop(layer, cell, x)


@kinds
def test_so_they_are_where_nothing_is_differentiated(kind: Any) -> None:
    layer, cell, x = pair(kind)
    with torch.no_grad():
        for _ in range(3):  # a call that comes again is prepared, if it can be
            assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)
            for tensor in (*layer.parameters(), *cell.parameters()):
                tensor.mul_(0.9)


@kinds
def test_so_they_are_in_layers_that_are_moved_copied_and_loaded(kind: Any) -> None:
    layer, cell, x = pair(kind)
    if kind is ByFunction:  # Python copies no function, and pickles none
        return
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert flexrnn.explain(made, x).engine == "cpu"
        assert_is_the_loop(made, cell, x)


def test_where_one_leads_to_is_looked_at_anew() -> None:
    """A program is another one for it; and so is what a call has prepared for the next."""
    layer, cell, x = pair(ByDict)
    own: Any = layer.cells[0]
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            for name in ("other", "scale", "other"):
                own.held["scale"] = getattr(layer, f"{name}_l0")
                cell.held["scale"] = getattr(cell, name)
                for _ in range(3):
                    assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)
    assert_is_the_loop(layer, cell, x)


def test_which_of_several_is_registered_matters() -> None:
    """Where one of two becomes a stranger, it is a tensor more."""
    layer, cell, x = pair(ByList)
    assert_is_the_loop(layer, cell, x)
    stranger = torch.rand(H, dtype=torch.float64)
    own: Any = layer.cells[0]
    for one in (own, cell):
        one.held[0] = stranger
    assert flexrnn.explain(layer, x).engine == "cpu"
    for backend in PLACES:
        with flexrnn.backend(backend):
            assert_is_the_loop(layer, cell, x)


def test_a_tensor_that_is_replaced_leaves_the_list_behind_as_in_any_module() -> None:
    layer, cell, x = pair(ByList)
    new = {"scale_l0": torch.rand(H, dtype=torch.float64)}
    expected = by_loop(cell, x)  # which finds the old one in its list
    for backend in PLACES:
        with flexrnn.backend(backend):
            found = functional_call(layer, new, (x,))[0]
        assert_close(found, expected, rtol=1e-12, atol=1e-13)
        own: Any = layer.cells[0]
        (gradient,) = torch.autograd.grad(found.square().sum(), own.held[0])
        (right,) = torch.autograd.grad(by_loop(cell, x).square().sum(), cell.held[0])
        assert_close(gradient, right, rtol=1e-11, atol=1e-12)


def test_one_that_does_not_learn() -> None:
    layer, cell, x = pair(ByDict)
    layer.scale_l0.requires_grad_(False)
    cell.scale.requires_grad_(False)
    outputs = layer(x)[0], by_loop(cell, x)
    found = [
        torch.autograd.grad(o.square().sum(), [p for p in m.parameters() if p.requires_grad])
        for o, m in zip(outputs, (layer, cell), strict=True)
    ]
    assert_close(*found, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
def test_under_torch_compile_the_loop_runs_with_right_gradients() -> None:
    """Dynamo knows no identities, so no program there knows which tensor is which."""
    layer, cell, x = pair(ByDict)
    layer.forward = torch.compile(layer.forward, backend="aot_eager")
    assert_is_the_loop(layer, cell, x)
    torch.compiler.reset()


def test_two_layers_have_their_own() -> None:
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(ByDict, H, H, num_layers=2, dtype=torch.float64)
    x = torch.randn(4, 2, H, dtype=torch.float64)
    outputs = []
    for backend in PLACES:
        with flexrnn.backend(backend):
            outputs.append(layer(x)[0])
    assert_close(*outputs, rtol=1e-12, atol=1e-13)
    assert_close(*(learned(layer, output) for output in outputs), rtol=1e-11, atol=1e-12)
