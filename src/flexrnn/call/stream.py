"""`layer.step`: one time step, as a call of the layer with a sequence of one."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flexrnn.call import quick
from flexrnn.call.marks import of_numpy


def step(
    layer: Any, x: Any, state: Any, reset: Any, forward: Callable[..., Any]
) -> tuple[Tensor, Any]:
    """See `FlexRNN.step`.

    Args:
        layer: a `FlexRNN`.
        x: `(B, I)` or `(I,)`.
        state: the state before the step, or None.
        reset: `(B,)` or `()`, or None.
        forward: `FlexRNN`'s own, which takes all of this; that of a subclass may not.
    """
    reset = _check(layer, x, reset)
    own = getattr(layer.forward, "__func__", None) is forward
    if own and (result := quick.step(layer, x, state, reset)) is not None:
        return result
    axis = 1 if layer.batch_first and x.dim() == 2 else 0
    options = {} if reset is None else {"reset": reset.unsqueeze(axis)}
    arguments = (x.unsqueeze(axis), state)
    if own:
        output, state = layer(*arguments, **options)
    else:
        output, state = _by_another_forward(layer, arguments, options)
    return output.select(axis, 0), state


def _check(layer: Any, x: Any, reset: Any) -> Tensor | None:
    """`reset` as a tensor, if there is one and everything fits."""
    if layer.bidirectional:
        raise RuntimeError("step: expected one direction; the second begins at the end")
    for name in ("recurrent_dropout", "weight_drop"):
        if layer.training and getattr(layer, name):
            raise RuntimeError(
                f"step: expected evaluation mode with {name}={getattr(layer, name)}, whose masks "
                "are drawn once for a sequence; call eval(), or the layer with a sequence"
            )
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (batch, input_size), got {type(x).__name__}")
    if x.dim() not in (1, 2):
        raise ValueError(f"x: expected shape (batch, input_size), got {tuple(x.shape)}")
    if reset is None:
        return None
    reset = of_numpy(reset, x.device)
    if not isinstance(reset, Tensor):
        raise TypeError(f"reset: expected a tensor of torch.bool, got {type(reset).__name__}")
    if reset.dtype != torch.bool:
        raise TypeError(f"reset: expected torch.bool, got {reset.dtype}")
    if reset.shape != x.shape[:-1]:
        raise ValueError(
            f"reset: expected shape {tuple(x.shape[:-1])}, one for each row, "
            f"got {tuple(reset.shape)}"
        )
    return reset


def _by_another_forward(
    layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Tensor, Any]:
    """Call a layer whose class overrides `forward`, if that can carry a state on."""
    name, wanted = type(layer).__name__, ", ".join(["input", "hx", *(f"{o}=" for o in options)])
    signature = inspect.signature(layer.forward)
    try:
        signature.bind(*arguments, **options)
    except TypeError:
        raise TypeError(
            f"step: expected a forward that takes ({wanted}), got {name}.forward{signature}"
        ) from None
    result = layer(*arguments, **options)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
        raise TypeError(
            f"step: expected a forward that returns (output, state), got a {type(result).__name__} "
            f"from {name}.forward"
        )
    return result
