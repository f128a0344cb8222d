"""Functions that make the sums of tiles: stages with tiles of one kind share them.

A cell may have many products a step that differ in nothing but where their operands lie, as the
stages of a Runge-Kutta method do. The compiler would take as long for each of them.
"""

from collections import Counter
from collections.abc import Sequence


class Functions:
    """Collects the functions of a loop; they are told of terms, as in weights.h, to add up."""

    def __init__(self):
        self._names: dict[tuple[str, tuple[str, ...]], str] = {}
        self._uses: Counter[str] = Counter()
        self._alone = set[str]()

    def name(self, kind: str, lines: Sequence[str], *, alone: bool = False) -> str:
        """The name of the function that consists of these lines.

        Args:
            kind: what its name begins with.
            lines: its body.
            alone: it is never merged into what calls it.
        """
        key = kind, tuple(lines)
        if key not in self._names:
            self._names[key] = f"{kind}{sum(known == kind for known, _ in self._names)}"
        name = self._names[key]
        self._uses[name] += 1
        if alone:
            self._alone.add(name)
        return name

    def text(self, term: str) -> str:
        """All functions, told of such terms. What one stage alone calls is a part of it."""
        return "\n".join(
            line
            for (_, lines), name in self._names.items()
            for line in (
                "template <int R>",
                f"{self._how(name)} void {name}(const {term}* terms, REAL* out) {{",
                *(f"    {line}" for line in lines),
                "}\n",
            )
        )

    def _how(self, name: str) -> str:
        return "ALONE" if name in self._alone or self._uses[name] > 1 else "INLINE"
