"""The kinds of a row of tensors: everything about them but their numbers and where those lie."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

try:  # what Dynamo asks before it runs compiled code again; no other way is half as fast
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None

_is_nested = attrgetter("is_nested")


def can_tell(row: Sequence[Any]) -> bool:
    """Whether the kinds of such a row can be looked at again: each is another object."""
    return TensorGuards is not None and len({*map(id, row)}) == len(row)


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
        try:  # nested ones are none that one may ask of
            return not any(map(_is_nested, row)) and self._same(*row)
        except AttributeError:  # of what is no tensor
            return False
