"""Spellings: of each row the unit whose number is its own, `x[torch.arange(B), numbers]`.

The numbers of all rows have no value here, and need none: a row picks, and writes, in itself.
"""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.spelt import chosen, placed
from flexrnn.engine.compiler.spelt.rows import has_real_units, where

_MARK = "_flexrnn_numbers_of_rows"


def _arange(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.arange`; remembers where it gives all rows their numbers."""
    numbers = torch.arange(*args, **kwargs)
    if args in ((numbers.shape[0],), (0, numbers.shape[0])) and isinstance(args[-1], torch.SymInt):
        setattr(numbers, _MARK, True)
    return numbers


def _own(x: Tensor, index: Any) -> Tensor | None:
    """Of every unit `(B, N)` of `(B, N, ...)` whether it is the one that its row names."""
    if not isinstance(index, tuple) or len(index) != 2 or not hasattr(index[0], _MARK):
        return None
    numbers = index[1]
    if not (chosen.is_number(numbers) and numbers.dim() == 1 and x.dim() > 1):
        return None
    if not has_real_units(x, 1) or x.shape[1] > chosen.PAIRS:
        return None
    return chosen.are(chosen.from_the_end(numbers, x.shape[1]), x.shape[1])


def _wide(here: Tensor, x: Tensor) -> Tensor:
    return here.view(*here.shape, *(1 for _ in range(x.dim() - 2)))


def _get_item(x: Tensor, index: Any) -> Tensor:
    here = _own(x, index)
    if here is not None:
        return chosen.or_nan(here, where(_wide(here, x), x, 0.0).sum(1))
    if isinstance(index, tuple) and hasattr(index[0], _MARK) and type(index[1]) is int:
        return x[(slice(None), *index[1:])]
    return chosen.get_item(x, index)


def _set_item(x: Tensor, index: Any, value: Any) -> None:
    here = _own(x, index)
    if here is None or (isinstance(value, Tensor) and value.dtype != x.dtype):
        placed.set_item(x, index, value)
        return
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype)
    value = value.expand(x.shape[0], *x.shape[2:]).unsqueeze(1)
    x.copy_(torch.where(_wide(here, x), value, x))


SPELT: dict[Any, Any] = {
    torch.arange: _arange,
    Tensor.__getitem__: _get_item,
    Tensor.__setitem__: _set_item,
}
