"""What a person calls the values of a step: the names of the variables that hold them.

For sources that a person reads. Whatever has no name, or loses it when a program is rewritten, is
told by a number there.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import Tensor, fx

_NUMBERED = re.compile(r"\bv\d+\b")
_MARK = "\t"  # between the place and the number of a call


def place_of_node(node: fx.Node) -> str:
    """The person's line that an operation is written down with; nothing where none is known."""
    return (node.meta.get("stack_trace") or "").partition(_MARK)[0]


class Called:
    """Collects names while a step is traced."""

    def __init__(self) -> None:
        self._calls = 0
        self._made: dict[int, tuple[int, int, Tensor]] = {}  # tensor -> its call, and which it is
        self._count: dict[int, int] = {}  # of a call's results
        self._names: dict[tuple[int, int], str] = {}

    def begins(self, place: str) -> tuple[int, str]:
        """The number of a call that begins, and what its nodes are to have as their place."""
        self._calls += 1
        return self._calls, f"{place}{_MARK}{self._calls}"

    def gave(self, call: int, result: Any) -> None:
        """What a call has given; it is held, so that no other tensor comes to have its number."""
        results = [result] if isinstance(result, Tensor) else result
        if isinstance(results, (list, tuple)) and all(isinstance(x, Tensor) for x in results):
            self._count[call] = len(results)
            self._made |= {id(x): (call, k, x) for k, x in enumerate(results)}

    def look(self, frames: Iterable[FrameType]) -> None:
        """Ask the frames of a step, the innermost first, what they call what they hold.

        Who called a function knows better than the function what was given to it.
        """
        for frame in reversed([*frames]):
            for name, value in frame.f_locals.items():
                if isinstance(value, Tensor) and id(value) in self._made:
                    call, k, _ = self._made[id(value)]
                    self._names.setdefault((call, k), name)

    def nodes(self, graph: fx.Graph) -> dict[fx.Node, str]:
        """The names of nodes; of what a call makes, its results come last."""
        made = defaultdict[int, list[fx.Node]](list)
        for node in graph.nodes:
            call = (node.meta.get("stack_trace") or "").partition(_MARK)[2]
            if call and isinstance(node.meta.get("val"), Tensor):
                made[int(call)].append(node)
        found = dict[fx.Node, str]()
        for (call, k), name in self._names.items():
            results = made[call][-self._count[call] :]
            if len(results) == self._count[call]:
                found.setdefault(results[k], name)
        return found


def with_names(text: str, wanted: dict[str, str], taken: Iterable[str] = ()) -> str:
    """A text in which some variables have other names, none of which anything else has.

    Args:
        text: in which every one of the variables is the same thing wherever it stands.
        wanted: variable -> the name that it should have, and has where that is free; or nothing.
            Others than `v` and a number have names.
        taken: names that mean something where they do not stand in the text.
    """
    used = {*re.findall(r"(?<![.\w])[^\W\d]\w*", text), *taken}  # what is behind a dot is another's
    names = dict[str, str]()
    for variable, name in wanted.items():
        if not name or not _NUMBERED.fullmatch(variable):
            continue
        free = name = re.sub(r"\W", "_", name)
        number = 0
        while free in used:
            number += 1
            free = f"{name}_{number}"
        used.add(free)
        names[variable] = free
    return _NUMBERED.sub(lambda found: names.get(found[0], found[0]), text)
