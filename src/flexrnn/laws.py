"""Torch's random functions, made of standard numbers that somebody else draws.

Each takes `answer(law, size, dtype, device, probability)`, which gives independent numbers of a
law ("normal", "uniform", "exponential", or "kept": true with a probability) or nothing, and then
what the function of torch's takes. Its result is None where there are no numbers, or where it is
asked for more than this.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Answer = Callable[..., Tensor | None]
Law = Callable[..., Tensor | None]


def _like(law: str) -> Law:
    """`randn_like` and its kin."""

    def spelt(answer: Answer, input: Tensor, **kwargs: Any) -> Tensor | None:
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        if _odd(kwargs):
            return None
        return answer(law, input.shape, dtype or input.dtype, device or input.device)

    return spelt


def _new(law: str) -> Law:
    """`randn` and its kin."""

    def spelt(answer: Answer, *size: Any, **kwargs: Any) -> Tensor | None:
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        size = kwargs.pop("size", size)
        if _odd(kwargs):
            return None
        shape = size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size
        return answer(
            law, shape, dtype or torch.get_default_dtype(), device or torch.get_default_device()
        )

    return spelt


def _odd(options: dict[str, Any]) -> bool:
    """Whether anything is asked for that changes which numbers come, or what is kept of them."""
    return any(
        value is not torch.strided and value
        for name, value in options.items()
        if name != "memory_format"
    )


def _normal(
    answer: Answer, mean: Any = 0.0, std: Any = 1.0, size: Any = None, **kwargs: Any
) -> Tensor | None:
    """`torch.normal`, through which no gradient passes."""
    dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
    if _odd(kwargs) or _below(std, 0):
        return None
    given = [t for t in (mean, std) if isinstance(t, Tensor)]
    if given:
        size = torch.broadcast_shapes(*(t.shape for t in given))
        dtype, device = given[0].dtype, given[0].device
    numbers = answer(
        "normal",
        size,
        dtype or torch.get_default_dtype(),
        device or torch.get_default_device(),
    )
    if numbers is None:
        return None
    mean, std = (t.detach() if isinstance(t, Tensor) else t for t in (mean, std))
    return mean + std * numbers


def _below(number: Any, least: float) -> bool:
    """Whether it is a number that torch refuses; a program does not look into tensors."""
    return not isinstance(number, Tensor) and number < least


def _bernoulli(answer: Answer, input: Tensor, p: Any = None, **kwargs: Any) -> Tensor | None:
    """`torch.bernoulli`: the input holds probabilities, or p is one."""
    if _odd(kwargs):
        return None
    if p is None or isinstance(p, Tensor):
        chance = input if p is None else p
        numbers = answer("uniform", input.shape, chance.dtype, input.device)
        return None if numbers is None else (numbers < chance).to(input.dtype)
    if not 0 <= p <= 1:
        return None
    numbers = answer("kept", input.shape, torch.bool, input.device, float(p))
    return None if numbers is None else numbers.to(input.dtype)


def _bernoulli_(answer: Answer, input: Tensor, p: Any = 0.5, **kwargs: Any) -> Tensor | None:
    numbers = _bernoulli(answer, input, p, **kwargs)
    return None if numbers is None else input.copy_(numbers)


def _normal_(
    answer: Answer, input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None
) -> Tensor | None:
    if generator is not None or _below(std, 0):
        return None
    numbers = answer("normal", input.shape, input.dtype, input.device)
    return None if numbers is None else input.copy_(mean + std * numbers)


def _uniform_(
    answer: Answer, input: Tensor, *ends: float, generator: Any = None, **named: float
) -> Tensor | None:
    """One of the ends has a name that Python keeps for itself, `from`."""
    begin, end = (*ends, *(0.0, 1.0)[len(ends) :])
    begin, end = named.pop("from", begin), named.pop("to", end)
    if generator is not None or named or begin > end:
        return None
    numbers = answer("uniform", input.shape, input.dtype, input.device)
    return None if numbers is None else input.copy_(begin + (end - begin) * numbers)


def _exponential_(
    answer: Answer, input: Tensor, lambd: float = 1.0, *, generator: Any = None
) -> Tensor | None:
    if generator is not None or lambd <= 0:
        return None
    numbers = answer("exponential", input.shape, input.dtype, input.device)
    return None if numbers is None else input.copy_(numbers / lambd)


def _log_normal_(
    answer: Answer, input: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Any = None
) -> Tensor | None:
    if generator is not None or std <= 0:
        return None
    numbers = answer("normal", input.shape, input.dtype, input.device)
    return None if numbers is None else input.copy_((mean + std * numbers).exp())


def _cauchy_(
    answer: Answer, input: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None
) -> Tensor | None:
    if generator is not None or sigma <= 0:
        return None
    numbers = answer("uniform", input.shape, input.dtype, input.device)
    if numbers is None:
        return None
    return input.copy_(median + sigma * (math.pi * (numbers - 0.5)).tan())


def _geometric_(answer: Answer, input: Tensor, p: float, *, generator: Any = None) -> Tensor | None:
    """How many trials it takes: so many wholes has an exponential number begun."""
    if generator is not None or not 0 < p < 1:
        return None
    numbers = answer("exponential", input.shape, torch.float64, input.device)
    return None if numbers is None else input.copy_((numbers / -math.log1p(-p)).ceil())


def _dropout(
    answer: Answer, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    """What stays is larger by 1/(1 − p); what goes is chosen, for 0 · inf is NaN."""
    if not training or isinstance(p, Tensor) or not 0 < p < 1:
        return None
    kept = answer("kept", input.shape, torch.bool, input.device, 1 - p)
    if kept is None:
        return None
    result = torch.where(kept, input * (1 / (1 - p)), 0)
    return input.copy_(result) if inplace else result


def _torchs(law: Law) -> Law:
    """Torch's own form of a dropout, which has no defaults."""

    def spelt(answer: Answer, input: Tensor, p: float, train: bool) -> Tensor | None:
        return law(answer, input, p, train)

    return spelt


def _alpha_dropout(
    answer: Answer,
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    size: Any = None,
) -> Tensor | None:
    """Mean and variance stay what they were (Klambauer et al. 2017): what goes becomes −α."""
    if not training or isinstance(p, Tensor) or not 0 < p < 1:
        return None
    kept = answer("kept", input.shape if size is None else size, torch.bool, input.device, 1 - p)
    if kept is None:
        return None
    a = ((_ALPHA**2 * p + 1) * (1 - p)) ** -0.5
    result = torch.where(kept, a * input, -_ALPHA * a) + _ALPHA * a * p
    return input.copy_(result) if inplace else result


_ALPHA = 1.7580993408473766  # where a SELU ends: its scale times its alpha


def _dropout_of_channels(*ranks: int) -> Law:
    """`dropout1d` and its kin: all of a channel `(B, C, ...)` stays, or goes."""

    def spelt(
        answer: Answer, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor | None:
        if not training or not 0 < p < 1 or input.dim() not in ranks:
            return None
        size = (*input.shape[:2], *(1 for _ in input.shape[2:]))
        kept = answer("kept", size, torch.bool, input.device, 1 - p)
        if kept is None:
            return None
        result = torch.where(kept, input * (1 / (1 - p)), 0)
        return input.copy_(result) if inplace else result

    return spelt


def _feature_alpha_dropout(
    answer: Answer, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor | None:
    if input.dim() < 2:
        return None
    size = (*input.shape[:2], *(1 for _ in input.shape[2:]))
    return _alpha_dropout(answer, input, p, training, inplace, size=size)


def _rrelu(
    answer: Answer,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor | None:
    """A leaky ReLU whose slopes are drawn (Xu et al. 2015)."""
    if not training or lower > upper:
        return None
    numbers = answer("uniform", input.shape, input.dtype, input.device)
    if numbers is None:
        return None
    result = torch.where(input > 0, input, input * (lower + (upper - lower) * numbers))
    return input.copy_(result) if inplace else result


def _gumbel_softmax(
    answer: Answer,
    logits: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Tensor | None:
    """`gumbel_softmax` (Jang, Gu & Poole 2017), as torch computes it."""
    numbers = answer("exponential", logits.shape, logits.dtype, logits.device)
    if numbers is None:
        return None
    soft = ((logits - numbers.log()) / tau).softmax(dim)
    if not hard:
        return soft
    first = soft.argmax(dim, keepdim=True)
    shape = [1] * logits.dim()
    shape[dim] = logits.shape[dim]
    places = torch.arange(shape[dim], device=logits.device).view(shape)
    return (places == first).to(logits.dtype) - soft.detach() + soft


def _multinomial(
    answer: Answer, input: Tensor, num_samples: int, replacement: bool = False, **kwargs: Any
) -> Tensor | None:
    """One number of each row: whose exponential, as fast as it is probable, comes first."""
    if num_samples != 1 or input.dim() != 2 or _odd(kwargs):
        return None
    numbers = answer("exponential", input.shape, input.dtype, input.device)
    return None if numbers is None else (input.detach() / numbers).argmax(-1, keepdim=True)


DRAWING: dict[Any, Law] = {
    torch.randn_like: _like("normal"),
    torch.rand_like: _like("uniform"),
    torch.randn: _new("normal"),
    torch.rand: _new("uniform"),
    torch.normal: _normal,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.normal_: _normal_,
    Tensor.uniform_: _uniform_,
    Tensor.exponential_: _exponential_,
    Tensor.log_normal_: _log_normal_,
    Tensor.cauchy_: _cauchy_,
    Tensor.geometric_: _geometric_,
    functional.dropout: _dropout,
    torch.dropout: _torchs(_dropout),
    functional.dropout1d: _dropout_of_channels(3),
    functional.dropout2d: _dropout_of_channels(3, 4),
    functional.dropout3d: _dropout_of_channels(5),
    functional.alpha_dropout: _alpha_dropout,
    torch.alpha_dropout: _torchs(_alpha_dropout),
    functional.feature_alpha_dropout: _feature_alpha_dropout,
    torch.feature_alpha_dropout: _torchs(_feature_alpha_dropout),
    functional.rrelu: _rrelu,
    functional.gumbel_softmax: _gumbel_softmax,
}
