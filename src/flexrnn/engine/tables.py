"""Tables that forget: what was found out of many things, of which the oldest go first."""

from typing import Any


def trim(table: dict[Any, Any], most: int) -> None:
    """Take the oldest entries out of a table that has more than so many.

    Several threads may do so at once: who is disturbed leaves it to the next.
    """
    try:
        while len(table) > most:
            table.pop(next(iter(table)), None)
    except (RuntimeError, StopIteration):
        return
