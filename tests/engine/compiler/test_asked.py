"""What a step asks of torch: what is in force, how something lies, what size a batch has."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import (
    Tensor,
    are_deterministic_algorithms_enabled,
    initial_seed,
    is_anomaly_enabled,
)
from torch import get_num_threads as threads
from torch.testing import assert_close

import flexrnn
from flexrnn.engine.compiler.spelt.asked import imported


def weighed(question: Callable[..., Any]) -> Callable[..., Tensor]:
    """A step whose result tells what the answer was."""
    return lambda c, z, h: torch.tanh(z + h * (2.0 if question(h) else 0.5))


OF_TORCH: dict[str, Callable[..., Any]] = {
    "get_num_threads": lambda h: torch.get_num_threads() == 2,
    "are_deterministic_algorithms_enabled": lambda h: torch.are_deterministic_algorithms_enabled(),
    "get_float32_matmul_precision": lambda h: torch.get_float32_matmul_precision() == "high",
    "is_anomaly_enabled": lambda h: torch.is_anomaly_enabled(),
    "is_autocast_cache_enabled": lambda h: torch.is_autocast_cache_enabled(),
    "initial_seed": lambda h: torch.initial_seed() == 5,
    "is_inference": lambda h: h.is_inference(),
    "storage_offset": lambda h: h.storage_offset() == 0,
    "_is_view": lambda h: h._is_view(),
    "_base": lambda h: h._base is None,
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_what_no_program_depends_on_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(weighed(OF_TORCH[name]), f"^{name} cannot be compiled.*no part of a|^{name} .*the same")


IMPORTED: dict[str, Callable[..., Any]] = {
    "get_num_threads": lambda h: threads() == 2,
    "are_deterministic_algorithms_enabled": lambda h: are_deterministic_algorithms_enabled(),
    "is_anomaly_enabled": lambda h: is_anomaly_enabled(),
    "initial_seed": lambda h: initial_seed() == 5,
}


@pytest.mark.parametrize("name", IMPORTED)
def test_so_is_what_is_imported_by_name(name: str, refuses: Callable[..., None]) -> None:
    before = dict(globals())
    refuses(weighed(IMPORTED[name]), f"^{name} cannot be compiled.*the same")
    assert all(globals()[name] is value for name, value in before.items())
    assert threads is torch.get_num_threads


OF_AUTOCAST: dict[str, Callable[..., Any]] = {
    "is_autocast_enabled": lambda h: torch.is_autocast_enabled("cpu"),
    "get_autocast_dtype": lambda h: torch.get_autocast_dtype("cpu") == torch.float16,
}


@pytest.mark.parametrize("name", OF_AUTOCAST)
def test_autocast_is_asked_for_where_it_casts_nothing(name: str, function_layer: Any) -> None:
    layer = function_layer(weighed(OF_AUTOCAST[name]), dtype=torch.float32)
    x = torch.randn(4, 2, 3)
    with flexrnn.backend("cpu"):
        layer(x)
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(RuntimeError, match=f"{name} cannot be compiled: under autocast"),
        ):
            layer(x)
        with pytest.raises(RuntimeError, match=f"{name} cannot be compiled: under autocast"):
            layer.bfloat16()(x.bfloat16())


@contextmanager
def on_cards() -> Iterator[None]:
    """Autocast for cards, whether there is one or not."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


FOUND_AGAIN: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "autocast": (
        lambda h: torch.is_autocast_enabled("cpu"),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ),
    "another device's": (lambda h: torch.is_autocast_enabled(), on_cards),
    "gradients": (lambda h: torch.is_grad_enabled(), torch.no_grad),
    "inference mode": (lambda h: torch.is_inference_mode_enabled(), torch.inference_mode),
}


@pytest.mark.parametrize("name", FOUND_AGAIN)
def test_an_answer_that_changes_makes_another_program(name: str, function_layer: Any) -> None:
    question, switch = FOUND_AGAIN[name]
    layer, x = function_layer(weighed(question)), torch.randn(4, 2, 3, dtype=torch.float64)
    for _ in range(4):
        for inside in (torch.enable_grad, switch):
            with inside():
                with flexrnn.backend("cpu"):
                    output = layer(x)[0]
                with flexrnn.backend("reference"):
                    assert_close(output, layer(x)[0], rtol=1e-12, atol=1e-12)


class Noting(flexrnn.cells.RNNCell):
    """Notes sizes where it is told."""

    def __init__(self, *args: Any, how: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.how, self.log, self.seen, self.size = how, list[Any](), dict[Any, Any](), None

    def step(self, x: Tensor, state: Any) -> Any:
        if self.how == "list":
            self.log.append(x.shape[0])
        elif self.how == "key":
            self.seen[x.shape] = 1
        elif self.how == "value":
            self.seen["batch"] = x.shape
        else:
            self.size: Any = x.shape[0], x.shape[0] > 1, x.shape[0] / 2
        return super().step(x, state)


@pytest.mark.filterwarnings("ignore:Noting sets the attribute", "ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize("how", ["list", "key", "value", "attribute"])
def test_a_size_that_is_noted_is_no_part_of_the_result(how: str) -> None:
    torch.manual_seed(0)
    layer, x = flexrnn.FlexRNN(Noting, 3, 5, how=how), torch.randn(4, 2, 3)
    for _ in range(3):
        output = layer(x)[0]
        with flexrnn.backend("reference"):
            assert_close(output, layer(x)[0])
        if how == "attribute":
            with flexrnn.backend("cpu"):
                assert_close(output, layer(x)[0])


def test_a_set_of_sizes_is_refused(refuses: Callable[..., None]) -> None:
    refuses(lambda c, z, h: h + z * len({h.shape}), "no place in a set or a dict")


class Late(ModuleType):
    """A module that is loaded when it is first asked, as `importlib.util.LazyLoader` makes one."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)


def test_no_module_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = flexrnn.FlexRNN(flexrnn.cells.RNNCell, 3, 7), torch.randn(4, 2, 3)
    with monkeypatch.context() as patch, flexrnn.backend("interpreter"):
        patch.setitem(sys.modules, "late", Late("late"))
        output = layer(x)[0]
    with flexrnn.backend("reference"):
        assert_close(output, layer(x)[0])


def test_a_module_may_be_imported_while_all_are_looked_through() -> None:
    """By what is collected then, as by a warning of a file that was left open."""
    made: list[str] = []

    class Gone:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            made.append(f"made_{len(made)}")
            sys.modules[made[-1]] = ModuleType(made[-1])

    before = gc.get_threshold()
    try:
        for threshold in range(100, 1_000, 20):
            gc.disable()
            Gone()
            gc.set_threshold(threshold)
            gc.enable()
            assert imported([(torch, "get_num_threads", None)]) is not None
    finally:
        gc.set_threshold(*before)
        gc.enable()
        gc.collect()
        for name in made:
            del sys.modules[name]
    assert made
