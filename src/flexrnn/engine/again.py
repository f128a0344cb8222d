"""Calls that come again: a function of tensors that is written down once its kind is known."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.kinds import Kinds, can_tell
from flexrnn.engine.replay import Replay, Result, is_overridden, written
from flexrnn.engine.tables import trim

_OFTEN = 3  # calls that nobody knows before one is written down
_KEPT = 128  # sorts of calls; the oldest go first
_KINDS = 4  # of operands in a sort of calls that are told apart; the oldest go first
# What is written down has to pay: it takes as long as five to seven later calls save. So many are
# free; for others those before must have come again so often, on average.
_FREE, _PAYS = 32, 8


class _Known(NamedTuple):
    kinds: Kinds
    replay: Replay | None  # none where the call is one that cannot be written down


class _Sort:
    """What is known of calls of one sort."""

    def __init__(self) -> None:
        self.calls = 0
        self.known: list[_Known] = []


class Again:
    """What is known of a function's calls. It holds no tensor.

    The first calls of a sort are watched by nobody, for they may be the only ones. The next is
    written down, and those after it are what was written.
    """

    def __init__(self) -> None:
        self._sorts: dict[Hashable, _Sort] = {}
        self._written = self._replayed = 0

    def __call__(
        self,
        function: Callable[[tuple[Tensor, ...]], Result],
        row: tuple[Tensor, ...],
        sort: Hashable,
    ) -> Result:
        """The function's result.

        Args:
            function: see `replay.written`; for one sort of calls always the same.
            row: its operands.
            sort: of the call, in which kinds of operands seldom differ.
        """
        if is_overridden():  # by a mode of somebody's, who is to see what is done
            return function(row)
        about = self._sorts.get(sort)
        if about is None:
            about = self._sorts[sort] = _Sort()
            trim(self._sorts, _KEPT)
        for kinds, replay in about.known:
            if kinds.are_those_of(row):
                if replay is None:
                    return function(row)
                self._replayed += 1
                return replay(*row)
        about.calls += 1
        pays = self._written < _FREE or self._replayed >= _PAYS * self._written
        if about.calls <= _OFTEN or not pays or not can_tell(row):
            return function(row)
        about.calls = 0
        self._written += 1
        result, replay = written(function, row)
        known = [*about.known, _Known(Kinds(row), replay)]  # other threads may be reading
        about.known = known[-_KINDS:]
        return result
