"""The kinds of a row of tensors: everything about them but their numbers and where those lie."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

try:  # what Dynamo asks before it runs compiled code again; no other way is half as fast
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None

_is_nested = attrgetter("is_nested")


def _works() -> bool:
    """Whether torch's guards, which have no public name, are those that this file knows."""
    try:
        kinds = Kinds([torch.empty(2, 3)])
        return kinds.are_those_of([torch.ones(2, 3)]) and not kinds.are_those_of([torch.empty(3)])
    except Exception:
        return False


def can_tell(row: Sequence[Any]) -> bool:
    """Whether the kinds of such a row can be looked at again: each is another object."""
    return _WORKS and len({*map(id, row)}) == len(row)


class Kinds:
    """Class, device, dtype, sizes, strides and so on of some tensors.

    Also what of torch's modes the operations with them would go through.
    """

    def __init__(self, row: Sequence[Tensor]):
        assert TensorGuards is not None
        sizes: Any = [list(tensor.shape) for tensor in row]
        strides: Any = [list(tensor.stride()) for tensor in row]
        guards = TensorGuards(*row, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        self._same = guards.check

    def are_those_of(self, row: Sequence[Any]) -> bool:
        """Whether these tensors, as many as those, are of the same kinds."""
        try:  # a nested one would end the process
            return not any(map(_is_nested, row)) and self._same(*row)
        except (AttributeError, TypeError):  # of what is no tensor
            return False


_WORKS = TensorGuards is not None and _works()
