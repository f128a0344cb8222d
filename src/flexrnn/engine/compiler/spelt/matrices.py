"""Spellings: products for which torch makes one axis of rows and heads, and counts the rows."""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations, permutations
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.cuts import are_many
from flexrnn.engine.compiler.spelt import columns
from flexrnn.engine.compiler.spelt.rows import (
    as_torch,
    batch_first,
    has_rows,
    is_behind,
    is_of_rows,
)

# Products that a row may sum up where it multiplies matrices of its own: generated code goes
# through them unit by unit.
_OWN = 8192
_LABELS = 5  # of an einsum whose orders are compared, all of them


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
        return _by_heads(a, w)
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
    y = _by_groups(rows, weight.reshape(rows.shape[1], a.shape[-1], -1))
    new = [sizes[k - 1] for k in other]
    y = y.reshape(a.shape[0], *heads, *(a.shape[k] for k in own), *new, w.shape[-1])
    order = [0, *shared, *own, *other, rank + 1]
    return y.permute([order.index(k) for k in range(len(order))])


def _by_groups(rows: Tensor, weight: Tensor) -> Tensor:
    """`(B, G, M, K)` times `(G, K, N)`: the weight of a group is for all that it has."""
    _, groups, m, k = rows.shape
    if groups == 1:
        return _by_heads(rows, weight.squeeze(0))
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
        return _by_heads(columns_last, a.T).transpose(-1, -2).contiguous()
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


def _by_heads(a: Tensor, w: Tensor) -> Tensor:
    """`(B, ..., K)` times one `(K, N)`; it lies as torch's would, for whoever views it."""
    product = columns.by_heads(a.flatten(1, -2), w).contiguous()
    return product.unflatten(1, a.shape[1:-1])


def _of_heads(a: Tensor, w: Tensor) -> Tensor:
    """Matrices of every row and head, `(B, G, M, K)` times `(B, G, K, N)`."""
    (*_, m, k), (*heads, other, n) = a.shape, w.shape
    small = min(m, k, n) == 1 or math.prod(heads[1:]) * m * k * n <= _OWN
    if k != other or a.dtype != w.dtype or not small or are_many(m, k, n):
        return torch.matmul(a, w)  # or it says what is wrong
    if k == 1:
        return a * w
    if n == 1:
        return (a * w.transpose(-1, -2)).sum(-1, keepdim=True)
    return (a.unsqueeze(-1) * w.unsqueeze(-3)).sum(-2)


def _einsum(equation: Any, *operands: Any) -> Tensor:
    """Torch makes one axis of all that operands and result share: of rows and heads, too."""
    if not isinstance(equation, str):
        return torch.einsum(equation, *operands)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = (*operands[0],)
    equation = _without_dots(equation, operands)
    read, arrow, result = equation.replace(" ", "").partition("->")
    labels = read.split(",")
    if arrow and len(labels) == len(operands):
        labels, operands = batch_first(labels, operands, result)
        read = ",".join(labels)
        equation = f"{read}->{result}"
    if arrow and read.isalpha() and sorted({*read}) == sorted(read) == sorted(result):
        return operands[0].permute([read.index(label) for label in result])
    if arrow and (pair := _pair(labels, operands, result)) is not None:  # which is a product
        rest = [k for k in range(len(labels)) if k not in pair]
        wanted = result + "".join(labels[k] for k in rest)
        own = dict.fromkeys("".join(labels[k] for k in pair))
        left = "".join(label for label in own if label in wanted)
        read = ",".join(labels[k] for k in pair)
        made = _einsum(f"{read}->{left}", *(operands[k] for k in pair))
        read = ",".join([left, *(labels[k] for k in rest)])
        return _einsum(f"{read}->{result}", made, *(operands[k] for k in rest))
    if arrow and (shared := _shared(labels, operands, result)) is not None:
        return shared
    if arrow and (grouped := _grouped(labels, operands, result)) is not None:
        return grouped
    summed = "".join(dict.fromkeys(label for label in "".join(labels) if label not in result))
    if not arrow or not summed or not _is_of_heads(labels, operands, result):
        return torch.einsum(equation, *operands)
    if _is_of_matrices(labels, operands, result):
        return torch.einsum(equation, *operands)
    order, product = _quietest(labels, operands, result, summed), None
    for own, x in zip(labels, operands, strict=True):
        x = x.permute([own.index(label) for label in order if label in own])
        x = x[tuple(slice(None) if label in own else None for label in order)]
        product = x if product is None else product * x
    assert product is not None
    found = product.sum([order.index(label) for label in summed])
    left = [label for label in order if label in result]
    return found.permute([left.index(label) for label in result])


def _is_of_matrices(labels: Sequence[str], operands: Sequence[Tensor], result: str) -> bool:
    """Whether these are two matrices of every head, not small ones."""
    if len(labels) != 2:
        return False
    one, other = labels
    size = dict(zip(one + other, (*operands[0].shape, *operands[1].shape), strict=True))
    left = [size[label] for label in one if label not in other]
    right = [size[label] for label in other if label not in one]
    inner = [size[label] for label in one if label in other and label not in result]
    return bool(left and right and inner) and are_many(*map(math.prod, (left, inner, right)))


def _quietest(
    labels: Sequence[str], operands: Sequence[Tensor], result: str, summed: str
) -> Sequence[str]:
    """An order of all labels, the batch first, in which the fewest numbers have to move."""
    sizes: dict[str, int] = {}
    for own, x in zip(labels, operands, strict=True):
        for label, size in zip(own[1:], x.shape[1:], strict=True):  # 1 where it is stretched
            sizes[label] = max(size, sizes.get(label, 1))
    as_given = (*result[1:], *summed)
    if len(as_given) > _LABELS:
        return (result[0], *as_given)

    def moved(order: Sequence[str]) -> int:
        total = 0
        for own in (*labels, result):
            wide = [label for label in own[1:] if sizes[label] != 1]
            if wide != [label for label in order if label in wide]:
                total += math.prod(sizes[label] for label in wide)
        return total

    return (result[0], *min((as_given, *permutations(as_given)), key=moved))


def _pair(labels: Sequence[str], operands: Sequence[Any], result: str) -> tuple[int, int] | None:
    """Of more than two the first of rows and the first weight that share what they sum up.

    One weight may share any label; several are multiplied one after another, or with one another.
    """
    several = len(labels) == len(operands) > 2 and "." not in "".join(labels)
    if not several or not all(isinstance(x, Tensor) for x in operands):
        return None
    weights = [k for k, x in enumerate(operands) if not is_of_rows(x)]
    rows = [k for k in range(len(labels)) if k not in weights]

    def shared(k: int, w: int) -> set[str]:
        both = {*labels[k]} & {*labels[w]}
        rest = "".join(labels[n] for n in range(len(labels)) if n not in (k, w))
        return both if len(weights) == 1 else both - {*result, *rest}

    found = next(((k, w) for w in weights for k in rows if shared(k, w)), None)
    pairs = combinations(weights, 2) if rows else ()
    return found or next((pair for pair in pairs if {*labels[pair[0]]} & {*labels[pair[1]]}), None)


def _without_dots(equation: str, operands: Sequence[Any]) -> str:
    """An equation with a label for each axis for which it has three dots."""
    read, arrow, result = equation.replace(" ", "").partition("->")
    labels = read.split(",")
    tensors = len(labels) == len(operands) and all(isinstance(x, Tensor) for x in operands)
    if not tensors or not arrow or any(own.count(".") not in (0, 3) for own in (*labels, result)):
        return equation
    free = [label for label in ascii_letters if label not in equation]
    counts = [x.dim() - len(own) + 3 for own, x in zip(labels, operands, strict=True) if "." in own]
    most = max(counts, default=0)
    if not counts or min(counts) < 0 or most > len(free):
        return equation
    axes = "".join(free[:most])
    for k, (own, x) in enumerate(zip(labels, operands, strict=True)):
        last = most - (x.dim() - len(own) + 3)
        labels[k] = own.replace("...", axes[last:])
    return f"{','.join(labels)}->{result.replace('...', axes)}"


def _shared(labels: Sequence[str], operands: Sequence[Any], result: str) -> Tensor | None:
    """An einsum of rows and of one weight for all that it leaves of them: `bjc,ij->bic`."""
    if len(labels) != 2 or len(operands) != 2 or not all(isinstance(x, Tensor) for x in operands):
        return None
    (own, x), (other, w) = sorted(
        zip(labels, operands, strict=True), key=lambda pair: not is_of_rows(pair[1])
    )
    pairs = ((own, x), (other, w))
    if any(not len({*names}) == len(names) == tensor.dim() for names, tensor in pairs):
        return None
    if not is_of_rows(x) or is_of_rows(w) or x.dtype != w.dtype:
        return None
    if own[:1] != result[:1] or own[:1] in other or len({*result}) < len(result) or "." in own:
        return None
    kept = [label for label in own if label in result]
    summed = [label for label in own if label not in result]
    new = [label for label in other if label not in summed]
    if len(kept + summed) < 3 or not summed or {*kept, *new} != {*result} or {*kept} & {*other}:
        return None
    if not {*summed} <= {*other} or any(
        x.shape[own.index(label)] != w.shape[other.index(label)] for label in summed
    ):  # one of them may be stretched
        return None
    rows = x.permute([own.index(label) for label in (*kept, *summed)]).flatten(len(kept))
    weight = w.permute([other.index(label) for label in (*summed, *new)])
    weight = weight.reshape(rows.shape[-1], -1)
    sizes = [w.shape[other.index(label)] for label in new]
    product = _by_heads(rows, weight) if len(kept) > 1 else rows @ weight
    product = product.unflatten(-1, sizes) if new else product.squeeze(-1)
    names = [*kept, *new]
    return product.permute([names.index(label) for label in result])


def _grouped(labels: Sequence[str], operands: Sequence[Any], result: str) -> Tensor | None:
    """An einsum of rows and of one weight for each group: `bnki,nkio->bno`.

    Torch makes one axis of several that are summed, and so do we, but not of the batch.
    """
    if len(labels) != 2 or len(operands) != 2 or not all(isinstance(x, Tensor) for x in operands):
        return None
    (own, x), (other, w) = sorted(
        zip(labels, operands, strict=True), key=lambda pair: not is_of_rows(pair[1])
    )
    if any(
        not len({*names}) == len(names) == tensor.dim() for names, tensor in ((own, x), (other, w))
    ):
        return None
    if len({*result}) < len(result) or "." in own + other:
        return None
    if not is_of_rows(x) or has_rows(w) or x.dtype != w.dtype:
        return None
    summed = [label for label in own if label not in result]
    groups = [label for label in own[1:] if label in result and label in other]
    left = [label for label in own[1:] if label in result and label not in other]
    new = [label for label in other if label not in own]
    if own[:1] != result[:1] or own[:1] in other or not groups:
        return None
    if not summed or (len(summed) == 1 and not left):
        return None  # torch's own does
    if not {*summed, *groups} <= {*other} or {*own[:1], *groups, *left, *new} != {*result}:
        return None
    if any(x.shape[own.index(k)] != w.shape[other.index(k)] for k in (*summed, *groups)):
        return None  # one of them may be stretched
    rows = x.permute([own.index(k) for k in (own[0], *groups, *left, *summed)])
    heads, lefts = ([x.shape[own.index(k)] for k in part] for part in (groups, left))
    rows = rows.flatten(1 + len(groups + left)).flatten(1, len(groups))
    rows = rows.flatten(2, -2) if left else rows.unsqueeze(2)  # (B, G, M, K)
    weight = w.permute([other.index(k) for k in (*groups, *summed, *new)])
    sizes = [w.shape[other.index(k)] for k in new]
    weight = weight.reshape(rows.shape[1], rows.shape[3], math.prod(sizes))
    product = _by_groups(rows, weight)
    product = product.reshape(x.shape[0], *heads, *lefts, *sizes)
    names = [own[0], *groups, *left, *new]
    return product.permute([names.index(label) for label in result])


def _is_of_heads(labels: Sequence[str], operands: Sequence[Tensor], result: str) -> bool:
    """Whether all operands of an einsum are of rows and share more, and are no large matrices."""
    by_rows = all(map(is_of_rows, operands)) and {own[:1] for own in labels} == {result[:1]}
    alike = len(labels) == len(operands) > 1 and len({x.dtype for x in operands}) == 1
    if not by_rows or not alike or len({*result}.intersection(*labels)) < 2:
        return False
    pairs = [*zip(labels, operands, strict=True)]
    if any(not len(own) == len({*own}) == x.dim() for own, x in pairs):
        return False
    if len({*result}) < len(result) or not {*result} <= {*"".join(labels)}:
        return False
    sizes: dict[str, int] = {}
    for own, x in pairs:
        sizes |= {label: n for label, n in zip(own[1:], x.shape[1:], strict=True) if n != 1}
    most = max(math.prod(x.shape[1:]) for x in operands)
    return math.prod(sizes.values()) <= max(most, _OWN)


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
    torch.einsum: _einsum,
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
