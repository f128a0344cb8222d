"""Lets mkdocstrings show a docstring's `Example:` as code; it knows that section as `Examples:`."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section while the page is made; the source stays as it is."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename in one object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
