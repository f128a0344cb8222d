"""Dtypes: a program has one. What a step computes in another is refused, unless it is the same.

So it is with what is 1 or 0 for truth values, with what is chosen of single numbers, and with zeros
and ones: torch makes float32 of `torch.where(mask, 1.0, -1.0)` and of `torch.ones(B, 5)`, and a
state of float64 does not notice.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flexrnn.engine.compiler.aten import Unsupported, promotes


def check(node: fx.Node, operands: Sequence[fx.Node], dtype: torch.dtype) -> None:
    """Refuse an operation whose numbers are others in a program's dtype.

    One of another dtype with the same numbers is noted, for those that read it.

    Args:
        node: the operation.
        operands: those of its operands that the program has.
        dtype: of the program.

    Raises:
        Unsupported: its result or an operand is of another dtype, and of other numbers in this one.
    """
    target: Any = node.target
    name, result = target.overloadpacket.__name__, node.meta.get("val")
    short = _is_short(node, name, dtype)
    if short or _is_exact(node, name, dtype):
        node.meta |= {"exact": True, "short": short}
        return
    rows = [arg.meta.get("val") for arg in node.all_input_nodes]
    mixes = promotes(name) or name == "cat"
    yields = name == "_to_copy" or (
        mixes and any(isinstance(v, Tensor) and v.dtype == dtype and v.dim() for v in rows)
    )
    # Of whole numbers torch makes what they are put beside, or what a division has.
    counts = mixes and isinstance(result, Tensor) and result.dtype in (dtype, torch.bool)

    def is_same(arg: fx.Node) -> bool:
        return "exact" in arg.meta and (yields or (counts and arg.meta["val"].dtype in WHOLE))

    others = (arg for arg in operands if not is_same(arg))
    found = [("result", result), *(("operand", arg.meta.get("val")) for arg in others)]
    for what, value in found:
        if isinstance(value, Tensor) and value.dtype not in (dtype, torch.bool):
            raise Unsupported(f"its {what} is of {value.dtype}, the state of {dtype}")


def _is_exact(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether a result of a lesser dtype than the program's has the same numbers in that."""
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or result.dtype in (dtype, torch.bool):
        return False
    if moves(name):
        first = node.all_input_nodes[0].meta
        return "exact" in first or (first["val"].dtype in WHOLE and dtype in _EXACT)
    if result.dtype in WHOLE:
        return dtype in _EXACT and _is_whole(node, name, dtype)
    if not result.is_floating_point():
        return False
    if name in ("zeros", "ones", "full"):
        value: Any = node.args[1] if name == "full" else 0.0
        return torch.tensor(value, dtype=result.dtype).item() == value
    if name not in ("_to_copy", "where") or torch.promote_types(result.dtype, dtype) != dtype:
        return False
    if name == "_to_copy" and node.all_input_nodes[0].meta["val"].dtype in WHOLE:
        return dtype in _EXACT and result.dtype in _EXACT
    truth, *others = node.all_input_nodes
    return truth.meta["val"].dtype == torch.bool and all(
        _is_chosen(arg, result.dtype) for arg in others
    )


def moves(name: str) -> bool:
    """Whether an aten operation leaves numbers as they are."""
    return name in _MOVES


def _is_whole(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether whole numbers are made of such, or of truth values, or by cutting off what is behind.

    A product of them may be too large for a real number that has as many bits; not so that with a
    number of Python's as large as those of units are.
    """
    if name == "_to_copy" and node.all_input_nodes[0].meta["val"].dtype == dtype:
        return True
    if name == "mul" and not any(_is_number(arg, _MOST) for arg in node.args):
        return False
    return name in (*_COUNTS, *_OF_WHOLE) and all(
        arg.meta["val"].dtype == torch.bool or arg.meta["val"].dtype in WHOLE
        for arg in node.all_input_nodes
    )


def _is_short(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether a real result of a lesser dtype is made of whole numbers and has few bits, as halves.

    Then nothing of it has been rounded.
    """
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or (result.dtype, dtype) != (torch.float32, torch.float64):
        return False
    inputs = (arg.meta for arg in node.all_input_nodes)
    operands = [meta for meta in inputs if isinstance(meta["val"], Tensor)]
    if not operands or not all(
        meta.get("short") or meta["val"].dtype in (torch.bool, *WHOLE) for meta in operands
    ):
        return False
    if moves(name) or name == "_to_copy":
        return True
    numbers = [arg for arg in (*node.args, *node.kwargs.values()) if not isinstance(arg, fx.Node)]
    few = all(_is_number(x, _MOST, 256) for x in numbers if isinstance(x, float))
    if name == "mean":
        before, left = (math.prod(size for size in value.shape if isinstance(size, int))
                        for value in (operands[0]["val"], result))  # fmt: skip
        return _is_power(before / left)
    if name == "div":
        return isinstance(node.args[1], (int, float)) and _is_power(node.args[1])
    if name == "mul":
        return few and (len(numbers) == 1 or torch.bool in [meta["val"].dtype for meta in operands])
    return few and name in _COUNTS


def _is_number(value: Any, most: float, parts: int = 1) -> bool:
    """Whether this is a number of Python's that is a few wholes, halves, or lesser parts."""
    return (
        isinstance(value, (int, float)) and abs(value) <= most and float(value * parts).is_integer()
    )


def _is_power(value: float) -> bool:
    return abs(math.frexp(value)[0]) == 0.5


WHOLE = (torch.int64, torch.int32)
_EXACT = (torch.float64, torch.float32)  # of whole numbers up to two to the power of 24
_COUNTS = ("_to_copy", "sum", "amax", "amin", "where", "cat", "add", "sub", "rsub", "neg", "abs",
           "clamp", "clamp_min", "clamp_max", "maximum", "minimum")  # fmt: skip
_OF_WHOLE = ("mul", "remainder", "fmod", "div", "stack")  # of reals, these round
_MOST = 4096  # as many are units among which numbers are looked for
_MOVES = ("detach", "clone", "alias", "slice", "select", "unsqueeze", "squeeze", "view",
          "_unsafe_view", "reshape", "expand", "repeat", "permute", "transpose", "t")  # fmt: skip


def _is_chosen(arg: fx.Node, dtype: torch.dtype) -> bool:
    value = arg.meta["val"]
    return value.dtype == dtype and ("exact" in arg.meta or not value.dim())
