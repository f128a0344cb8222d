# pyright: reportPrivateUsage=false
"""Calls that are prepared at once, and what tells whether one was."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN
from flexrnn.call import prepared, quick, way

Call = Callable[[], Any]


class Everything(dict[Any, None]):
    def __contains__(self, key: object) -> bool:
        return True


class Seen(way.Memory):
    """Of a layer that has seen every kind of call once, so that the next is prepared."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = Everything()


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "Memory", Seen)


@pytest.fixture(autouse=True)
def without_derivatives() -> Iterator[None]:
    with torch.no_grad(), flexrnn.backend("cpu"):
        yield


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call that had been prepared."""
    counted: list[int] = []
    call = prepared.Inference.__call__

    def noted(self: Any, *arguments: Any) -> Any:
        counted.append(1)
        return call(self, *arguments)

    monkeypatch.setattr(prepared.Inference, "__call__", noted)
    return counted


@pytest.fixture
def own_cell(own_cell: Any) -> Any:
    """A cell whose methods are another's."""

    class Heir(own_cell):
        pass

    return Heir


@pytest.fixture
def is_taken(taken: list[int]) -> Callable[[Call], bool]:
    """Whether a call had been prepared."""

    def called(call: Call) -> bool:
        before = len(taken)
        call()
        return len(taken) > before

    return called


def _flat(result: Any) -> list[Tensor]:
    output, state = result
    return [output, *((state,) if isinstance(state, Tensor) else state)]


@pytest.fixture
def flat() -> Callable[[Any], list[Tensor]]:
    """The tensors of a result."""
    return _flat


def _unprepared(layer: FlexRNN, call: Call) -> Any:
    if (memory := quick._memories.get(layer)) is not None:
        memory.prepared.clear()
    return call()


@pytest.fixture
def unprepared() -> Callable[[FlexRNN, Call], Any]:
    """A call that meets nothing that was prepared."""
    return _unprepared


@pytest.fixture
def assert_as_ever() -> Callable[[FlexRNN, Call], None]:
    """Assert that a call which meets what others have left gives the bits of one without them."""

    def check(layer: FlexRNN, call: Call) -> None:
        found = call()
        expected = _unprepared(layer, call)
        assert type(found[1]) is type(expected[1])
        for a, b in zip(_flat(found), _flat(expected), strict=True):
            assert a.stride() == b.stride()
            assert (a.requires_grad, a.is_inference()) == (b.requires_grad, b.is_inference())
        assert_close(_flat(found), _flat(expected), rtol=0, atol=0)
        assert_close(_flat(call()), _flat(expected), rtol=0, atol=0)

    return check
