"""Spellings: products for which torch makes one axis of rows and heads, and counts the rows."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.matrices import are_many
from flexrnn.engine.compiler.spelt import columns
from flexrnn.engine.compiler.spelt.rows import (
    as_torch,
    has_rows,
    is_behind,
    is_of_rows,
)

# Products that a row may sum up where it multiplies matrices of its own: generated code goes
# through them unit by unit.
OWN = 8192


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Products that torch spells by copies of w, for each row or by rows and heads as one axis.

    `(K,)` or `(K, N)ᵀ` on the left of columns, `(B, ..., K)` times one w for all heads, and head by
    head `(B, G, 1, K)` times `(G, K, N)`, or `(B, G, M, K)` times `(B, G, K, N)`; `(B, K)`, or
    `(G, B, K)`, or `(B, 1, 1, K)`, times the weights of G gates, `(G, K, N)`;
    and one `(M, K)`, or one for each head, times `(B, G, K, N)`.
    """
    a, w = input, other
    if a.dim() > 3 and is_of_rows(a) and not has_rows(w) and w.dim() == a.dim():
        w = w.squeeze(0)  # what has one row has it for all
    if w.dim() > 3 and is_of_rows(w) and not has_rows(a) and a.dim() == w.dim():
        a = a.squeeze(0)
    if is_of_rows(w) and not has_rows(a) and a.dtype == w.dtype:
        made = _on_columns(a, w) if w.dim() > 3 or _is_graph(a, w) else None
        if made is not None:
            return made
    if w.dim() == 3 and not is_of_rows(w) and not is_behind(w):
        a = a.squeeze(0) if is_behind(a) and a.shape[0] == 1 and a.dim() == 3 else a
        if a.dim() == 2 and is_of_rows(a) and w.shape[-1] != 1:
            return torch.einsum("bk,gkn->gbn", a, w)
        if a.dim() == 3 and is_behind(a) and w.shape[0] in (1, a.shape[0]):
            return torch.bmm(a, w.expand(a.shape[0], -1, -1))
        if a.dim() == 4 and a.shape[1:3] == (1, 1):
            return torch.einsum("bk,gkn->bgn", a.squeeze(2).squeeze(1), w).unsqueeze(2)
    if a.dim() > 3 and w.dim() > 3 and is_of_rows(a) and is_of_rows(w):
        return _of_heads(a, w)
    if a.dim() == w.dim() == 3 and is_of_rows(a) and is_of_rows(w) and a.dtype == w.dtype:
        return torch.bmm(a, w)  # the matmul of torch 2.11 asks for the batch size
    if a.dim() == 1 and w.dim() == 2:  # torch's drops an axis in place
        return torch.matmul(w.T, a)
    if a.dim() == 2 and w.dim() == 3 and w.shape[-1] == 1:
        return torch.matmul(w.squeeze(-1), a.T).unsqueeze(-1)
    if a.dim() > 2 and w.dim() == 2:
        return by_heads(a, w)
    if a.dim() == 4 and a.shape[-2] == 1 and w.dim() == 3 and a.shape[1] == w.shape[0]:
        return torch.bmm(a.squeeze(-2).transpose(0, 1), w).transpose(0, 1).unsqueeze(-2)
    if a.dim() > 3 and w.dim() > 2 and is_of_rows(a) and not has_rows(w):
        made = _head_by_head(a, w.unsqueeze(-3))
        return torch.matmul(a, w) if made is None else made
    return torch.matmul(a, w)


def _head_by_head(a: Tensor, w: Tensor) -> Tensor | None:
    """`(B, ..., K)` times a weight `(..., K, N)` of each head; axes of heads stretch."""
    rank = a.dim() - 2
    if a.dtype != w.dtype or not 2 < w.dim() <= rank + 2 or a.shape[-1] != w.shape[-2]:
        return None
    sizes = (*(1 for _ in range(rank + 2 - w.dim())), *w.shape[:-2])
    pairs = [*zip(range(1, rank + 1), a.shape[1:-1], sizes, strict=True)]
    if any(m != n and 1 not in (m, n) for _, m, n in pairs):
        return None
    shared = [k for k, m, n in pairs if m == n != 1]
    own, other = [k for k, _, n in pairs if n == 1], [k for k, m, n in pairs if m == 1 != n]
    weight = w.reshape(*sizes, *w.shape[-2:])
    weight = weight.permute(*(k - 1 for k in (*shared, *own, rank + 1, *other, rank + 2)))
    rows = a.permute(0, *shared, *own, *other, rank + 1)
    heads = [a.shape[k] for k in shared]
    rows = rows.reshape(a.shape[0], math.prod(heads), -1, a.shape[-1])
    y = by_groups(rows, weight.reshape(rows.shape[1], a.shape[-1], -1))
    new = [sizes[k - 1] for k in other]
    y = y.reshape(a.shape[0], *heads, *(a.shape[k] for k in own), *new, w.shape[-1])
    order = [0, *shared, *own, *other, rank + 1]
    return y.permute([order.index(k) for k in range(len(order))])


def by_groups(rows: Tensor, weight: Tensor) -> Tensor:
    """`(B, G, M, K)` times `(G, K, N)`: the weight of a group is for all that it has."""
    _, groups, m, k = rows.shape
    if groups == 1:
        return by_heads(rows, weight.squeeze(0))
    if m > 1:
        weight = weight.unsqueeze(1).expand(-1, m, -1, -1).reshape(groups * m, k, -1)
    y = torch.bmm(rows.flatten(1, 2).transpose(0, 1), weight).transpose(0, 1)
    return y.unflatten(1, (groups, m))


def _is_graph(a: Tensor, w: Tensor) -> bool:
    """Whether this is one `(M, K)` times `(B, K, N)`: of a graph what all nodes have."""
    return a.dim() == 2 and w.dim() == 3 and w.shape[2] > 1


def _on_columns(a: Tensor, w: Tensor) -> Tensor | None:
    """One `(M, K)` for all heads, or `(G, M, K)`, on the left of `(B, G, K, N)`.

    It lies as torch's would, for whoever views it.
    """
    if a.dim() == 2 and a.shape[1] == w.shape[-2]:
        columns_last = w.transpose(-1, -2)  # (B, ..., N, K)
        return by_heads(columns_last, a.T).transpose(-1, -2).contiguous()
    single = a.dim() == 3 and w.dim() == 4 and w.shape[-1] == 1 and a.shape[2] == w.shape[2]
    if not single or w.shape[1] not in (1, a.shape[0]):
        made = _head_by_head(w.mT, a.mT.unsqueeze(-3)) if a.dim() > 2 else None
        return None if made is None else made.mT.contiguous()
    rows = w.squeeze(-1)  # (B, G, K), or (B, 1, K)
    if rows.shape[1] == 1:
        return torch.einsum("bk,gmk->bgm", rows.squeeze(1), a).unsqueeze(-1).contiguous()
    product = torch.bmm(rows.transpose(0, 1), a.transpose(1, 2)).transpose(0, 1)
    return product.unsqueeze(-1).contiguous()


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """Torch's asks for all sizes to find the best order; of rows it is the given one."""
    return reduce(matmul, tensors)


def by_heads(a: Tensor, w: Tensor) -> Tensor:
    """`(B, ..., K)` times one `(K, N)`; it lies as torch's would, for whoever views it."""
    product = columns.by_heads(a.flatten(1, -2), w).contiguous()
    return product.unflatten(1, a.shape[1:-1])


def _of_heads(a: Tensor, w: Tensor) -> Tensor:
    """Matrices of every row and head, `(B, G, M, K)` times `(B, G, K, N)`."""
    (*_, m, k), (*heads, other, n) = a.shape, w.shape
    small = min(m, k, n) == 1 or math.prod(heads[1:]) * m * k * n <= OWN
    if k != other or a.dtype != w.dtype or not small or are_many(m, k, n):
        return torch.matmul(a, w)  # or it says what is wrong
    if k == 1:
        return a * w
    if n == 1:
        return (a * w.transpose(-1, -2)).sum(-1, keepdim=True)
    return (a.unsqueeze(-1) * w.unsqueeze(-3)).sum(-2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: of `(B, ..., I)` torch makes rows and heads one axis."""
    if input.dim() < 3:
        return F.linear(input, weight, bias)
    y = matmul(input, weight.T)
    return y if bias is None else y + bias


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's is not written down. `(B, I)`, `(B, J)` and `(N, I, J)`: a product, and N sums."""
    n, *sizes = weight.shape
    fits = sizes == [input1.shape[-1], input2.shape[-1]] and (bias is None or bias.shape == (n,))
    if not (fits and is_of_rows(input1) and input1.dim() == input2.dim() == 2):
        return F.bilinear(input1, input2, weight, bias)
    products = (input1 @ weight.transpose(0, 1).flatten(1)).unflatten(1, (n, sizes[1]))
    y = (products * input2.unsqueeze(1)).sum(-1)
    return y if bias is None else y + bias


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2, out: None = None) -> Tensor:
    """Torch's puts what is left of the second behind the first, and so the batch."""
    listed = isinstance(dims, (list, tuple)) and len(dims) == 2
    swaps = listed and all(isinstance(part, (list, tuple)) for part in dims)
    if not swaps or out is not None or not is_of_rows(b) or has_rows(a):
        return _TENSORDOT(a, b, dims, out=out)
    made = _TENSORDOT(b, a, (dims[1], dims[0]))
    left = b.dim() - len(dims[1])
    return made.permute(*range(left, made.dim()), *range(left))


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """Torch's is not written down: of every pair the norm of a difference."""
    if x1.dim() < 2 or x2.dim() < 2 or not 0 < p < math.inf:
        return torch.cdist(x1, x2, p)
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _kron(input: Tensor, other: Tensor) -> Tensor:
    """Of rows and of what is the same for all, `(1, ...)`; torch makes sizes one, the batch's, too.

    Rows and rows would be every one with every other.
    """
    rows, one = (input, other) if is_of_rows(input) else (other, input)
    one = one.view(*(1 for _ in range(rows.dim() - one.dim())), *one.shape)
    if not is_of_rows(rows) or has_rows(one) or rows.dim() != one.dim() or one.shape[0] != 1:
        return torch.kron(input, other)
    rank, first = rows.dim(), rows is input
    for axis in range(1, rank):  # each becomes two, of which one has a single place
        at = 2 * axis - 1
        rows, one = rows.unsqueeze(at + first), one.unsqueeze(at + (not first))
    y = rows * one
    for axis in range(1, rank):
        y = y.flatten(axis, axis + 1)
    return y


def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Torch's cannot stretch the first where the batch has no number."""
    product = alpha * torch.bmm(batch1, batch2)
    return beta * input + product if beta else product  # torch does not look at it then


_TENSORDOT: Any = torch.tensordot  # whose `dims` torch says to be a number
SPELT: dict[Any, Any] = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), matmul),
    torch.tensordot: as_torch(torch.tensordot, _tensordot),
    torch.baddbmm: _baddbmm,
    torch.linalg.multi_dot: as_torch(torch.linalg.multi_dot, _multi_dot),
    torch.cdist: _cdist,
    F.linear: linear,
    F.bilinear: _bilinear,
    **dict.fromkeys((torch.kron, Tensor.kron), as_torch(torch.kron, _kron)),
}
if hasattr(torch, "chain_matmul"):  # torch has said that it will go
    SPELT[torch.chain_matmul] = lambda *matrices: _multi_dot(matrices)
