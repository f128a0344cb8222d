"""Calls that come again: a function of tensors that is written down once its kind is known."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from torch import Tensor
from torch.overrides import has_torch_function

from flexrnn.engine.kinds import Kinds, can_tell
from flexrnn.engine.replay import Replay, Result, written
from flexrnn.engine.tables import trim

_ANYTHING = (None,)
_OFTEN = 3  # calls of a sort before one is written down: it takes as long as some dozens save
_KEPT = 64  # sorts of calls; the oldest go first
_KINDS = 4  # of operands in a sort of calls that are told apart


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
        if has_torch_function(_ANYTHING):  # a mode of somebody's, who is to see what is done
            return function(row)
        about = self._sorts.get(sort)
        if about is None:
            about = self._sorts[sort] = _Sort()
            trim(self._sorts, _KEPT)
        for kinds, replay in about.known:
            if kinds.are_those_of(row):
                return function(row) if replay is None else replay(*row)
        about.calls += 1
        if about.calls <= _OFTEN or len(about.known) == _KINDS or not can_tell(row):
            return function(row)
        result, replay = written(function, row)
        about.known.append(_Known(Kinds(row), replay))
        return result
