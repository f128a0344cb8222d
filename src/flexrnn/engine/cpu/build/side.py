"""Calls that wait for compilers, which are other processes, side by side."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Own = TypeVar("Own")
Other = TypeVar("Other")


def side_by_side(
    own: Callable[[], Own], others: Sequence[Callable[[], Other]]
) -> tuple[Own, list[Other]]:
    """What a call of this thread returns, and what calls of other threads do.

    They come one after another where no thread starts: at the end of a process, say.

    Raises:
        Exception: what one of them raises, once all have come to an end.
    """
    pool = ThreadPoolExecutor(max(1, min(len(others), os.cpu_count() or 1)))
    try:
        found = [pool.submit(each) for each in others]
    except RuntimeError:  # the process ends, or has as many threads as it may
        pool.shutdown(cancel_futures=True)
        return own(), [each() for each in others]
    try:
        return own(), [each.result() for each in found]
    except Exception:
        pool.shutdown()  # what they write to may be removed then
        raise
    finally:  # whoever is interrupted does not wait for the other compilers
        pool.shutdown(wait=False)
