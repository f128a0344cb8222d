"""Spellings: what a person writes that torch would turn into what no longer says what was meant."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.functional import linear

from flexrnn.engine.compiler import chosen, columns
from flexrnn.engine.compiler.refusal import CannotCompileError, frames, users_line

# Products that a row may sum up where it multiplies matrices of its own: generated code goes
# through them unit by unit.
_OWN = 8192


def _where(condition: Tensor, *values: Any) -> Any:
    """A number would come as a tensor from nowhere."""
    if len(values) != 2:
        return torch.where(condition, *values)
    dtype = torch.result_type(*values)
    return torch.where(
        condition,
        *(v if isinstance(v, Tensor) else torch.full((), v, dtype=dtype) for v in values),
    )


def _matmul(a: Tensor, w: Tensor) -> Tensor:
    """Products that torch spells by copies of w, for each row or by rows and heads as one axis.

    `(K, N)ᵀ` on the left of a column, `(B, G, K)` times one w for all heads, and head by head
    `(B, G, 1, K)` times `(G, K, N)`, or `(B, G, M, K)` times `(B, G, K, N)`.
    """
    if a.dim() > 3 and w.dim() > 3 and columns.is_of_rows(a) and columns.is_of_rows(w):
        return _of_heads(a, w)
    if a.dim() == 2 and w.dim() == 3 and w.shape[-1] == 1:
        return torch.matmul(w.squeeze(-1), a.T).unsqueeze(-1)
    if a.dim() == 3 and w.dim() == 2:
        return columns.by_heads(a, w)
    if a.dim() == 4 and a.shape[-2] == 1 and w.dim() == 3:
        return torch.bmm(a.squeeze(-2).transpose(0, 1), w).transpose(0, 1).unsqueeze(-2)
    return torch.matmul(a, w)


def _of_heads(a: Tensor, w: Tensor) -> Tensor:
    """Matrices of every row and head, `(B, G, M, K)` times `(B, G, K, N)`."""
    (*_, m, k), (*heads, other, n) = a.shape, w.shape
    small = min(m, k, n) == 1 or math.prod(heads[1:]) * m * k * n <= _OWN
    if k != other or a.dtype != w.dtype or not small:
        return torch.matmul(a, w)  # which says what is wrong
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
    read, arrow, result = equation.replace(" ", "").partition("->")
    labels = read.split(",")
    summed = "".join(dict.fromkeys(label for label in "".join(labels) if label not in result))
    if not arrow or not summed or not _is_of_heads(labels, operands, result):
        return torch.einsum(equation, *operands)
    order, product = result + summed, None
    for own, x in zip(labels, operands, strict=True):
        x = x.permute([own.index(label) for label in order if label in own])
        x = x[tuple(slice(None) if label in own else None for label in order)]
        product = x if product is None else product * x
    assert product is not None
    return product.sum(tuple(range(len(result), len(order))))


def _is_of_heads(labels: Sequence[str], operands: Sequence[Tensor], result: str) -> bool:
    """Whether all operands of an einsum are of rows and share more, and are no large matrices."""
    by_rows = all(map(columns.is_of_rows, operands)) and {own[:1] for own in labels} == {result[:1]}
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


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Torch's asks for the batch size; rows have queries, keys and values of their own."""
    if dropout_p:
        return _drawn("scaled_dot_product_attention")
    sizes = (query.shape[-2], key.shape[-2])
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(sizes, dtype=torch.bool, device=query.device).tril()
        is_causal = False
    own = columns.is_of_rows(query) and query.dim() == key.dim() == value.dim() > 2
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    if attn_mask is not None:
        fits = fits and attn_mask.dtype in (torch.bool, query.dtype)
        pairs = zip(reversed(attn_mask.shape), reversed(sizes), strict=False)
        fits = fits and all(m in (1, n) for m, n in pairs)
    if not own or not fits or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(  # which says what is wrong
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (scaled.unsqueeze(-2) * key.unsqueeze(-3)).sum(-1)
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:  # where nothing is chosen there is 0, and no number that is none on the way to it
        masked = attn_mask.dtype == torch.bool
        scores = _where(attn_mask, scores, -math.inf) if masked else scores + attn_mask
        chosen = scores != -math.inf
        some = _where(chosen, scores, torch.finfo(scores.dtype).min / 2)
        weights = _where(chosen, some.softmax(-1), 0.0)
    return (weights.unsqueeze(-1) * value.unsqueeze(-3)).sum(-2)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of `(B, G, I)` torch makes rows and heads one axis."""
    if input.dim() != 3:
        return linear(input, weight, bias)
    y = _matmul(input, weight.T)
    return y if bias is None else y + bias


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Torch's is not written down. `(B, I)`, `(B, J)` and `(N, I, J)`: a product, and N sums."""
    n, *sizes = weight.shape
    fits = sizes == [input1.shape[-1], input2.shape[-1]] and (bias is None or bias.shape == (n,))
    if not (fits and columns.is_of_rows(input1) and input1.dim() == input2.dim() == 2):
        return F.bilinear(input1, input2, weight, bias)
    products = (input1 @ weight.transpose(0, 1).flatten(1)).unflatten(1, (n, sizes[1]))
    y = (products * input2.unsqueeze(1)).sum(-1)
    return y if bias is None else y + bias


def _baddbmm(y: Tensor, a: Tensor, w: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Torch's cannot stretch y where the batch has no number."""
    return beta * y + alpha * torch.bmm(a, w)


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Torch's cannot stretch its operands where the batch has no number."""
    given = (input, end, weight) if isinstance(weight, Tensor) else (input, end)
    begin, end, *rest = torch.broadcast_tensors(*given)
    return torch.lerp(begin, end, *rest or [weight])


def _pad(x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """Torch asks for the batch size, whatever axis is padded."""
    if mode != "constant" or any(pad[2 * x.dim() - 2 :]):
        return F.pad(x, pad, mode, value)
    for k, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.dim() - 1 - k
        x = x.narrow(axis, max(0, -before), x.shape[axis] + min(0, before) + min(0, after))
        sizes = [[n if i == axis else size for i, size in enumerate(x.shape)]
                 for n in (before, after)]  # fmt: skip
        ends = [[x.new_full(size, value or 0.0)] if size[axis] > 0 else [] for size in sizes]
        x = torch.cat([*ends[0], x, *ends[1]], axis)
    return x


def _rms_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Torch's writes in place where nobody rewrites it."""
    norms = [x.norm(dim=dim, keepdim=True).clamp(min=eps) for x in (a, b)]
    return (a / norms[0] * (b / norms[1])).sum(dim)


def _set_item(tensor: Tensor, index: Any, value: Any) -> None:
    """A number would come as a tensor from nowhere, and a mask as places without a number."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=tensor.dtype)
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape:
        tensor.copy_(torch.where(index, value, tensor))
    else:
        tensor[index] = value


def _fill_diagonal(x: Tensor, value: Any, wrap: bool = False) -> Tensor:
    """Torch's has no form that writes nowhere."""
    if wrap or x.dim() != 2:
        return x.fill_diagonal_(value, wrap)
    x.diagonal().copy_(torch.full((), value, dtype=x.dtype))
    return x


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Torch asks for the number of elements, which has no value here."""
    return _drawn("dropout") if training and p else x


def _drawn(name: str) -> Any:
    where = users_line(frames())
    raise CannotCompileError(f"{name} cannot be compiled: it draws random numbers, {where}")


def _gumbel_softmax(*args: Any, **kwargs: Any) -> Tensor:
    return _drawn("gumbel_softmax")


def _other_dropout(x: Tensor, p: float = 0.5, training: bool = False, *rest: Any) -> Tensor:
    return _dropout(x, p, training)


def _lstm_cell(x: Tensor, state: Any, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Any:
    """Torch's cells ask for the batch size, which has no value here."""
    h, c = state
    i, f, g, o = (linear(x, w, b) + linear(h, u, d)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
    x_r, x_z, x_n = linear(x, w, b).chunk(3, -1)
    h_r, h_z, h_n = linear(h, u, d).chunk(3, -1)
    z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return n + z * (h - n)


def _rnn_cell(activation: Any) -> Any:
    def cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
        return activation(linear(x, w, b) + linear(h, u, d))

    return cell


def _tensor(data: Any, **options: Any) -> Tensor:
    """A number that is made a tensor inside the step; any other would be a tensor from nowhere."""
    if isinstance(data, (bool, int, float)):
        dtype = options.pop("dtype", None)
        kind = torch.result_type(data, data) if dtype is None else dtype
        return torch.full((), data, dtype=kind, **options)
    return torch.tensor(data, **options)


def _len(x: Tensor) -> int:
    """Python wants a number."""
    if columns.is_of_rows(x):
        raise CannotCompileError(
            "len cannot be compiled: the batch size has no number here, and Python wants one; "
            f"shape[0] would do, {users_line(frames())}"
        )
    return len(x)


RESPELT: dict[Any, Any] = (
    columns.SPELT
    | chosen.SPELT
    | {
        Tensor.__len__: _len,
        torch.where: _where,
        Tensor.where: lambda x, condition, other: _where(condition, x, other),
        torch.matmul: _matmul,
        Tensor.matmul: _matmul,
        Tensor.__matmul__: _matmul,
        torch.einsum: _einsum,
        vars(Tensor.__base__)["data"].__get__: Tensor.detach,
        Tensor.__setitem__: _set_item,
        torch.rms_norm: _rms_norm,
        F.rms_norm: _rms_norm,
        torch.cosine_similarity: _cosine_similarity,
        torch.tensor: _tensor,
        Tensor.fill_diagonal_: _fill_diagonal,
        torch.dropout: lambda x, p, train: _dropout(x, p, train),
        F.dropout: _dropout,
        F.alpha_dropout: _other_dropout,
        F.feature_alpha_dropout: _other_dropout,
        torch.baddbmm: _baddbmm,
        torch.lerp: _lerp,
        Tensor.lerp: _lerp,
        F.linear: _linear,
        F.bilinear: _bilinear,
        F.gumbel_softmax: _gumbel_softmax,
        F.scaled_dot_product_attention: _attention,
        F.pad: _pad,
        torch.lstm_cell: _lstm_cell,
        torch.gru_cell: _gru_cell,
        torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
        torch.rnn_relu_cell: _rnn_cell(torch.relu),
    }
)
