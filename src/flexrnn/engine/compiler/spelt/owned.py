"""Spellings: of each row the unit whose number is its own, `x[torch.arange(B), numbers]`.

The numbers of all rows have no value here, and need none: a row picks, and writes, in itself.
"""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.cuts import MOST
from flexrnn.engine.compiler.spelt import chosen, picked, placed
from flexrnn.engine.compiler.spelt.rows import (
    WHOLE,
    as_torch,
    has_real_units,
    is_of_rows,
    where,
    writes_to,
)

_MARK = "_flexrnn_numbers_of_rows"


def _marked(numbers: Tensor) -> Tensor:
    setattr(numbers, _MARK, writes_to(numbers))
    return numbers


def _is_marked(numbers: Any) -> bool:
    """Whether this is the number of every row, `(B,)` or `(B, 1)`, and nobody has written to it."""
    return hasattr(numbers, _MARK) and getattr(numbers, _MARK) == writes_to(numbers)


def _arange(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.arange`; remembers where it gives all rows their numbers."""
    numbers = torch.arange(*args, **kwargs)
    if args in ((numbers.shape[0],), (0, numbers.shape[0])) and isinstance(args[-1], torch.SymInt):
        return _marked(numbers)
    return numbers


def _as_column(original: Any) -> Any:
    """What may put an axis of size one behind the numbers of all rows, or give them back."""

    def spelt(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = original(x, *args, **kwargs)
        alike = _is_marked(x) and made.dtype in WHOLE
        rows = alike and isinstance(made.shape[0], torch.SymInt)
        return _marked(made) if rows and made.shape[1:] in ((), (1,)) else made

    return as_torch(original, spelt)


def _own(x: Tensor, index: Any) -> Tensor | None:
    """Of every unit of `(B, N, ...)` whether it is the one that its row names.

    It is `(B, N)`; or `(B, K, N)`, where each row names several.
    """
    if not isinstance(index, tuple) or len(index) != 2 or not _is_marked(index[0]):
        return None
    rows, numbers = index
    if not (chosen.is_number(numbers) and numbers.dim() == rows.dim() and x.dim() > 1):
        return None
    if not (has_real_units(x, 1) or (x.dtype == torch.bool and is_of_rows(x))):
        return None
    if x.shape[1] * (numbers.shape[1] if numbers.dim() > 1 else 1) > chosen.PAIRS:
        return None
    return chosen.are(chosen.from_the_end(numbers, x.shape[1]), x.shape[1])


def _wide(here: Tensor, x: Tensor) -> Tensor:
    return here.view(*here.shape, *(1 for _ in range(x.dim() - 2)))


def _joined(x: Tensor, index: Any) -> tuple[Tensor, Any] | None:
    """Two axes as one, `(B, M * N, ...)`, where each row has numbers of both: `x[rows, m, n]`."""
    if not isinstance(index, tuple) or len(index) != 3 or not _is_marked(index[0]) or x.dim() < 3:
        return None
    rows, m, n = index
    if not all(chosen.is_number(k) and k.dim() == rows.dim() == 1 for k in (m, n)):
        return None
    high, wide = x.shape[1:3]
    m, n = chosen.from_the_end(m, high), chosen.from_the_end(n, wide)
    place, inside = m * wide + n, (m >= 0) & (m < high) & (n >= 0) & (n < wide)
    nobodys = torch.full_like(place, high * wide)
    return x.flatten(1, 2), (rows, torch.where(inside, place, nobodys))


def _get_item(x: Tensor, index: Any) -> Any:
    if (joined := _joined(x, index)) is not None:
        x, index = joined
    here = _own(x, index)
    if here is not None and x.is_floating_point():
        units = x if here.dim() == 2 else x.unsqueeze(1)
        return chosen.or_nan(here, where(_wide(here, x), units, 0.0).sum(here.dim() - 1))
    rows: Any = index[0] if isinstance(index, tuple) else None
    if _is_marked(rows) and rows.dim() == 1 and type(index[1]) is int:
        return x[(slice(None), *index[1:])]
    if _is_marked(x) and x.dim() == 1 and _is_behind(index):
        return _marked(x[index])
    return chosen.get_item(x, index)


def _is_behind(index: Any) -> bool:
    """Whether an index adds an axis behind another, and nothing else."""
    if not isinstance(index, tuple) or len(index) != 2 or index[1] is not None:
        return False
    whole = index[0]
    return whole is Ellipsis or (isinstance(whole, slice) and whole == slice(None))


def _set_item(x: Tensor, index: Any, value: Any) -> None:
    """Of several values for one unit the last stays, as with torch on a CPU."""
    if type(value) is picked.Picked:
        picked.put(x, index, value)
        return
    if (joined := _joined(x, index)) is not None:
        flat = joined[0].clone()
        _set_item(flat, joined[1], value)
        x.copy_(flat.view(x.shape))
        return
    here = _own(x, index)
    known = not isinstance(value, Tensor) or value.dtype == x.dtype
    if here is None or not known or (here.dim() == 3 and here.shape[1] > MOST):
        placed.set_item(x, index, value)
        return
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=x.dtype)
    if here.dim() == 2:
        value = value.expand(x.shape[0], *x.shape[2:]).unsqueeze(1)
        x.copy_(torch.where(_wide(here, x), value, x))
        return
    put, value = x, value.expand(*here.shape[:2], *x.shape[2:])
    for k in range(here.shape[1]):
        put = torch.where(_wide(here.select(1, k), x), value.narrow(1, k, 1), put)
    x.copy_(put)


def _index_put_(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    """The same by another name; or what every row adds to its own units."""
    index = tuple(indices)
    here = _own(x, index) if accumulate and values.dtype == x.dtype else None
    if not accumulate:
        _set_item(x, index, values)
    elif here is None or not x.is_floating_point():
        x.index_put_(index, values, accumulate=True)
    else:
        values = values.expand(*here.shape[:-1], *x.shape[2:]).unsqueeze(here.dim() - 1)
        put = where(_wide(here, x), values, 0.0)
        x.copy_(x + (put if here.dim() == 2 else put.sum(1)))
    return x


def _index_put(input: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Tensor:
    return _index_put_(input.clone(), indices, values, accumulate)


SPELT: dict[Any, Any] = {
    torch.arange: _arange,
    Tensor.index_put_: _index_put_,
    torch.index_put_: _index_put_,
    Tensor.index_put: as_torch(Tensor.index_put, _index_put),
    torch.index_put: as_torch(torch.index_put, _index_put),
    Tensor.__getitem__: _get_item,
    Tensor.__setitem__: _set_item,
} | {
    original: _as_column(original)
    for original in (
        *(Tensor.unsqueeze, torch.unsqueeze, Tensor.view, Tensor.reshape),
        *(Tensor.to, Tensor.long, Tensor.int),
    )
}
