"""The batch as a number without a value, and the note of every question about its value."""

from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from flexrnn.engine.compiler.spelling import CannotCompileError, frames, is_users, users_line

_ASKING = str(Path(torch.__file__))  # where `bool(size > 1)` is
_ANSWERING = str(Path(torch.__file__).parent / "fx")


class BatchSize(ShapeEnv):
    """The batch size of a trace. A step that asks for it takes another course for another batch.

    Torch asks as well, and answers for any size above 1 alike: of its questions only those count
    whose answer it writes down as a guard. A question of the person's own counts always.
    """

    def evaluate_expr(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a question about sizes, such as whether one is above 1."""
        expr, known = args[0], len(self.guards)
        if getattr(expr, "free_symbols", ()) and _is_persons_question():
            raise self._refusal(expr)
        answer = super().evaluate_expr(*args, **kwargs)
        if len(self.guards) > known:
            raise self._refusal(expr)
        return answer

    def _refusal(self, expr: Any) -> CannotCompileError:
        return CannotCompileError(
            f"the step's course depends on the batch size ({expr}), {users_line(frames())}"
        )


def _is_persons_question() -> bool:
    passed = iter(frames())
    for file, _ in passed:
        if file != __file__ and not file.startswith(_ANSWERING):
            return file == _ASKING and is_users(next(passed, ("<", 0))[0])
    return False
