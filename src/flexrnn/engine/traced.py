# pyright: reportPrivateUsage=false
# Whether a transform is at work has no public name.
"""A layer inside `torch.compile` or strict export: its program is a constant of the graph.

Dynamo follows the layer's code down to `run` below. There the step is run once on one row, for its
guards and nothing else: whatever the step reads, an attribute, a mode, a global, brings Dynamo back
here when it has changed. The program itself is made outside of Dynamo's sight.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import index
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from flexrnn.engine import autocast, engines, operator, reference
from flexrnn.engine.compiler import ahead
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import dumps
from flexrnn.engine.compiler.surroundings import alone
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.fallback import warn
from flexrnn.engine.paired import Paired, are_complex
from flexrnn.engine.step import CannotRunError, ComposedStep, is_exporting, object_at, wanted_of


def run(
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
    backend: str,
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step under Dynamo; operands as in `reference.run`."""
    if backend == "reference" or forward_ad._current_level >= 0:
        return reference.run(step, state, xs, reverse=reverse, keep=keep)
    if are_complex((*state, *xs)):
        real = Paired(step, state, xs, keep)
        found = run(real.step, real.state, real.xs, reverse=reverse, keep=real.keep,
                    backend=backend)  # fmt: skip
        return real.leave(*found)
    specialize(True)
    wanted = wanted_of(step, state, xs) if torch.is_grad_enabled() else ()
    if not is_exporting():  # what is written down once needs no guard
        step(tuple(x[0] for x in xs), state)
    first = engines.chain(backend, state[0])[0]
    dtype, narrow = engines.cast_to(first, state[0]), engines.is_narrow(first, state[0])
    inputs = tuple(autocast.cast(x, dtype) for x in xs)
    begin = tuple(autocast.cast(s, dtype) for s in state)
    tensors = {name: autocast.cast(tensor, dtype) for name, tensor in step.tensors.items()}
    rebuild, *parts = step.recipe()
    specialize(False)
    engine, made, program = _program(
        backend,
        dtype,
        narrow,
        wanted,
        tuple(_kind(x, 2) for x in inputs),
        tuple(_kind(s, 1) for s in begin),
        tuple((name, *_kind(tensor, 0)) for name, tensor in tensors.items()),
        tuple(isinstance(tensor, nn.Parameter) for tensor in step.tensors.values()),
        _same([*step.tensors.values()]),
        rebuild,
        *parts,
    ).split("\n", 2)
    if not program:
        return reference.run(step, state, xs, reverse=reverse, keep=keep)
    fields = [step.fields[k] for k in keep]
    row = [*inputs, *begin, *tensors.values()]
    if made:
        row += operator.made_ahead(made, list(tensors), list(tensors.values()))
    results = operator.scan(program, engine, reverse, fields, row)
    ends = len(fields) + len(state)
    final = results[len(fields) : ends]
    if dtype is not None:
        final = [f.to(s.dtype) for f, s in zip(final, state, strict=True)]
    return tuple(results[: len(fields)]), type(state)(*final) if hasattr(
        state, "_fields"
    ) else tuple(final)


_usual: dict[str, bool] = {}  # Dynamo's settings while `specialize` has changed them


def specialize(on: bool) -> str:
    """Let Dynamo guard every number by its value: it does not see that the program depends on it.

    Should the step raise in between, the next call switches it off; until then it costs no more
    than compilations. Where the step breaks the graph, Dynamo switches it off once for every try to
    follow the rest.
    """
    config = torch._dynamo.config
    for name in ("specialize_float", "specialize_int"):
        if on:
            _usual.setdefault(name, getattr(config, name))
            setattr(config, name, True)
        else:
            setattr(config, name, _usual.pop(name, getattr(config, name)))
    return ""


def _kind(tensor: Tensor, lead: int) -> tuple[torch.dtype, torch.device, tuple[int, ...]]:
    """What is constant of a tensor whose first axes are T and B: also its widths, if need be."""
    return tensor.dtype, tensor.device, tuple(map(index, tensor.shape[lead:]))


def _same(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Of each, which is the first that is the same; Dynamo has no `id` of one."""
    return tuple(
        next(k for k, other in enumerate(tensors) if other is tensor) for tensor in tensors
    )


def _program(
    backend: str,
    cast: torch.dtype | None,
    narrow: bool,
    wanted: tuple[str, ...],
    inputs: tuple[Any, ...],
    states: tuple[Any, ...],
    tensors: tuple[Any, ...],
    are_parameters: tuple[bool, ...],
    same: tuple[int, ...],
    rebuild: Callable[..., ComposedStep],
    *parts: Any,
) -> str:
    """The engine, what is made ahead and the program, as text; empty where the reference runs."""

    def empty(dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    if torch._C._are_functorch_transforms_active():  # Dynamo is inside one, and so are we
        return "reference\n\n"
    with alone():
        xs = tuple(empty(dtype, device, (1, 1, *shape)) for dtype, device, shape in inputs)
        state = tuple(empty(dtype, device, (1, *shape)) for dtype, device, shape in states)
        made = [empty(*kind) for _, *kind in tensors]
        made = [nn.Parameter(t, requires_grad=False) if is_one else t
                for t, is_one in zip(made, are_parameters, strict=True)]  # fmt: skip
        step = rebuild({name: made[k] for k, (name, *_) in zip(same, tensors, strict=True)}, *parts)
        step = step if cast is None else autocast.CastStep(step, cast, narrow=narrow)
        causes = []
        for engine in engines.chain(backend, state[0]):
            if engine == "reference":
                break
            if engine == "torch":
                raise CannotRunError("torch's own kernels do not run under torch.compile")
            try:
                with autocast.off(state[0]) if engine in engines.CASTS else nullcontext():
                    program = compile_step(step, xs, state, wanted)
                engines.ENGINES[engine].prepare(program, state[0])
            except (CannotCompileError, CannotRunError) as cause:
                if backend != "auto":
                    raise
                causes.append(str(cause))
            else:
                early = program.graph.ahead
                early = "" if early is None else ahead.dumps(early)
                return f"{engine}\n{early}\n{dumps(program)}"
        for cause in causes:
            warn(cause)
        return "reference\n\n"


def names(address: int) -> tuple[str, ...]:
    """What an object holds, from its id."""
    return tuple(vars(object_at(address)))


def of_class(address: int) -> tuple[str, ...]:
    """What an object has of its class, and could have itself: methods and plain values."""
    value = object_at(address)
    kinds = [kind for kind in type(value).__mro__ if kind not in (nn.Module, object)]
    found = {name for kind in kinds for name, own in vars(kind).items()
             if isinstance(own, _HIDEABLE) and not name.startswith("__")}  # fmt: skip
    return tuple(sorted(found - {*vars(value)}))


_HIDEABLE = (FunctionType, BuiltinFunctionType, staticmethod, classmethod, type,
             int, float, str, type(None))  # fmt: skip
# What `torch.compiler.assume_constant_result` does, without importing Dynamo for every user.
for _function in (_program, specialize, names, of_class):
    _function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
