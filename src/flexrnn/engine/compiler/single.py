"""Sums of numbers of which at most one is not zero: how a number is picked from among others.

`where(places == torch.arange(n), x, 0).sum(-1)` is no larger than what it picks.
"""

from typing import Any

import torch
from torch import Tensor, fx

_AS_IT_WAS = ("_to_copy", "detach", "clone", "alias")


def picks(node: fx.Node) -> bool:
    """Whether a sum has at most one number that is not zero.

    Args:
        node: a sum over some axes.
    """
    chosen, axes = node.args[0], node.args[1] if len(node.args) > 1 else None
    if not isinstance(chosen, fx.Node) or aten_name(chosen) != "where":
        return False
    condition, _, other = chosen.args
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or not _is_zero(other):
        return False
    first: Any = axes[0]
    axis = first % _dim(chosen) - _dim(chosen)
    return _size(condition, axis) == _size(chosen, axis) and _one(condition, axis)


def _size(node: Any, axis: int) -> Any:
    """How long an axis is, counted from the last; 1 where there is none, as in broadcasting."""
    return node.meta["val"].shape[axis] if axis >= -_dim(node) else 1


def _one(node: Any, axis: int) -> bool:
    """Whether at most one truth value along an axis, counted from the last, is true."""
    dim, name = _dim(node), aten_name(node)
    if node.op == "get_attr":
        return bool((node.meta["val"].sum(axis) <= 1).all())
    if name in _AS_IT_WAS:
        return _one(node.args[0], axis)
    if name == "unsqueeze":
        new = node.args[1] % dim - dim
        return axis != new and _one(node.args[0], axis + (axis < new))
    if name == "eq":
        left, right = node.args
        return _is_number(left, right, axis) or _is_number(right, left, axis)
    return False


def _is_number(numbers: Any, number: Any, axis: int) -> bool:
    """Whether numbers along an axis, all of them others, are compared with one number."""
    if not isinstance(numbers, fx.Node) or axis != -1 or not _are_others(numbers):
        return False
    return not isinstance(number, fx.Node) or not _dim(number) or number.meta["val"].shape[-1] == 1


def _are_others(node: fx.Node) -> bool:
    """Whether these, of one axis, are all different."""
    value: Any = node.meta["val"]
    if value.dim() != 1:
        return False
    if aten_name(node) in _AS_IT_WAS:
        return isinstance(node.args[0], fx.Node) and _are_others(node.args[0])
    if node.op == "get_attr":
        return len(value.unique()) == len(value)
    return aten_name(node) == "arange" and value.dtype in (torch.int64, torch.int32)


def _is_zero(value: Any) -> bool:
    if isinstance(value, fx.Node):
        made = aten_name(value) in ("full", "scalar_tensor") and not _dim(value)
        return made and bool(value.args[-1] == 0)
    return value == 0


def aten_name(node: fx.Node) -> str:
    """What torch calls a node's operation; nothing where it is none of aten's."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _dim(node: Any) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0
