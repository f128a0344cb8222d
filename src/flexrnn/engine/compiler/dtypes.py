"""Dtypes: a program has one. What a step computes in another is refused, unless it is the same.

So it is with what is 1 or 0 for truth values, and with what is chosen of single numbers: torch
makes float32 of `torch.where(mask, 1.0, -1.0)`, and a state of float64 does not notice.
"""

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
    if _is_exact(node, name, dtype):
        node.meta["exact"] = True
        return
    rows = (arg.meta.get("val") for arg in node.all_input_nodes)
    yields = name == "_to_copy" or (
        promotes(name) and any(isinstance(v, Tensor) and v.dtype == dtype and v.dim() for v in rows)
    )
    others = (arg for arg in operands if not (yields and "exact" in arg.meta))
    found = [("result", result), *(("operand", arg.meta.get("val")) for arg in others)]
    for what, value in found:
        if isinstance(value, Tensor) and value.dtype not in (dtype, torch.bool):
            raise Unsupported(f"its {what} is of {value.dtype}, the state of {dtype}")


def _is_exact(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether a result of a lesser dtype than the program's has the same numbers in that."""
    result = node.meta.get("val")
    if not isinstance(result, Tensor) or result.dtype == dtype or not result.is_floating_point():
        return False
    if name in _MOVES:
        return "exact" in node.all_input_nodes[0].meta
    if name not in ("_to_copy", "where") or torch.promote_types(result.dtype, dtype) != dtype:
        return False
    truth, *others = node.all_input_nodes
    return truth.meta["val"].dtype == torch.bool and all(
        _is_chosen(arg, result.dtype) for arg in others
    )


_MOVES = ("detach", "clone", "alias", "slice", "select", "unsqueeze", "squeeze", "view", "expand")


def _is_chosen(arg: fx.Node, dtype: torch.dtype) -> bool:
    value = arg.meta["val"]
    return value.dtype == dtype and ("exact" in arg.meta or not value.dim())
