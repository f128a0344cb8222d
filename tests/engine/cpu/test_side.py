"""Compilers run side by side, or one after another where no thread starts."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn.engine.cpu.build.side import side_by_side


class Leaky(flexrnn.Cell):
    """A cell whose loop no other test has compiled."""

    class State(NamedTuple):
        h: Tensor

    def __init__(self, input_size: int, hidden_size: int, **options: Any) -> None:
        super().__init__(input_size, hidden_size)
        self.W = torch.nn.Linear(input_size, hidden_size, **options)

    def step(self, x: Tensor, state: State) -> State:
        return self.State(0.8125 * state.h + torch.tanh(self.W(x)) * 0.15625)


def refused(self: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_each_returns_what_it_says_in_order() -> None:
    together = threading.Barrier(3)

    def said(number: int) -> Callable[[], int]:
        return lambda: (together.wait(30), number)[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        assert side_by_side(said(1), [said(2), said(3)]) == (1, [2, 3])


def test_nothing_runs_any_more_once_one_has_failed() -> None:
    ended = threading.Event()

    def own() -> NoReturn:
        raise ValueError("own")

    def other() -> None:
        threading.Event().wait(0.2)
        ended.set()

    with pytest.raises(ValueError, match="own"):
        side_by_side(own, [other])
    assert ended.is_set()


def test_a_layer_is_trained_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = flexrnn.FlexRNN(Leaky, 3, 5), torch.randn(7, 2, 3, requires_grad=True)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with flexrnn.backend("cpu"):
        y, _ = layer(x)
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    with flexrnn.backend("reference"):
        y, _ = layer(x)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(ours, expected)
