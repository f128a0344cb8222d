"""Spellings: operations that may give their operand back, or a view of it.

Traced as one operation the result would be a copy, and a write to it would not reach the operand.
"""

from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.rows import as_torch


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.device, other.dtype)


def _several(*tensors: Any) -> Any:
    """The operands of a function that takes one tensor, several, or a sequence of them."""
    return tensors[0] if len(tensors) == 1 else tensors


def _at_least_1d(*tensors: Any) -> Any:
    given = _several(*tensors)
    if not isinstance(given, Tensor):
        return tuple(map(_at_least_1d, given))
    return given.view(given.shape or (1,))


def _at_least_2d(*tensors: Any) -> Any:
    given = _several(*tensors)
    if not isinstance(given, Tensor):
        return tuple(map(_at_least_2d, given))
    x = _at_least_1d(given)
    return x.unsqueeze(0) if x.dim() == 1 else x


def _at_least_3d(*tensors: Any) -> Any:
    given = _several(*tensors)
    if not isinstance(given, Tensor):
        return tuple(map(_at_least_3d, given))
    x = _at_least_2d(given)
    return x.unsqueeze(-1) if x.dim() == 2 else x


def _broadcast_tensors(*tensors: Tensor) -> Any:
    shape = torch.broadcast_tensors(*tensors)[0].shape
    return tuple(x.expand(shape) for x in tensors)


def _squeezed(original: Any) -> Any:
    """Torch's own; of one row, and of one alone, it drops the batch, which nobody means."""

    def squeeze(input: Tensor, dim: Any = None) -> Tensor:
        rank = input.dim()
        dims = range(rank) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
        if any(-rank <= d < rank and isinstance(input.shape[d], torch.SymInt) for d in dims):
            raise refused(
                "squeeze",
                "of one row it would drop the batch, too; squeeze(dim) says which axis is meant",
            )
        return original(input) if dim is None else original(input, dim)

    return as_torch(original, squeeze)


SPELT: dict[Any, Any] = {
    torch.squeeze: _squeezed(torch.squeeze),
    Tensor.squeeze: _squeezed(Tensor.squeeze),
    Tensor.squeeze_: _squeezed(Tensor.squeeze_),
    Tensor.type_as: as_torch(Tensor.type_as, _type_as),
    torch.atleast_1d: _at_least_1d,
    torch.atleast_2d: _at_least_2d,
    torch.atleast_3d: _at_least_3d,
    torch.broadcast_tensors: _broadcast_tensors,
}
