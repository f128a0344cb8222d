"""The one entry to the engines: which of them runs, and `scan`, the same loop without a layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor

from flexrnn.engine import differentiable, interpreter, reference
from flexrnn.engine.cpu import engine as cpu
from flexrnn.engine.function import FunctionStep, rebuild, tensors_in
from flexrnn.engine.step import ComposedStep

ENGINES: dict[str, Callable[..., Any]] = {
    "reference": reference.run,
    "interpreter": partial(differentiable.run, interpreter),
    "cpu": partial(differentiable.run, cpu),
}
AUTO = ("reference",)  # what `auto` tries, the fastest first

_chosen: ContextVar[str | None] = ContextVar("flexrnn_backend", default=None)
_watch: ContextVar[Callable[..., Any] | None] = ContextVar("flexrnn_watch", default=None)


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
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
    backend: str = "auto",
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step over time by the engine in force; operands as in `reference.run`."""
    if (watch := _watch.get()) is not None:
        return watch(step, state, xs, keep)
    return ENGINES[_resolved(backend)](step, state, xs, reverse=reverse, keep=keep)


def in_force(backend: str) -> str:
    """The backend that a layer's own gives way to inside a `backend` block."""
    return _chosen.get() or backend


def _resolved(backend: str) -> str:
    name = in_force(backend)
    return AUTO[0] if name == "auto" else name


@contextmanager
def watched(watch: Callable[..., Any]) -> Iterator[Callable[[Any], str]]:
    """Let `watch(step, state, xs, keep)` stand in for every engine inside the block.

    Yields a function that says which engine would have run a layer.
    """
    token = _watch.set(watch)
    try:
        yield lambda layer: _resolved(getattr(layer, "backend", "auto"))
    finally:
        _watch.reset(token)


def scan(
    step: Callable[..., Any], state: Any, xs: Any, params: Tensor | Sequence[Tensor] = ()
) -> Any:
    """Run `state = step(x_t, state, *params)` over a sequence, for a loop that is not a layer.

    Args:
        step: the body of the loop; returns a state of the structure and shapes that it was given.
        state: a tensor, or a tuple or NamedTuple of tensors: the state before the first step.
        xs: a tensor `(T, ...)`, or a tuple of such tensors; `step` gets their rows at t, as one
            tensor or as a tuple.
        params: a tensor, or several, the same at every step.

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
    fields = tensors_in("state", state)
    inputs = tensors_in("xs", xs)
    params = tensors_in("params", tuple(params) if isinstance(params, list) else params, empty=True)
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

    composed = FunctionStep(step, state, xs, params)
    states, final = run(composed, fields, inputs, keep=range(len(fields)))
    return rebuild(state, states), rebuild(state, final)
