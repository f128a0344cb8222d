"""Torch's random functions, made of standard numbers that somebody else draws.

Each takes `answer(law, size, dtype, device, probability)`, which gives independent numbers of a
law ("normal", "uniform", "exponential", or "kept": true with a probability) or nothing, and then
what the function of torch's takes. Its result is None where there are no numbers, or where it is
asked for more than this.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Answer = Callable[..., Tensor | None]


def _like(law: str) -> Callable[..., Tensor | None]:
    """`randn_like` and its kin."""

    def spelt(answer: Answer, x: Tensor, **kwargs: Any) -> Tensor | None:
        dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
        if _odd(kwargs):
            return None
        return answer(law, x.shape, dtype or x.dtype, device or x.device)

    return spelt


def _new(law: str) -> Callable[..., Tensor | None]:
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
    return any(value for name, value in options.items() if name != "memory_format")


def _normal(
    answer: Answer, mean: Any = 0.0, std: Any = 1.0, size: Any = None, **kwargs: Any
) -> Tensor | None:
    """`torch.normal`, through which no gradient passes."""
    dtype, device = kwargs.pop("dtype", None), kwargs.pop("device", None)
    if _odd(kwargs):
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


def _kept(answer: Answer, x: Tensor, p: float) -> Tensor | None:
    """Where something stays that is dropped with probability p."""
    return answer("kept", x.shape, torch.bool, x.device, 1 - p)


def _bernoulli(answer: Answer, x: Tensor, p: Any = None, **kwargs: Any) -> Tensor | None:
    """`torch.bernoulli`: x holds probabilities, or p is one."""
    if _odd(kwargs):
        return None
    if p is None or isinstance(p, Tensor):
        numbers = answer("uniform", x.shape, x.dtype, x.device)
        return None if numbers is None else (numbers < (x if p is None else p)).to(x.dtype)
    numbers = answer("kept", x.shape, torch.bool, x.device, float(p))
    return None if numbers is None else numbers.to(x.dtype)


def _written(law: str, scaled: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    """`normal_` and its kin: into a tensor."""

    def spelt(answer: Answer, x: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        if generator is not None:
            return None
        numbers = answer(law, x.shape, x.dtype, x.device)
        return None if numbers is None else x.copy_(scaled(numbers, *args, **kwargs))

    return spelt


def _bernoulli_(answer: Answer, x: Tensor, p: Any = 0.5, **kwargs: Any) -> Tensor | None:
    numbers = _bernoulli(answer, x, p, **kwargs)
    return None if numbers is None else x.copy_(numbers)


def _dropout(
    answer: Answer, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    """What stays is larger by 1/(1 − p); what goes is chosen, for 0 · inf is NaN."""
    if not training or not 0 < p < 1:
        return None
    kept = _kept(answer, input, p)
    if kept is None:
        return None
    result = torch.where(kept, input * (1 / (1 - p)), 0)
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
    first = soft.max(dim, keepdim=True)[1]
    return torch.zeros_like(logits).scatter_(dim, first, 1.0) - soft.detach() + soft


def _multinomial(
    answer: Answer, p: Tensor, num_samples: int, replacement: bool = False, **kwargs: Any
) -> Tensor | None:
    """One number of each row: whose exponential, as fast as it is probable, comes first."""
    if num_samples != 1 or p.dim() != 2 or _odd(kwargs):
        return None
    numbers = answer("exponential", p.shape, p.dtype, p.device)
    return None if numbers is None else (p.detach() / numbers).argmax(-1, keepdim=True)


DRAWING: dict[Any, Callable[..., Tensor | None]] = {
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
    Tensor.normal_: _written("normal", lambda n, mean=0.0, std=1.0: mean + std * n),
    Tensor.uniform_: _written(
        "uniform", lambda n, start=0.0, to=1.0, **_: start + (to - start) * n
    ),
    Tensor.exponential_: _written("exponential", lambda n, lambd=1.0: n / lambd),
    functional.dropout: _dropout,
    torch.dropout: _dropout,
    functional.gumbel_softmax: _gumbel_softmax,
}
