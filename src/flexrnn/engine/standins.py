"""Tensors in the place of others, as alike as a step can tell: by class, and by which are the same.

A step that is traced runs on others than its own. It may ask `isinstance(w, nn.Parameter)`, or
whether two names are one tensor, as where weights are tied, and gets the answer of its own.
"""

from collections.abc import Hashable, Iterable, Mapping
from operator import attrgetter

from torch import Tensor
from torch.nn import Parameter

MARKS = ("_is_param", "_is_buffer")  # by which `isinstance` knows a parameter, and an `nn.Buffer`
_own = attrgetter("__dict__")


def kinds(tensors: Iterable[Tensor]) -> Hashable:
    """Classes of tensors, which are marked, and which are the same as one before; programs differ.

    Of most there are neither marks nor the same twice, and it is as quick as that.
    """
    row = [*tensors]
    classes, ids = tuple(map(type, row)), [*map(id, row)]
    same = () if len({*ids}) == len(ids) else tuple(map(ids.index, ids))
    return classes, tuple(map(marks, row)) if any(map(_own, row)) else (), same


def marks(tensor: Tensor) -> tuple[str, ...]:
    """Those that a tensor has."""
    return tuple(mark for mark in MARKS if mark in _own(tensor))


def alike(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is given in the place of a step's own tensors, of their classes, and one for each.

    Args:
        given: by name; nobody else has these.
        own: the step's.
    """
    first: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        like = own.get(name, tensor)
        found[name] = one = first.setdefault(id(like), tensor)
        if one is not like:
            if type(like) is Parameter:
                one.__class__ = Parameter
            for mark in marks(like):
                setattr(one, mark, True)
    return found
