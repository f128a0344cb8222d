"""Tensors that no module has by a name: those in a list, a dict or a namedtuple of a cell."""

import copy
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.bind import tensors_of
from flexrnn.cells import HiddenState
from tests import test_references as references
from tests.test_references import H, assert_is_the_loop, by_loop, pair

BACKENDS = ("cpu", "auto", "reference")


class Parameters(NamedTuple):
    """As packages of spiking networks have them, in float32 and without axes."""

    tau: Tensor = torch.tensor(0.75)
    threshold: Tensor = torch.tensor(0.25)
    method: str = "tanh"


class Base(references.Base):
    """`factors` are a matrix and a number."""

    held: Any

    def set_up(self, options: dict[str, Any]) -> None:
        self.held = self.made(torch.linspace(-1, 1, H * H).reshape(H, H).to(**options))

    def made(self, matrix: Tensor) -> Any:
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        matrix, number = self.factors()
        return HiddenState(self.body(torch.cat([x, state.h], -1)) @ matrix * number)


class ByList(Base):
    def made(self, matrix: Tensor) -> Any:
        return [matrix, (matrix.sum() + 0.5,)]

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held[0], self.held[1][0]


class ByDict(Base):
    def made(self, matrix: Tensor) -> Any:
        return {"matrix": matrix, 1: {"a b": torch.tensor(0.5)}}

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held["matrix"], self.held[1]["a b"]


class ByTuple(Base):
    def made(self, matrix: Tensor) -> Any:
        return Parameters(), deque([matrix])

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held[1][0], self.held[0].tau - self.held[0].threshold


class ByFunction(Base):
    def made(self, matrix: Tensor) -> Any:
        number = torch.tensor(0.5)
        return lambda given=matrix: (given, number)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.held()


KINDS = [ByList, ByDict, ByTuple, ByFunction]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
def test_they_are_tensors_of_the_cell(kind: Any) -> None:
    layer, cell, x = pair(kind)
    (step,) = flexrnn.explain(layer, x).steps
    assert (step.engine, step.refusal) == ("cpu", "")
    for backend in BACKENDS:
        with flexrnn.backend(backend):
            assert_is_the_loop(layer, cell, x)
    with torch.no_grad():
        for _ in range(5):
            assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)


def test_their_names_say_where_they_lie() -> None:
    found: dict[Any, list[str]] = {}
    for kind in KINDS:
        layer: Any = pair(kind)[0]
        found[kind] = [*tensors_of(next(layer._bound_cells()))][4:]
    assert found[ByList] == ["held.0", "held.1.0"]
    assert found[ByDict] == ["held.matrix", "held.1.0"]
    assert found[ByTuple] == ["held.0.tau", "held.0.threshold", "held.1.0"]
    assert found[ByFunction] == ["held.0.0", "held.1"]


CHANGES: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "in place": (ByList, lambda cell: cell.held[0].mul_(0.5)),
    "another in a list": (ByList, lambda cell: cell.held.__setitem__(0, cell.held[0] * 0.5)),
    "another shape": (
        ByList,
        lambda cell: cell.held.__setitem__(1, (torch.linspace(0.1, 1, H, dtype=torch.float64),)),
    ),
    "another in a dict": (ByDict, lambda cell: cell.held.update(matrix=cell.held["matrix"] * 2)),
    "another dtype": (
        ByDict,
        lambda cell: cell.held[1].update({"a b": torch.tensor(0.1, dtype=torch.float64)}),
    ),
    "another tuple": (
        ByTuple,
        lambda cell: setattr(
            cell, "held", (Parameters()._replace(tau=torch.tensor(0.5)), cell.held[1])
        ),
    ),
    "two change places": (
        ByTuple,
        lambda cell: setattr(
            cell, "held", (Parameters(Parameters().threshold, Parameters().tau), cell.held[1])
        ),
    ),
    "one that is registered": (
        ByList,
        lambda cell: cell.held.__setitem__(1, (cell.shift,)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    kind, changed = CHANGES[change]
    layer, cell, x = pair(kind)
    for _ in range(4):
        assert_is_the_loop(layer, cell, x)
    with torch.no_grad():
        before = [layer(x)[0] for _ in range(3)]
        for one in (layer.cells[0], cell):
            changed(one)
        assert not torch.equal(layer(x)[0], before[-1])
        assert_close(layer(x)[0], by_loop(cell, x), rtol=1e-12, atol=1e-13)
    for backend in BACKENDS:
        with flexrnn.backend(backend):
            assert_is_the_loop(layer, cell, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_that_learns_gets_its_gradient(backend: str) -> None:
    layer, cell, x = pair(ByList)
    own: Any = layer.cells[0]
    for one in (own, cell):
        one.held[0].requires_grad_()
    with flexrnn.backend(backend):
        output, expected = layer(x)[0], by_loop(cell, x)
    (found,) = torch.autograd.grad(output.square().sum(), own.held[0])
    (right,) = torch.autograd.grad(expected.square().sum(), cell.held[0])
    assert_close(found, right, rtol=1e-11, atol=1e-12)


def test_nobodys_list_is_another_after_a_call() -> None:
    layer, _, x = pair(ByList)
    own: Any = layer.cells[0]
    held, parts = own.held, [*own.held]
    layer(x)[0].sum().backward()
    assert own.held is held
    assert all(a is b for a, b in zip(held, parts, strict=True))


def test_so_they_are_in_layers_that_are_copied_and_loaded() -> None:
    layer, cell, x = pair(ByTuple)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert flexrnn.explain(made, x).engine == "cpu"
        assert_is_the_loop(made, cell, x)


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize("kind", [ByList, ByTuple], ids=lambda kind: kind.__name__)
def test_under_torch_compile_the_loop_runs(kind: Any) -> None:
    layer, cell, x = pair(kind)
    layer.forward = torch.compile(layer.forward, backend="aot_eager")
    assert_is_the_loop(layer, cell, x)
    torch.compiler.reset()


class Written(ByList):
    """A step that puts another tensor into its list."""

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        new = super().step(x, state)
        self.held[0] = new.h.detach()
        return new


def test_a_step_that_puts_another_into_a_list_is_refused() -> None:
    layer, _, x = pair(Written)
    told = "Written.step reads the attribute held before it sets it"
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=told):
        layer(x)


class Made(ByList):
    """A step that makes its list anew before it reads it."""

    def set_up(self, options: dict[str, Any]) -> None:
        super().set_up(options)
        self.made_anew = [torch.zeros(1)]

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.made_anew = [2 * x, state.h]
        return HiddenState(super().step(x, state).h + self.made_anew[1])


@pytest.mark.filterwarnings("ignore:Made sets the attribute made_anew of a copy")
def test_a_step_may_make_a_list_anew() -> None:
    layer, cell, x = pair(Made)
    for backend in ("cpu", "reference"):
        with flexrnn.backend(backend):
            assert_is_the_loop(layer, cell, x)


class Sparse(ByList):
    """One that no program can be given, and that is not read."""

    def set_up(self, options: dict[str, Any]) -> None:
        super().set_up(options)
        self.others = [torch.eye(2).to_sparse()]


def test_what_is_not_dense_and_not_read_is_no_obstacle() -> None:
    layer, cell, x = pair(Sparse)
    assert flexrnn.explain(layer, x).engine == "cpu"
    assert_is_the_loop(layer, cell, x)


@pytest.mark.parametrize("option", ["recurrent_dropout", "zoneout"])
def test_they_are_there_where_a_layer_adds_to_the_step(option: str) -> None:
    class Dropping(ByList):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            return super().step(x, HiddenState(self.drop_recurrent(state.h)))

    options: Any = {option: 0.5, "dtype": torch.float64}
    layer = flexrnn.FlexRNN(Dropping, 3, H, **options)
    x, found = torch.randn(5, 2, 3, dtype=torch.float64), []
    for backend in BACKENDS:
        torch.manual_seed(3)
        with flexrnn.backend(backend):
            found.append(layer(x, lengths=torch.tensor([5, 3]))[0])
    assert_close(found[0], found[2], rtol=1e-12, atol=1e-13)
    assert_close(found[1], found[2], rtol=1e-12, atol=1e-13)
