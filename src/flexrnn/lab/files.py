"""The folder that results go to, and the moment in which they are written."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexrnn.lab.errors import UsageError


def check_folder(out: Path) -> None:
    """Find out now, not after the work, whether the folder can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror or error}") from None


@contextmanager
def no_interrupt() -> Iterator[None]:
    """The results are being written; a second Ctrl-C must not cost them."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: nothing can interrupt it here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
