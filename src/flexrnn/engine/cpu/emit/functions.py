"""Functions that make the sums of tiles; loops with tiles of one kind share them.

A product in a loop sees nothing of the cell: how many sums a tile has, and to which of them every
product adds, is all that its function depends on. Where tiles have many rows it is much text, and
an object of its own, which is compiled once and linked with every loop that calls it.
"""

from collections.abc import Sequence
from itertools import chain, count
from string import ascii_lowercase, digits
from typing import NamedTuple

_NUMERALS = digits + ascii_lowercase
_LONGEST = 40  # of what a name says


class Sums(NamedTuple):
    """How the sums of a tile are made: C++ that is told of `terms`, of `out` and of its rows."""

    adds: tuple[tuple[int, ...], ...]  # of every product the sums to which it adds
    text: tuple[str, ...]  # that is told how many `rows`; or:
    most: int = 0  # rows, for each number of which there is a function, told of R
    few: int = 0  # of these, for which one text is; the other one is for more
    for_few: tuple[str, ...] = ()
    for_more: tuple[str, ...] = ()


class Functions:
    """Collects the functions of a loop.

    Args:
        term: the type of what they are told of every product, as in weights.h.
        apart: each is an object of its own, not a part of the loop.
    """

    def __init__(self, term: str, *, apart: bool):
        self._term, self._apart = term, apart
        self._names: dict[Sums, str] = {}
        self._shared = set[str]()  # by several stages

    def name(self, sums: Sums) -> str:
        """The name of the function that makes these; see `_head`."""
        if sums in self._names:
            self._shared.add(self._names[sums])
        else:
            said = f"products_{_said(sums.adds)}"
            names = chain([said], (f"{said}_{k}" for k in count(2)))  # the same, of other tiles
            self._names[sums] = next(name for name in names if name not in self._names.values())
        return self._names[sums]

    def objects(self) -> tuple[str, ...]:
        """The text of each object, to stand behind weights.h."""
        return tuple(self._texts()) if self._apart else ()

    def text(self) -> str:
        """What stands in the loop: all functions, or what they are called with."""
        if not self._apart:
            return "\n".join(self._texts())
        return "".join(f"{self._head(name)};\n" for name in self._names.values())

    def _head(self, name: str) -> str:
        return f"void {name}(const {self._term}* terms, REAL* out, long rows)"

    def _texts(self) -> list[str]:
        return ["\n".join(self._text(sums, name)) for sums, name in self._names.items()]

    def _text(self, sums: Sums, name: str) -> list[str]:
        lines, text = list[str](), list(sums.text)
        if sums.most:
            lines, calls = self._templates(sums, name)
            text = calls
            if calls[1:]:
                cases = (f"case {rows}: return {call}" for rows, call in enumerate(calls, 1))
                text = ["switch (rows) {", *cases, "}"]
        how = "" if self._apart else "ALONE " if name in self._shared else "INLINE "
        return [*lines, f"{how}{self._head(name)} {{", *(f"    {line}" for line in text), "}\n"]

    def _templates(self, sums: Sums, name: str) -> tuple[list[str], list[str]]:
        """Functions of a number of rows, and the call of one for every number."""
        kinds = ("few", "more") if sums.for_few and sums.for_more else ("rows", "rows")
        few, more = (name.replace("products", kind, 1) for kind in kinds)
        # What surrounds the sums of many rows would want registers, too, all of which are taken.
        how = "ALONE" if self._apart else "INLINE"
        lines = [
            line
            for function, text in ((few, sums.for_few), (more, sums.for_more))
            if text
            for line in (
                "template <int R>",
                f"{how} void {function}(const {self._term}* terms, REAL* out) {{",
                *(f"    {line}" for line in text),
                "}\n",
            )
        ]
        rows = range(1, sums.most + 1)
        return lines, [f"{few if n <= sums.few else more}<{n}>(terms, out);" for n in rows]


def _said(adds: Sequence[Sequence[int]]) -> str:
    """The numbers of sums, a digit each; how many there are, where that would be long."""
    total = 1 + max(which for product in adds for which in product)
    if total <= len(_NUMERALS):
        said = "_".join("".join(_NUMERALS[which] for which in product) for product in adds)
        if len(said) <= _LONGEST:
            return said
    return f"{len(adds)}_to_{total}"
