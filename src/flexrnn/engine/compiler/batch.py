# pyright: reportPrivateUsage=false
# What torch compares to see whether it knows more of sizes than before has no public name.
"""The batch as a number without a value, and the note of the first question about its value."""

import re
import sys
from contextlib import suppress
from itertools import dropwhile, islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.sym_node import METHOD_TO_OPERATOR
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from flexrnn.engine.compiler.refusal import frames, is_users, users_line, with_batch

_ASKED = str(Path(torch.__file__))  # where `bool(size > 1)` is
_ANSWERED = (str(Path(torch.__file__).parent / "fx"), str(Path(__file__).parent))
_MOST = 2048  # operations of which is remembered what they give


class BatchSize(ShapeEnv):
    """The batch size of a trace. A step that asks for it takes another course for another batch.

    Torch asks as well, and answers for any size above 1 alike: of its questions only those count
    whose answer it writes down as a guard. A question of the person's own counts always.
    """

    question: str | None = None  # the first that counts, and its place

    def __init__(self) -> None:
        super().__init__()
        sizes = [DimDynamic.DYNAMIC, DimDynamic.STATIC]
        context = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None, None])
        example = FakeTensorMode(shape_env=self).from_tensor(
            torch.empty(7, 1), symbolic_context=context
        )
        self.size: Any = example.shape[0]  # without a value
        self.is_new = True  # no trace has had it before
        self._as_made = self._known()

    @classmethod
    def make_ready(cls) -> None:
        """Have one for the first trace."""
        if not _free:
            _free.append(cls())

    @classmethod
    def free(cls) -> "BatchSize":
        """One that no other trace has now."""
        with suppress(IndexError):
            return _free.pop()
        return cls()

    def give_back(self) -> None:
        """Serve another trace, where this one has found out nothing about the size.

        Torch remembers with a size what operations give for it: of a step whose operations it has
        met, a trace takes half the time.
        """
        self.is_new = False
        if self._known() == self._as_made and len(self.fake_tensor_cache) < _MOST:
            _free.append(self)

    def _known(self) -> tuple[Any, ...]:
        known = (self.question, len(self.guards), len(self.axioms), len(self.var_to_range))
        return (*known, self._get_key())

    def evaluate_expr(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a question about sizes, such as whether one is above 1."""
        known = len(self.guards)
        answer = super().evaluate_expr(*args, **kwargs)
        symbolic = bool(getattr(args[0], "free_symbols", ()))
        if self.question is None and symbolic and (len(self.guards) > known or _is_persons()):
            asked = with_batch(str(args[0]))
            self.question = f"({asked}), {users_line(frames())}"
        return answer

    def _get_user_frame(self) -> FrameType:
        """Where torch asks from, for messages that nobody gets here.

        Finding out by which file a person asks, torch imports torch.export: a third of a second at
        the first call of a process.
        """
        return sys._getframe()


_free: list[BatchSize] = []


def is_numbered_with_sizes(name: str) -> bool:
    """Whether a node's number counts the sizes, too, that torch has had to compute."""
    return re.sub(r"_?(_\d+)?$", "", name) in METHOD_TO_OPERATOR


def _is_persons() -> bool:
    calling = (frame for frame, _ in frames())
    asking = dropwhile(lambda frame: frame.f_code.co_filename.startswith(_ANSWERED), calling)
    passed = [*islice(asking, 4)]  # bool of a size asks for bool of != 0
    files = [frame.f_code.co_filename for frame in passed]
    asker = next((f for f, file in zip(passed, files, strict=True) if file != _ASKED), None)
    return files[:1] == [_ASKED] and asker is not None and is_users(asker)
