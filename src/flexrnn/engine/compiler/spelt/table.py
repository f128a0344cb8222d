"""The table of spellings, and those that are a few lines each."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt import (
    attention,
    chosen,
    complexes,
    composed,
    convolved,
    counted,
    einsums,
    function,
    inner,
    itself,
    losses,
    mapped,
    matrices,
    normed,
    owned,
    padded,
    picked,
    placed,
    pooled,
    quantiles,
    ranked,
    running,
    solved,
    stacked,
    transformed,
    unsaid,
)
from flexrnn.engine.compiler.spelt.rows import drawn, is_of_rows


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Torch's cannot stretch its operands where the batch has no number."""
    given = (input, end, weight) if isinstance(weight, Tensor) else (input, end)
    begin, end, *rest = torch.broadcast_tensors(*given)
    return torch.lerp(begin, end, *rest or [weight])


def _fill_diagonal(x: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """Torch's has no form that writes nowhere."""
    if wrap or x.dim() != 2:
        return x.fill_diagonal_(fill_value, wrap)
    x.diagonal().copy_(torch.full((), fill_value, dtype=x.dtype))
    return x


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Torch asks for the number of elements, which has no value here."""
    return drawn("dropout") if training and p else input


def _torchs_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(input, p, train)


def _gumbel_softmax(*args: Any, **kwargs: Any) -> Tensor:
    return drawn("gumbel_softmax")


def _other_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _dropout(input, p, training)


def _tensor(data: Any, **options: Any) -> Tensor:
    """A number that is made a tensor inside the step; any other would be a tensor from nowhere."""
    if isinstance(data, (bool, int, float)):
        dtype = options.pop("dtype", None)
        kind = torch.result_type(data, data) if dtype is None else dtype
        return torch.full((), data, dtype=kind, **options)
    return torch.tensor(data, **options)


def _in_place(of: Any) -> Any:
    """Torch's has no form that writes nowhere."""

    def write(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.copy_(of(x, *args, **kwargs))

    return write


def _len(x: Tensor) -> int:
    """Python wants a number."""
    if is_of_rows(x):
        raise refused(
            "len",
            "the batch size has no number here, and Python wants one; shape[0] would do",
        )
    return len(x)


_SPELT: dict[Any, Any] = {
    Tensor.__len__: _len,
    vars(Tensor.__base__)["data"].__get__: Tensor.detach,
    torch.tensor: _tensor,
    Tensor.fill_diagonal_: _fill_diagonal,
    F.hardtanh_: _in_place(F.hardtanh),
    torch.threshold_: _in_place(torch.threshold),
    torch.selu_: _in_place(torch.selu),
    torch.rrelu_: _in_place(torch.rrelu),
    Tensor.__iand__: _in_place(torch.bitwise_and),
    Tensor.__ior__: _in_place(torch.bitwise_or),
    Tensor.__ixor__: _in_place(torch.bitwise_xor),
    torch.dropout: _torchs_dropout,
    F.dropout: _dropout,
    F.alpha_dropout: _other_dropout,
    F.feature_alpha_dropout: _other_dropout,
    torch.lerp: _lerp,
    Tensor.lerp: _lerp,
    F.gumbel_softmax: _gumbel_softmax,
}
RESPELT: dict[Any, Any] = {
    **attention.SPELT,
    **chosen.SPELT,
    **complexes.SPELT,
    **composed.SPELT,
    **convolved.SPELT,
    **counted.SPELT,
    **function.SPELT,
    **inner.SPELT,
    **itself.SPELT,
    **losses.SPELT,
    **mapped.SPELT,
    **einsums.SPELT,
    **matrices.SPELT,
    **normed.SPELT,
    **placed.SPELT,
    **owned.SPELT,  # which gives others' items back
    **padded.SPELT,
    **picked.SPELT,
    **pooled.SPELT,
    **quantiles.SPELT,
    **ranked.SPELT,
    **running.SPELT,
    **solved.SPELT,
    **stacked.SPELT,
    **transformed.SPELT,
    **unsaid.SPELT,
    **_SPELT,
}
