"""What a trial run of a step has left behind in objects of the person's, taken back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flexrnn.engine.compiler.refusal import CannotCompileError
from flexrnn.engine.witness import CannotWatchError, Witness


@contextmanager
def undone_if_refused(holder: Any) -> Iterator[None]:
    """Take back what is done within to what an object holds, where a step is refused there.

    The reference then begins where it would have begun by itself: it counts as far. Where other
    threads run, what has changed may be theirs, and stays; so does what nobody can look into.

    Args:
        holder: a cell, or a function.
    """
    before = None
    with suppress(CannotWatchError):
        before = Witness(holder, whole=False) if _is_alone() else None
    try:
        yield
    except CannotCompileError:
        if before is not None and _is_alone():
            before.restore()
        raise


def _is_alone() -> bool:
    return threading.active_count() == 1
