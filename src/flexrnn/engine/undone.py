"""What a trial run of a step has left behind in objects of the person's, taken back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flexrnn.engine.compiler.refusal import CannotCompileError
from flexrnn.engine.witness import CannotWatchError, Witness


@contextmanager
def undone(holder: Any) -> Iterator[None]:
    """Take back what is done within to what an object holds.

    Args:
        holder: a cell, or a function.
    """
    before = _before(holder)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def undone_if_refused(holder: Any) -> Iterator[None]:
    """The same where a step is refused within, and nowhere else.

    The reference then begins where it would have begun by itself: it counts as far. Where other
    threads run, what has changed may be theirs, and stays; so does what nobody can look into.

    Args:
        holder: a cell, or a function.
    """
    before = _before(holder)
    try:
        yield
    except CannotCompileError:
        _restore(before)
        raise


def _before(holder: Any) -> Witness | None:
    with suppress(CannotWatchError):
        return Witness(holder, whole=False) if _is_alone() else None
    return None


def _restore(before: Witness | None) -> None:
    if before is not None and _is_alone():
        before.restore()


def _is_alone() -> bool:
    return threading.active_count() == 1
