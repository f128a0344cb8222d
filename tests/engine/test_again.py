# pyright: reportPrivateUsage=false
"""The table of calls that come again: what is written down has to pay, and the table is bounded."""

from collections.abc import Hashable

import pytest
import torch
from torch import Tensor

from flexrnn.engine import again
from flexrnn.engine.again import Again
from flexrnn.engine.replay import Result


class Calls:
    """Calls of a function, of which some get no further than what was written down."""

    def __init__(self) -> None:
        self.known, self.computed = Again(), 0

    def _function(self, row: tuple[Tensor, ...]) -> Result:
        self.computed += 1
        return (row[0] + 1,)

    def is_replayed(self, size: int, sort: Hashable) -> bool:
        x, before = torch.randn(size), self.computed
        (found,) = self.known(self._function, (x,), sort)
        assert found is not None
        assert torch.equal(found, x + 1)
        return self.computed == before


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call of a kind is written down."""
    monkeypatch.setattr(again, "_OFTEN", 1)


def test_what_does_not_come_again_often_is_not_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(again, "_FREE", 2)
    calls = Calls()
    for size in range(1, 10):
        for _ in range(2):
            assert not calls.is_replayed(size, size)
    assert calls.known._written == 2
    for _ in range(16):
        assert calls.is_replayed(1, 1)
    assert not calls.is_replayed(9, 9)
    assert calls.known._written == 3
    assert calls.is_replayed(9, 9)


def test_of_many_kinds_the_last_are_known() -> None:
    calls = Calls()
    for size in (*range(1, 9), 8):
        found = [calls.is_replayed(size, "alike") for _ in range(3)]
        assert found[-1]
    assert len(calls.known._sorts["alike"].known) == again._KINDS
