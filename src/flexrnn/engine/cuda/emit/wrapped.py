"""Long lines of a source, as a person wants them: the arguments of a function below its name."""

import re
from textwrap import fill

_WIDEST = 100
_WHOLE = "\N{NO-BREAK SPACE}"
_CALL = re.compile(r"(?P<head> *(?:def |[\w, ]+ = )?\w+\()(?P<arguments>.*)(?P<end>\):?)")


def wrapped(text: str) -> str:
    """The same source with definitions and calls of functions broken where they are too long."""
    return "\n".join(map(_wrapped, text.split("\n")))


def _wrapped(line: str) -> str:
    found = _CALL.fullmatch(line) if len(line) > _WIDEST else None
    if found is None:
        return line
    before = " " * (len(line) - len(line.lstrip()))
    inner = before + " " * 4
    parts = (part.replace(" ", _WHOLE) for part in found["arguments"].split(", "))
    body = fill(", ".join(parts), _WIDEST, initial_indent=inner, subsequent_indent=inner,
                break_on_hyphens=False, break_long_words=False)  # fmt: skip
    return "\n".join((found["head"], body.replace(_WHOLE, " "), before + found["end"]))
