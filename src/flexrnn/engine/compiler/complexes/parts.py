"""Arithmetic of real numbers, some of which are the same for all rows, and numbers of Python's.

What is 0 for every row, as the imaginary part of a real number is, is left out.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from flexrnn.engine.compiler.complexes.writer import Part, Writer, aten


def is_number(part: Part) -> bool:
    """Whether it is a number of Python's, and no node."""
    return not isinstance(part, fx.Node)


def equals(part: Part, number: float) -> bool:
    """Whether it is this number, for all rows."""
    return is_number(part) and part == number


def plus(w: Writer, a: Part, b: Part) -> Part:
    """`a + b`."""
    if is_number(a) and is_number(b):
        return a + b
    if equals(a, 0) or equals(b, 0):
        return b if equals(a, 0) else a
    return w(aten.add.Tensor, b, a) if is_number(a) else w(aten.add.Tensor, a, b)


def minus(w: Writer, a: Part, b: Part) -> Part:
    """`a - b`."""
    if is_number(a) and is_number(b):
        return a - b
    if equals(b, 0):
        return a
    if is_number(a):
        return negative(w, b) if a == 0 else plus(w, negative(w, b), a)
    return w(aten.sub.Tensor, a, b)


def times(w: Writer, a: Part, b: Part) -> Part:
    """`a b`; 0 where one of them is, whatever the other is."""
    if is_number(a):
        a, b = b, a
    if is_number(a):
        return a * b
    if not is_number(b):
        return w(aten.mul.Tensor, a, b)
    if b in (0, 1):
        return a if b else 0
    return negative(w, a) if b == -1 else w(aten.mul.Tensor, a, b)


def negative(w: Writer, a: Part) -> Part:
    """`-a`."""
    return -a if is_number(a) else w(aten.neg.default, a)


def over(w: Writer, a: Part, b: Part) -> Part:
    """`a / b`."""
    if equals(a, 0):
        return 0
    if is_number(a) and is_number(b):
        return a / b
    if is_number(a):
        return times(w, w(aten.reciprocal.default, b), a)
    return w(aten.div.Tensor, a, b)


def of(name: str) -> Callable[[Writer, Part], Part]:
    """A function of one number, by its name."""
    target, by_python = getattr(aten, name).default, getattr(math, name)
    return lambda w, a: by_python(a) if is_number(a) else w(target, a)


def chosen(w: Writer, condition: fx.Node, number: float, other: fx.Node) -> fx.Node:
    """A number where something is so, and else another."""
    return w(aten.where.self, condition, w.filled(_scalar(other), number), other)


def _scalar(node: fx.Node) -> Any:
    value = node.meta["val"]
    return value.new_empty(())
