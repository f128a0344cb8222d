"""Spellings: attention, of rows that have queries, keys and values of their own."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.matrices import linear
from flexrnn.engine.compiler.spelt.rows import as_torch, drawn, is_of_rows, where


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
        return drawn("scaled_dot_product_attention")
    sizes = (query.shape[-2], key.shape[-2])
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(sizes, dtype=torch.bool, device=query.device).tril()
        is_causal = False
    own = is_of_rows(query) and query.dim() == key.dim() == value.dim() > 2
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
    scores = _scores(scaled, key)
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:  # where nothing is chosen there is 0, and no number that is none on the way to it
        masked = attn_mask.dtype == torch.bool
        scores = where(attn_mask, scores, -math.inf) if masked else scores + attn_mask
        chosen = scores != -math.inf
        some = where(chosen, scores, torch.finfo(scores.dtype).min / 2)
        weights = where(chosen, some.softmax(-1), 0.0)
    return _mixed(weights, value)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return (query.unsqueeze(-2) * key.unsqueeze(-3)).sum(-1)


def _mixed(weights: Tensor, value: Tensor) -> Tensor:
    return (weights.unsqueeze(-1) * value.unsqueeze(-3)).sum(-2)


def _multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Torch's, `(L, B, E)`, joins rows and heads. `nn.MultiheadAttention` comes by here."""
    if dropout_p and training:
        drawn("multi_head_attention_forward")
    rows = [x.transpose(0, 1) for x in (query, key, value) if x.dim() == 3]
    more = (bias_k, bias_v, static_k, static_v)
    if (
        len(rows) < 3
        or not all(map(is_of_rows, rows))
        or any(x is not None for x in more)
        or add_zero_attn
        or (attn_mask is not None and attn_mask.dim() != 2)
    ):
        raise refused(
            "multi_head_attention_forward",
            "it takes more than queries, keys and values of rows of the batch",
        )
    weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        linear(x, w, b).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, w, b in zip(rows, weights, biases, strict=True)
    )
    mask = _added(attn_mask, q.dtype)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q.dtype)[:, None, None]
        mask = padding if mask is None else mask + padding
    if need_weights:  # which are nan where nothing is chosen, and so is what they weigh
        scores = _scores(q * q.shape[-1] ** -0.5, k)
        chosen = (scores if mask is None else scores + mask).softmax(-1)
        mixed = _mixed(chosen, v)
        told = chosen.mean(1) if average_attn_weights else chosen
    else:
        mixed, told = _attention(q, k, v, mask), None
    y = linear(mixed.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    return y.transpose(0, 1), told


def _added(mask: Tensor | None, dtype: torch.dtype) -> Any:
    """A mask as it is added to scores; of truth values those that are True are closed."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    closed, zero = (torch.full((), number, dtype=dtype) for number in (-math.inf, 0.0))
    return torch.where(mask, closed, zero)


SPELT: dict[Any, Any] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: as_torch(F.multi_head_attention_forward, _multi_head),
}
