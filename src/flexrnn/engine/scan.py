"""The one entry to the engines: which of them runs, and `scan`, the same loop without a layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from flexrnn.engine import differentiable, reference

ENGINES = {"reference": reference.run, "interpreter": differentiable.run}
AUTO = ("reference",)  # what `auto` tries, the fastest first

_chosen: ContextVar[str | None] = ContextVar("flexrnn_backend", default=None)


def check_backend(name: Any) -> str:
    """Return `name`, the name of an engine or `auto`; refuse any other."""
    if not isinstance(name, str) or name not in ("auto", *ENGINES):
        known = ", ".join(repr(engine) for engine in ("auto", *ENGINES))
        raise ValueError(f"backend: expected one of {known}, got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every layer inside the block by the named engine, whatever its own `backend` says.

    Args:
        name: `"auto"`, the fastest that can, or `"reference"`, the eager loop.

    Raises:
        ValueError: there is no engine of that name.

    Example:
        >>> import torch, flexrnn
        >>> layer = flexrnn.LSTM(3, 5)
        >>> with flexrnn.backend("reference"):
        ...     output, state = layer(torch.randn(7, 2, 3))
    """
    token = _chosen.set(check_backend(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def run(
    step: Callable[[tuple[Tensor, ...], Any], Any],
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
    backend: str = "auto",
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step over time by the engine in force; operands as in `reference.run`."""
    name = _chosen.get() or backend
    engine = ENGINES[AUTO[0] if name == "auto" else name]
    return engine(step, state, xs, reverse=reverse, keep=keep)


def scan(step: Callable[..., Any], state: Any, xs: Any, params: Sequence[Tensor] = ()) -> Any:
    """Run `state = step(x_t, state, *params)` over a sequence, for a loop that is not a layer.

    Args:
        step: the body of the loop; returns a state of the structure and shapes that it was given.
        state: a tensor, or a tuple or NamedTuple of tensors: the state before the first step.
        xs: a tensor `(T, ...)`, or a tuple of such tensors; `step` gets their rows at t, as one
            tensor or as a tuple.
        params: tensors that are the same at every step.

    Returns:
        `(states, final)`: the state after every step, each tensor `(T, ...)`, and after the last.

    Raises:
        TypeError: an argument, or what `step` returns, has the wrong structure.
        ValueError: there is no time step, or the inputs differ in their number.
        RuntimeError: `step` changes a shape, a dtype or a device.

    Example:
        >>> import torch, flexrnn
        >>> def decay(x, h, a):
        ...     return a * h + x
        >>> x, a = torch.ones(3, 1), torch.tensor(0.5)
        >>> states, final = flexrnn.scan(decay, torch.zeros(1), x, (a,))
        >>> states.flatten().tolist(), final.tolist()
        ([1.0, 1.5, 1.75], [1.75])
    """
    if not callable(step):
        raise TypeError(f"step: expected a function, got {type(step).__name__}")
    fields = _tensors("state", state)
    inputs = _tensors("xs", xs)
    params = _tensors("params", tuple(params) if isinstance(params, list) else params, empty=True)
    for k, x in enumerate(inputs):
        if x.dim() == 0 or x.shape[0] == 0:
            raise ValueError(
                f"xs: expected at least one time step, got xs[{k}] of {tuple(x.shape)}"
            )
        if x.shape[0] != inputs[0].shape[0]:
            raise ValueError(
                f"xs: expected {inputs[0].shape[0]} time steps everywhere, "
                f"got xs[{k}] of shape {tuple(x.shape)}"
            )

    def composed(x_t: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        row = x_t[0] if isinstance(xs, Tensor) else _rebuild(xs, x_t)
        result = step(row, _rebuild(state, old), *params)
        return _same_structure(state, old, result)

    states, final = run(composed, fields, inputs, keep=range(len(fields)))
    return _rebuild(state, states), _rebuild(state, final)


def _tensors(argument: str, value: Any, *, empty: bool = False) -> tuple[Tensor, ...]:
    tensors = (value,) if isinstance(value, Tensor) else value
    if not isinstance(tensors, tuple) or not (tensors or empty):
        raise TypeError(
            f"{argument}: expected a tensor or a tuple of tensors, got {type(value).__name__}"
        )
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{argument}: expected tensors only, got {argument}[{k}] {type(tensor).__name__}"
            )
    return tensors


def _rebuild(like: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Give tensors the structure of `like`: a tensor, a tuple or a NamedTuple."""
    if isinstance(like, Tensor):
        return tensors[0]
    return type(like)(*tensors) if hasattr(like, "_fields") else tuple(tensors)


def _same_structure(state: Any, old: tuple[Tensor, ...], result: Any) -> tuple[Tensor, ...]:
    other = hasattr(state, "_fields") and not isinstance(result, type(state))
    if other or isinstance(result, Tensor) != isinstance(state, Tensor):
        raise TypeError(f"step: expected a {type(state).__name__}, got {type(result).__name__}")
    new = _tensors("step", result)
    if len(new) != len(old):
        raise TypeError(f"step: expected a state of {len(old)} tensors, got {len(new)}")
    for k, (before, after) in enumerate(zip(old, new, strict=True)):
        if after.shape != before.shape or after.dtype != before.dtype:
            raise RuntimeError(
                f"step: expected tensor {k} of the state to stay {tuple(before.shape)} "
                f"{before.dtype}, got {tuple(after.shape)} {after.dtype}"
            )
        if after.device != before.device:
            raise RuntimeError(
                f"step: expected tensor {k} of the state to stay on {before.device}, "
                f"got {after.device}"
            )
    return new
