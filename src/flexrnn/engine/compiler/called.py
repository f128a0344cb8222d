"""What a person calls the values of a step: the names of the variables that hold them.

For sources that a person reads. Whatever has no name, or loses it when a program is rewritten, is
told by a number there.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain, islice
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, fx

_NUMBERED = re.compile(r"\bv\d+\b")
_MARK = "\t"  # between the place and the number of a call
# What gives a function its own variables.
_OWN = {"locals", "vars", "dir", "eval", "exec", "f_locals", "currentframe", "_getframe"}
_MANY, _DEEP = 200, 8  # variables of a function, functions in one another: more are not asked


def place_of_node(node: fx.Node) -> str:
    """The person's line that an operation is written down with; nothing where none is known."""
    return _place_and_call(node)[0]


def _place_and_call(node: fx.Node) -> tuple[str, int | None]:
    text = node.meta.get("stack_trace") or ""
    place, mark, call = text.rpartition(_MARK)
    return (place, int(call)) if mark and call.isdigit() else (text, None)


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
        for frame in reversed([*islice(frames, _DEEP)]):
            if not _may_be_asked(frame.f_code):
                continue
            for name, value in frame.f_locals.items():
                # By type: what stands for another object may raise when it is asked what it is.
                if issubclass(type(value), Tensor) and id(value) in self._made:
                    call, k, _ = self._made[id(value)]
                    self._names.setdefault((call, k), name)

    def nodes(self, graph: fx.Graph) -> dict[fx.Node, str]:
        """The names of nodes; of what a call makes, its results come last.

        Several do in their order where they are of one kind, as the parts of a tensor.
        """
        made = defaultdict[int, list[fx.Node]](list)
        for node in graph.nodes:
            _, call = _place_and_call(node)
            if call is not None and isinstance(node.meta.get("val"), Tensor):
                made[call].append(node)
        found = dict[fx.Node, str]()
        for (call, k), name in self._names.items():
            results = made[call][-self._count[call] :]
            if len(results) == self._count[call] and len({node.target for node in results}) == 1:
                found.setdefault(results[k], name)
        return found


def of_input(name: str, inputs: Iterable[str]) -> str:
    """What a step calls its input: `x`, where it has one and nothing else that is given is an x."""
    others = ("x1", "x")  # another input, or a field or a parameter
    alone = all(other.rpartition(".")[2] not in others for other in inputs)
    return "x" if name == "x0" and alone else name


def _may_be_asked(code: CodeType) -> bool:
    """Whether it is of no account to a function that it is asked for its variables.

    Before Python 3.13 they are put into one dictionary, which it may have, too.
    """
    is_function = code.co_flags & inspect.CO_OPTIMIZED
    return bool(is_function) and code.co_nlocals <= _MANY and _OWN.isdisjoint(code.co_names)


def with_names(text: str, wanted: dict[str, str], taken: Iterable[str], remark: str) -> str:
    """A text in which some variables have other names, none of which anything else has.

    Args:
        text: in which every one of the variables is the same thing wherever it stands.
        remark: how one begins, in which nothing is changed.
        wanted: variable -> the name that it should have, and has where that is free; or nothing.
            Others than `v` and a number have names.
        taken: names that mean something where they do not stand in the text.
    """
    lines = [line.partition(remark) for line in text.split("\n")]
    words = (re.findall(r"(?<![.\w])[^\W\d]\w*", code) for code, _, _ in lines)
    used = {*chain(*words), *taken}  # what stands behind a dot is another's
    names = dict[str, str]()
    for variable, name in wanted.items():
        free = name = re.sub(r"\W", "_", name)
        reserved = re.match(r"_[_A-Z]|\d|$", name)
        if reserved or not _NUMBERED.fullmatch(variable):
            continue
        number = 0
        while free in used:
            number += 1
            free = f"{name}_{number}"
        used.add(free)
        names[variable] = free

    def renamed(code: str) -> str:
        return _NUMBERED.sub(lambda found: names.get(found[0], found[0]), code)

    return "\n".join(renamed(code) + mark + rest for code, mark, rest in lines)
