"""The batch as a number without a value, and the note of the first question about its value."""

import sys
from itertools import dropwhile, islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from flexrnn.engine.compiler.refusal import frames, is_users, users_line, with_batch

_ASKED = str(Path(torch.__file__))  # where `bool(size > 1)` is
_ANSWERED = (str(Path(torch.__file__).parent / "fx"), str(Path(__file__).parent))


class BatchSize(ShapeEnv):
    """The batch size of a trace. A step that asks for it takes another course for another batch.

    Torch asks as well, and answers for any size above 1 alike: of its questions only those count
    whose answer it writes down as a guard. A question of the person's own counts always.
    """

    question: str | None = None  # the first that counts, and its place

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
        return sys._getframe()  # pyright: ignore[reportPrivateUsage]


def _is_persons() -> bool:
    calling = (frame for frame, _ in frames())
    asking = dropwhile(lambda frame: frame.f_code.co_filename.startswith(_ANSWERED), calling)
    passed = [*islice(asking, 4)]  # bool of a size asks for bool of != 0
    files = [frame.f_code.co_filename for frame in passed]
    asker = next((f for f, file in zip(passed, files, strict=True) if file != _ASKED), None)
    return files[:1] == [_ASKED] and asker is not None and is_users(asker)
