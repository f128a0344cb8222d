"""Lets mkdocstrings show sections of our docstrings that it does not know by these names."""

import re
import textwrap
from typing import Any

from griffe import Extension, Object

LISTS = re.compile(r"(?m)^(Shapes|Class attributes):\n((?:[ ]{4}.*\n?)+)")


class Sections(Extension):
    """Rewrites them while the page is made; the source stays as it is.

    `Example:` is called `Examples:` there; `Shapes:` and `Class attributes:` become lists.
    """

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = LISTS.sub(_as_list, value)


def _as_list(section: re.Match[str]) -> str:
    items = re.sub(r"(?m)^(\w[\w ]*): ", r"- **\1**: ", textwrap.dedent(section[2]))
    return f"**{section[1]}:**\n\n{items}"
