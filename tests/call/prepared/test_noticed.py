# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""Nothing that changes between two calls, or is in force around one, is missed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import flexrnn
from flexrnn import FlexRNN

T, B, I, H = 6, 2, 3, 5


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.fixture
def known(
    taken: list[int], is_taken: Any, own_cell: Any
) -> tuple[FlexRNN, Callable[[], Any], list[int]]:
    """A layer, a step of it that is prepared, and the count of those."""
    layer = FlexRNN(own_cell, I, H, dtype=torch.float64)
    x, state = randn(B, I), layer.step(randn(B, I))[1]

    def step() -> Any:
        dtype: Any = layer.inner_bias_l0.dtype
        return layer.step(x.to(dtype), tuple(s.to(dtype) for s in state))

    step()
    assert is_taken(step)
    return layer, step, taken


Known = tuple[FlexRNN, Callable[[], Any], list[int]]


def test_parameters_count_as_they_are_at_the_call(
    known: Known, is_taken: Any, assert_as_ever: Any
) -> None:
    layer, step, _ = known
    first = step()[0]
    decay = layer.get_parameter("decay_l0")

    def changed() -> Tensor:
        assert_as_ever(layer, step)
        now = step()[0]
        assert not torch.equal(now, first)
        return now

    decay.add_(1)
    assert is_taken(step)
    added = changed()
    decay.data = decay.data.clone().mul_(2)
    assert is_taken(step)
    assert not torch.equal(changed(), added)
    layer.decay_l0 = nn.Parameter(randn(H))
    assert is_taken(step)
    changed()
    weight = layer.get_parameter("inner_weight_l0")
    weight.data = weight.data.t().contiguous().t()
    assert not is_taken(step)
    changed()
    layer.requires_grad_(False)
    assert not is_taken(step)
    changed()
    layer.float()
    assert step()[0].dtype == torch.float32
    assert_as_ever(layer, step)
    layer.double()
    changed()
    own = {name: p.detach() + 1 for name, p in layer.named_parameters()}
    x = randn(T, B, I)
    layer(x)
    plain = layer(x)[0]
    other = torch.func.functional_call(layer, own, (x,))[0]
    assert not torch.equal(other, plain)
    assert torch.equal(layer(x)[0], plain)


def test_what_acts_on_parameters_is_noticed(
    known: Known, is_taken: Any, assert_as_ever: Any
) -> None:
    layer, step, _ = known
    plain = step()[0]
    parametrize.register_parametrization(layer, "decay_l0", nn.Tanh())
    assert not is_taken(step)
    assert_as_ever(layer, step)
    parametrize.remove_parametrizations(layer, "decay_l0", leave_parametrized=False)
    assert torch.equal(step()[0], plain)
    parametrizations.weight_norm(layer, "inner_weight_l0")
    layer.parametrizations.inner_weight_l0.original0.mul_(2)  # pyright: ignore
    assert not is_taken(step)
    assert not torch.equal(step()[0], plain)


def test_what_is_in_force_around_a_call_is_noticed(
    known: Known, is_taken: Any, assert_as_ever: Any
) -> None:
    layer, step, taken = known

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            return func(*args, **(kwargs or {}))

    around: list[AbstractContextManager[Any]] = [
        flexrnn.backend("reference"),
        flexrnn.backend("interpreter"),
        flexrnn.record(layer),
        torch.enable_grad(),
        torch.inference_mode(),
        torch.autocast("cpu"),
        forward_ad.dual_level(),
        FlopCounterMode(display=False),
        Seen(),
        torch.device("cpu"),
    ]
    for mode in around:
        before = len(taken)
        with mode:
            step()
        assert len(taken) == before, mode
        step()  # a call of another kind may have taken the place
        assert is_taken(step)
    with flexrnn.backend("auto"):
        assert not is_taken(step)
        assert is_taken(step)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert not is_taken(step)
    finally:
        torch.set_default_dtype(before)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert not is_taken(step)
        assert_as_ever(layer, step)
    finally:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        assert_as_ever(layer, step)
        assert step()[0].is_inference()
    assert not step()[0].is_inference()


def test_autocast_casts(taken: list[int], is_taken: Any) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    layer(x)
    assert is_taken(lambda: layer(x))
    with flexrnn.backend("auto"):
        layer(x)
        with torch.autocast("cpu"):
            assert layer(x)[0].dtype == torch.bfloat16
        assert layer(x)[0].dtype == torch.float32


def test_to_what_autocast_casts_is_noticed() -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    for _ in range(2):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            enabled = dtype != torch.float32
            for _ in range(6):
                with torch.autocast("cpu", dtype if enabled else None, enabled=enabled):
                    assert {t.dtype for t in layer(x)} == {dtype}
                    assert not enabled or torch.mm(x[0], x[0].T).dtype == dtype


def test_what_a_layer_and_its_cells_hold_counts(
    known: Known, is_taken: Any, assert_as_ever: Any, own_cell: Any
) -> None:
    layer, step, _ = known
    plain = step()[0]
    cell: Any = layer.cells[0]
    layer.eval()
    assert not is_taken(step)
    assert torch.equal(step()[0], plain)
    layer.train()
    assert torch.equal(step()[0], plain)
    for name, value in (("zoneout", 0.5), ("recurrent_dropout", 0.5), ("weight_drop", 0.5)):
        layer.eval()
        step()
        assert is_taken(step)
        before = getattr(layer, name)
        setattr(layer, name, value)
        assert not is_taken(step)
        setattr(layer, name, before)
        layer.train()
    cell.scale = 3.0
    assert not torch.equal(step()[0], plain)
    assert_as_ever(layer, step)
    del cell.scale
    assert torch.equal(step()[0], plain)
    cell.register_buffer("more", randn(H))
    assert not is_taken(step)
    del cell.more
    assert is_taken(step)
    other = own_cell(I, H, dtype=torch.float64)  # with parameters of its own
    layer.cells[0] = other
    assert not is_taken(step)
    layer.cells[0] = cell
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        seen: list[int] = []
        handle = register(lambda *_, seen=seen: seen.append(1))
        step()
        assert seen
        handle.remove()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    step()
    handle.remove()
    assert seen
    assert is_taken(step)


def test_a_method_in_the_place_of_another_counts(
    known: Known, monkeypatch: pytest.MonkeyPatch, own_cell: Any
) -> None:
    layer, step, _ = known
    plain, method = step()[0], own_cell.step

    def doubled(self: Any, x: Any, state: Any) -> Any:
        return self.State(*(2 * field for field in method(self, x, state)))

    with monkeypatch.context() as patch:
        patch.setattr(own_cell.__base__, "step", doubled)
        assert_close(step()[0], 2 * plain)
    assert torch.equal(step()[0], plain)
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", lambda x, hx: (x + 100, hx))
        assert (step()[0] > 50).all()
    with monkeypatch.context() as patch:
        patch.setattr(type(layer), "forward", lambda self, x, hx: (x + 100, hx))
        with flexrnn.backend("reference"):
            step()
    assert torch.equal(step()[0], plain)
