# pyright: reportPrivateUsage=false
# What `torch.compiler.disable` sets has no public name, and that function imports Dynamo.
"""A step run by its program, outside of Dynamo."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flexrnn.engine import autocast, engines, native, operator, reference
from flexrnn.engine.again import Again
from flexrnn.engine.batches import of_one_step
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program, dumps
from flexrnn.engine.compiler.ranges import is_whole
from flexrnn.engine.differentiable import Ready
from flexrnn.engine.ordinary import Call, check_whole, kind
from flexrnn.engine.paired import Paired, PairedReady, are_complex
from flexrnn.engine.signature import signature
from flexrnn.engine.step import CannotRunError, ComposedStep, wanted_of

_texts: WeakKeyDictionary[Graph, str] = WeakKeyDictionary()


def run(
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
    engine: str,
    batch_sizes: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Any]:
    """Run a composed step by the named engine; operands as in `reference.run`.

    Calls whose derivatives only ordinary operations have are run by the reference. Where an engine
    casts (`engines.cast_to`), the kept fields are of the dtype to which it does.

    Raises:
        CannotCompileError: the step is not a program.
        CannotRunError: the engine cannot run it here.
    """
    if are_complex((*state, *xs)):
        real = Paired(step, state, xs, keep)
        found = run(real.step, real.state, real.xs, reverse=reverse, keep=real.keep,
                    engine=engine, batch_sizes=batch_sizes)  # fmt: skip
        return real.leave(*found)
    row = (*xs, *state, *step.tensors.values())
    call = kind(row)
    unseen = call is Call.TRACED and batch_sizes is not None  # the operator knows of no such steps
    if call is Call.REFERENCE or unseen:
        return reference.run(step, state, xs, reverse=reverse, keep=keep, batch_sizes=batch_sizes)
    dtype = engines.cast_to(engine, state[0])
    if dtype is not None:
        narrow = engines.is_narrow(engine, state[0])
        with autocast.off(state[0]):
            history, final = run(
                autocast.CastStep(step, dtype, narrow=narrow),
                tuple(autocast.cast(s, dtype) for s in state),
                tuple(autocast.cast(x, dtype) for x in xs),
                reverse=reverse,
                keep=keep,
                engine=engine,
                batch_sizes=batch_sizes,
            )
        final = tuple(f.to(s.dtype) for f, s in zip(final, state, strict=True))
        return history, type(state)(*final) if hasattr(state, "_fields") else final
    if engine == "torch":
        if batch_sizes is not None:
            raise CannotRunError("torch's own kernels are given sequences of one length")
        history, final = native.run(step, state, xs, reverse=reverse, keep=keep)
        return history, type(state)(*final) if hasattr(state, "_fields") else final
    decided = ready(step, state, xs, reverse=reverse, keep=keep, engine=engine,
                    batch_sizes=batch_sizes)  # fmt: skip
    fields = decided.keep
    if call is Call.EAGER:
        check_whole(filter(is_whole, (*xs, *state)), state[0].dtype)
        results = decided(row)
        reached = zip((*(state[k] for k in keep), *state), results, strict=True)
        check_whole((value for field, value in reached if is_whole(field)), state[0].dtype)
    else:
        ends = len(fields) + len(state)
        text = _text(decided.program)
        results = tuple(operator.scan(text, engine, reverse, fields, decided.complete(row))[:ends])
    history, final = results[: len(fields)], results[len(fields) :]
    return history, type(state)(*final) if hasattr(state, "_fields") else final


# Where Dynamo breaks a graph above, it would take up what is called here piece by piece.
with suppress(ImportError, AttributeError):  # torch has no public name for it
    from torch._C._dynamo import eval_frame

    _SKIP = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(run.__code__, eval_frame._FrameExecStrategy(_SKIP, _SKIP))


def ready(
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool,
    keep: Sequence[int],
    engine: str,
    batch_sizes: Tensor | None = None,
    again: Again | None = None,
) -> Ready:
    """What `run` finds out before it runs; it holds for every call with tensors of these kinds.

    Raises:
        CannotCompileError: the step is not a program.
    """
    wanted = wanted_of(step, tuple(state), xs) if torch.is_grad_enabled() else ()
    like = xs if batch_sizes is None else tuple(of_one_step(x, len(state[0])) for x in xs)
    program = compile_step(step, like, tuple(state), wanted)
    fields = tuple(step.fields[k] for k in keep)
    return Ready(engine, program, signature(program), fields, reverse, batch_sizes, again)


def ready_again(
    step: ComposedStep, state: Any, x: Tensor, *, reverse: bool, engine: str
) -> Ready | PairedReady:
    """The same for calls of one input that come again, with the output of every step.

    State and input may be complex.
    """
    times: Any = {"reverse": reverse, "engine": engine, "again": Again()}
    if not are_complex((x, *state)):
        return ready(step, state, (x,), keep=(0,), **times)
    real = Paired(step, state, (x,), (0,))
    own = ready(real.step, real.state, real.xs, keep=real.keep, **times)
    return PairedReady(own, real.step.states, real.step.states[:1])


def _text(program: Program) -> str:
    if program.graph not in _texts:
        _texts[program.graph] = dumps(program)
    return _texts[program.graph]
