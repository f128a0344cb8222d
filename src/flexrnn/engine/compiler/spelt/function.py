"""A `torch.autograd.Function`: its forward as it stands, its backward written down beside it.

The operations that hold the two together stand in no step but here; nobody runs them.
"""

import inspect
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.rows import is_of_rows


def applied(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """What `cls.apply` returns, written down."""
    context = _Context()
    if cls.setup_context is Function.setup_context:
        context.needs_input_grad = tuple(map(_is_real, args))
        context.given = (*args, *kwargs.values())
        made = _forward(cls, context, *args, **kwargs)
    else:
        bound = inspect.signature(cls.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        args = bound.args
        context.needs_input_grad = tuple(map(_is_real, args))
        made = _forward(cls, *args)
        cls.setup_context(context, args, made)
    if context.dirty_tensors:
        raise refused(cls.__name__, "it writes into what it is given")
    if not torch.is_grad_enabled() or returns():
        return made
    results = list(made) if isinstance(made, tuple) else [made]
    if any(isinstance(x, Tensor) and x.is_complex() for x in (*args, *results)):
        raise refused(cls.__name__, "it takes or gives complex numbers, which two real ones can be")
    flat = [id(tensor) for tensor in context.non_differentiable]
    smooth = [k for k, r in enumerate(results) if _is_real(r) and id(r) not in flat]
    found = [r.detach() if isinstance(r, Tensor) else r for r in results]
    if smooth and any(context.needs_input_grad):
        derived = _derived(cls, context, args, results, smooth)
        for k, result in zip(smooth, derived, strict=True):
            found[k] = result
    return tuple(found) if isinstance(made, tuple) else found[0]


def _forward(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    """What `cls.forward` returns; nobody differentiates inside."""
    before, _forwards.now = getattr(_forwards, "now", False), True
    try:
        return cls.forward(*args, **kwargs)
    finally:
        _forwards.now = before


def returns() -> bool:
    """Whether a `backward` is written down here and now."""
    return getattr(_returning, "now", False)


def _heaviside(input: Tensor, values: Tensor) -> Tensor:
    """Torch has no derivative of it: what differentiates it meets a cotangent of nobody's.

    Autodiff refuses what is left of one. What is detached, before it or behind, needs none.
    """
    rows = isinstance(input, Tensor) and isinstance(values, Tensor) and (
        is_of_rows(input) or is_of_rows(values))  # fmt: skip
    if not rows or input.dtype != values.dtype:
        return torch.heaviside(input, values)
    y = torch.where(input == 0, values, (input > 0).to(input.dtype))
    if not torch.is_grad_enabled() or getattr(_forwards, "now", False) or returns():
        return y
    given = [x.expand(y.shape) for x in (input, values)]
    unknown = [_ops.cotangent(x) for x in given]
    return _ops.custom_vjp(y, "heaviside", _ops.cotangent(y), given, unknown)


class _Context(FunctionCtx):
    """What torch makes of a `ctx`, but for the node of autograd that it is there."""

    to_save: Sequence[Any] = ()
    dirty_tensors: Sequence[Tensor] = ()
    non_differentiable: Sequence[Tensor] = ()
    materialize_grads = True
    needs_input_grad: tuple[bool, ...] = ()
    given: tuple[Any, ...] = ()  # what `forward` is called with

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return tuple(self.to_save)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _derived(
    cls: Any, context: _Context, args: Sequence[Any], results: Sequence[Any], smooth: Sequence[int]
) -> list[Tensor]:
    """Those of the results that have a derivative, with that which backward says.

    Several are one as long as it is written down who hands what on to whom.
    """
    values = [results[k] for k in smooth]
    whole = values[0]
    if len(values) > 1:
        if not all(map(is_of_rows, values)):
            raise refused(
                cls.__name__, "several results, and not all have a row for every sequence"
            )
        whole = torch.cat([v.reshape(v.shape[0], math.prod(v.shape[1:])) for v in values], 1)
    cotangent = _ops.cotangent(whole)
    given: list[Any] = [
        torch.zeros_like(r) if isinstance(r, Tensor) and context.materialize_grads else None
        for r in results
    ]
    for k, part in zip(smooth, _apart(cotangent, values), strict=True):
        given[k] = part
    _returning.now = True
    try:
        gradients = cls.backward(context, *given)
    finally:
        _returning.now = False
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) < len(args):
        raise refused(cls.__name__, f"{len(gradients)} gradients of {len(args)} arguments")
    pairs = [(arg, gradient.to(arg.dtype)) for arg, gradient in zip(args, gradients, strict=False)
             if _is_real(arg) and gradient is not None]  # fmt: skip
    inputs, gradients = [arg for arg, _ in pairs], [gradient for _, gradient in pairs]
    return _apart(_ops.custom_vjp(whole, cls.__name__, cotangent, inputs, gradients), values)


def _apart(whole: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """Of several side by side each by itself."""
    if len(values) == 1:
        return [whole]
    parts = whole.split([math.prod(v.shape[1:]) for v in values], 1)
    return [part.reshape(v.shape) for part, v in zip(parts, values, strict=True)]


_returning = threading.local()  # set where backward is written down: it has no derivative
_forwards = threading.local()  # set where the forward of a Function is written down
_library = torch.library.Library("flexrnn", "FRAGMENT")
for _schema in (
    "cotangent(Tensor value) -> Tensor",
    "custom_vjp(Tensor value, str name, Tensor cotangent, Tensor[] inputs, Tensor[] gradients)"
    " -> Tensor",
):
    _library.define(_schema)
    _name, _, _ = _schema.partition("(")
    torch.library.register_fake(
        f"flexrnn::{_name}", lambda value, *rest: torch.empty_like(value), lib=_library
    )
_ops = torch.ops.flexrnn

SPELT: dict[Any, Any] = {torch.heaviside: _heaviside, Tensor.heaviside: _heaviside}
