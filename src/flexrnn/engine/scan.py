"""The one entry to the engines: which of them runs, and `scan`, the same loop without a layer."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine import eager, engines, native, reference, traced
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.fallback import warn
from flexrnn.engine.function import FunctionStep, rebuild, tensors_in
from flexrnn.engine.paired import real_part
from flexrnn.engine.step import CannotRunError, ComposedStep


class _Here(threading.local):  # of this kind, and no `ContextVar`, because Dynamo can guard it
    def __init__(self) -> None:  # run in every thread
        self.chosen: str | None = None
        self.watch: Callable[..., Any] | None = None


_here = _Here()


def check_backend(name: Any) -> str:
    """Return `name`, the name of an engine or `auto`; refuse any other."""
    known = ("auto", *engines.WITHOUT_PROGRAM, *engines.ENGINES)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, known))}, got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every layer inside the block by the named engine, whatever its own `backend` says.

    Args:
        name: `"auto"`, the fastest that can; `"cpu"`, generated C++; `"cuda"`, generated Triton;
            `"torch"`, torch's own kernels; `"interpreter"`, programs in Python; `"reference"`, the
            eager loop.

    Raises:
        ValueError: there is no engine of that name.

    Example:
        >>> import torch, flexrnn
        >>> layer = flexrnn.LSTM(3, 5)
        >>> with flexrnn.backend("reference"):
        ...     output, state = layer(torch.randn(7, 2, 3))
    """
    before, _here.chosen = _here.chosen, check_backend(name)
    try:
        yield
    finally:
        _here.chosen = before


def run(
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
    backend: str = "auto",
    batch_sizes: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step over time by the engine in force; operands as in `reference.run`."""
    if _here.watch is not None:
        return _here.watch(step, state, xs, keep, batch_sizes)
    name = in_force(backend)
    if torch.compiler.is_dynamo_compiling():
        return traced.run(step, state, xs, reverse=reverse, keep=keep, backend=name)
    causes: list[str] = []
    times: dict[str, Any] = {"reverse": reverse, "keep": keep, "batch_sizes": batch_sizes}
    for engine in order(name, step, state, xs, keep, batch_sizes):
        if engine == "reference":
            break
        try:
            return eager.run(step, state, xs, engine=engine, **times)
        except (CannotCompileError, CannotRunError) as cause:
            if name != "auto":
                raise
            causes.append(str(cause))
    result = reference.run(step, state, xs, **times)
    for cause in causes:  # only now: a mistake in the step would have come up
        warn(cause)
    return result


def order(
    backend: str,
    step: ComposedStep,
    state: Sequence[Tensor],
    xs: Sequence[Tensor],
    keep: Sequence[int] = (0,),
    batch_sizes: Tensor | None = None,
) -> tuple[str, ...]:
    """The engines that a backend tries, one after another."""
    if batch_sizes is not None:  # of which torch's kernels know nothing
        return engines.chain(backend, real_part(state[0]), batch_sizes.shape[0])
    faster = backend == "auto" and native.is_faster(step, state, xs, keep)
    tried = engines.chain(backend, real_part(state[0]), xs[0].shape[0])
    return ("torch", *tried) if faster else tried


def in_force(backend: str) -> str:
    """The backend that a layer's own gives way to inside a `backend` block."""
    return _here.chosen or backend


def is_watched() -> bool:
    """Whether something stands in for every engine."""
    return _here.watch is not None


@contextmanager
def watched(watch: Callable[..., Any]) -> Iterator[None]:
    """Let `watch(step, state, xs, keep, batch_sizes)` stand in for every engine in the block."""
    before, _here.watch = _here.watch, watch
    try:
        yield
    finally:
        _here.watch = before


def scan(
    step: Callable[..., Any], state: Any, xs: Any, params: Tensor | Sequence[Tensor] = ()
) -> Any:
    """Run `state = step(x_t, state, *params)` over a sequence, for a loop that is not a layer.

    Args:
        step: the body of the loop; returns a state of the structure and shapes that it was given.
        state: a tensor, real or complex, or a tuple or NamedTuple of tensors: the state before the
            first step.
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
    # In a program whole numbers are reals.
    states, final = (
        tuple(s.to(field.dtype) for s, field in zip(found, fields, strict=True))
        for found in (states, final)
    )
    return rebuild(state, states), rebuild(state, final)
