"""Plain calls with complex parameters and states on the short way, with the long one's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN
from flexrnn.call import quick
from flexrnn.engine import replay

from ..lru import LRUCell, LRUState, RealCell, UnitaryCell

T, B, I, H = 5, 4, 3, 2


CELLS = [LRUCell, UnitaryCell, RealCell]


@pytest.fixture(params=CELLS, ids=lambda cell: cell.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., FlexRNN]:
    """A layer of each cell in turn in float64."""

    def made(**options: Any) -> FlexRNN:
        return FlexRNN(request.param, I, H, **{"dtype": torch.float64, **options})

    return made


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in tensors(part)]


def outcome(layer: FlexRNN, x: Tensor, hx: Any) -> list[Tensor]:
    outs = tensors(layer(x, hx))
    if not torch.is_grad_enabled():
        return outs
    loss = torch.stack([(o * (1 + 2j)).real.sum() + o.abs().square().sum() for o in outs]).sum()
    leaves = [t for t in (x, *tensors(() if hx is None else hx), *layer.parameters())
              if t.requires_grad]  # fmt: skip
    return [*outs, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "num_layers": 2},
    "learned": {"learn_initial_state": True},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("given", [False, True], ids=["", "with a state"])
def test_it_is_taken_with_the_numbers_of_the_long_one(
    make: Callable[..., FlexRNN], name: str, grad: bool, given: bool, long: Callable[..., Any]
) -> None:
    layer = make(**OPTIONS[name])
    for parameter in (p for n, p in layer.named_parameters() if n.startswith("initial")):
        torch.nn.init.normal_(torch.view_as_real(parameter.detach())
                              if parameter.is_complex() else parameter)  # fmt: skip
    with torch.set_grad_enabled(grad):
        for _ in range(6):  # remembered, prepared and written down in the end
            x = randn(B, T, I) if layer.batch_first else randn(T, B, I)
            x.requires_grad_(grad)
            hx: Any = None
            if given:
                state = layer(x.detach())[1]
                fields = [torch.randn_like(f).requires_grad_(grad) for f in tensors(state)]
                hx = fields[0] if isinstance(state, Tensor) else tuple(fields)
            assert quick.call(layer, x, hx) is not None
            found = outcome(layer, x, hx)
            expected = long(lambda x=x, hx=hx: outcome(layer, x, hx))
            assert [t.dtype for t in found] == [t.dtype for t in expected]
            assert_close(found, expected, rtol=1e-12, atol=1e-12)
            assert type(layer(x, hx)[1]) is type(long(lambda x=x, hx=hx: layer(x, hx))[1])


def test_a_state_that_is_a_conjugate_by_a_mark() -> None:
    layer, x = FlexRNN(UnitaryCell, I, H, dtype=torch.float64), randn(T, B, I)
    z = torch.complex(randn(1, B, H), randn(1, B, H))
    with torch.no_grad():
        for _ in range(4):
            for state in (z, z.conj(), torch.view_as_real(z).neg().contiguous()):
                state = state if state.is_complex() else torch.view_as_complex(state)
                expected = layer(x, state.resolve_conj().clone())
                assert_close(layer(x, state), expected, rtol=1e-13, atol=1e-13)


def test_a_single_step_is_the_references(make: Callable[..., FlexRNN]) -> None:
    """Where nobody names an engine; a real state is compiled as ever."""
    layer, x = make(num_layers=2), randn(B, I)
    reset = torch.tensor([True, False, True, False])
    with torch.no_grad():
        state = layer.step(x)[1]
        is_real = not tensors(state)[-1].is_complex()
        assert (quick.step(layer, x, state) is not None) == is_real
        expected = layer.step(x, state, reset=reset)
        with flexrnn.backend("cpu"):
            for _ in range(3):
                found = quick.step(layer, x, state, reset)
                assert found is not None
                assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_left_to_the_long_way() -> None:
    layer, x = FlexRNN(LRUCell, I, H), torch.randn(T, B, I)
    y, z = torch.zeros(1, B, H), torch.zeros(1, B, H, dtype=torch.complex64)
    for _ in range(3):
        assert quick.call(layer, x, (y, z)) is not None
        assert quick.call(layer, x, (y, y)) is None
        assert quick.call(layer, x, (z, z)) is None
        assert quick.call(layer, x + 0j, (y, z)) is None
        assert quick.call(layer, x.double(), None) is None
    real = flexrnn.GRU(I, H)
    assert quick.call(real, x, y) is not None
    assert quick.call(real, x, z) is None


def test_complex_parameters_of_another_precision_go_the_long_way() -> None:
    layer = FlexRNN(RealCell, I, H)
    assert quick.call(layer, randn(T, B, I), None) is None
    assert quick.call(layer, torch.randn(T, B, I), None) is not None


class MixedCell(LRUCell):
    """Its first field is the complex one."""

    State = LRUState
    complex_fields = ("y",)

    def step(self, x: Tensor, state: Any) -> Any:
        y = 0.5j * state.y + x.to(self.B.dtype) @ self.B.T
        return LRUState(y, 0.5 * state.z + y.abs())


def test_a_complex_output_leaves_real_fields_real(long: Callable[..., Any]) -> None:
    layer = FlexRNN(MixedCell, I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()
    for _ in range(6):
        assert quick.call(layer, x, None) is not None
        found = outcome(layer, x, None)
        expected = long(lambda: outcome(layer, x, None))
        assert [t.dtype for t in found] == [t.dtype for t in expected]
        assert found[2].dtype == torch.float64
        assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_loops_of_calls_that_come_again_are_written_down(
    make: Callable[..., FlexRNN], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, found = make(), list[bool]()
    written = replay.written

    def noted(*args: Any) -> Any:
        result, again = written(*args)
        found.append(again is not None)
        return result, again

    monkeypatch.setattr("flexrnn.engine.again.written", noted)
    for _ in range(5):
        layer(randn(T, B, I))[0].abs().sum().backward()
    assert found == [True, True]  # forward and backward
