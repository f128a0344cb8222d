"""Functions of a step a few at a time, for engines that compile every loop.

A C++ compiler takes half a second for a loop, nearly as long for one line as for five.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import Tensor


def few_at_once(names: Iterable[str], count: int) -> list[Any]:
    """Parameters of a test: so many names each, with an id that says which."""
    names = list(names)
    groups = [names[k : k + count] for k in range(0, len(names), count)]
    return [pytest.param(group, id=", ".join(group)) for group in groups]


def mean_of(functions: Iterable[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """A function of their arguments with a result that is wrong where one of theirs is."""
    functions = list(functions)

    def mean(*args: Any) -> Tensor:
        return sum((f(*args) for f in functions[1:]), start=functions[0](*args)) / len(functions)

    return mean
