"""From a composed step to a program: all passes in their order, and the cache of what came out."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flexrnn.engine import autocast
from flexrnn.engine.compiler.autodiff import differentiate
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.kept import age, rehearse
from flexrnn.engine.compiler.merge import merge
from flexrnn.engine.compiler.program import Program, build
from flexrnn.engine.compiler.refusal import CannotCompileError, definition
from flexrnn.engine.compiler.split import regroup_sums
from flexrnn.engine.compiler.sums import gather_sums
from flexrnn.engine.compiler.surroundings import alone
from flexrnn.engine.compiler.trace import trace
from flexrnn.engine.step import ComposedStep
from flexrnn.engine.tables import trim

_programs: dict[Any, Program | str] = {}
_traces: dict[Any, Graph | str] = {}  # which programs for unlike gradients have in common
_changing: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # cells and functions; why not
_one_at_a_time = threading.RLock()  # torch's tracer is one for all threads
_KEPT, _TRACES = 512, 64  # the oldest goes first


def _unlock() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


os.register_at_fork(after_in_child=_unlock)  # a thread that is not copied may hold it


def _shapes(what: str, tensors: tuple[Tensor, ...]) -> str:
    return f"{what} of {', '.join(str(tuple(tensor.shape)) for tensor in tensors)}"


def compile_step(
    step: ComposedStep,
    xs: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    wanted: tuple[str, ...] = (),
) -> Program:
    """The program of a step; made at the first call and whenever anything but values changes.

    Args:
        step: the composed step.
        xs: the inputs, each `(T, B, ...)`.
        state: the state before the first step, each `(B, ...)`.
        wanted: names of inputs whose gradient is wanted: `x0`, `param.NAME`, `state.FIELD`; none
            at all for a program that only runs forward.

    Raises:
        CannotCompileError: the step is not a program; the message names operation, file and line.
    """
    if _changing and (reason := _known_to_change(step.holder)):
        raise CannotCompileError(reason)
    rows = [tensor.shape[lead : lead + 1] for lead, group in ((1, xs), (0, state))
            for tensor in group]  # fmt: skip
    if not all(rows):
        raise CannotCompileError(
            "expected a batch: inputs (T, B, ...) and states (B, ...), got "
            + _shapes("inputs", xs) + " and " + _shapes("states", state)
        )  # fmt: skip
    if any(row != rows[0] for row in rows):
        raise CannotCompileError("inputs and states differ in their first axis, the batch")
    traced = (
        step.key(),
        tuple((x.dtype, tuple(x.shape[2:])) for x in xs),
        tuple((s.dtype, tuple(s.shape[1:])) for s in state),
        tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in step.tensors.items()),
        state[0].device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        autocast.is_on(state[0]) and torch.get_autocast_dtype(state[0].device.type),
        torch.is_autocast_enabled("cuda"),  # which is what a step asks that names no device
        age(),
    )
    key = (traced, wanted)
    program = _programs.get(key)
    if program is None:
        with _one_at_a_time:
            program = _programs.get(key) or _compiled(step, xs, state, wanted, traced)
            _programs[key] = program
            trim(_programs, _KEPT)
    if isinstance(program, str):
        raise CannotCompileError(program)
    return program


def _known_to_change(holder: Any) -> str | None:
    with suppress(TypeError):
        return _changing.get(holder)
    return None


def _compiled(
    step: ComposedStep,
    xs: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    wanted: tuple[str, ...],
    key: Any,
) -> Program | str:
    learns = tuple(tensor.requires_grad for tensor in step.tensors.values())
    try:
        *_, (_, graph) = _passed(step, _trace_of((key, learns), step, xs, state), wanted)
        return build(graph)
    except CannotCompileError as error:
        return str(error)  # the text alone: the exception holds on to tensors


def _trace_of(
    key: Any, step: ComposedStep, xs: tuple[Tensor, ...], state: tuple[Tensor, ...]
) -> Graph:
    if key not in _traces:
        try:
            _traces[key] = _traced(step, xs, state)
        except CannotCompileError as error:
            _traces[key] = str(error)
        trim(_traces, _TRACES)
    found = _traces[key]
    if isinstance(found, str):
        raise CannotCompileError(found)
    return found


def _traced(step: ComposedStep, xs: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> Graph:
    with alone():  # of a row only the kind counts
        rows = tuple(torch.empty((1, *x.shape[2:]), dtype=x.dtype, device=x.device) for x in xs)
    fields = dict(zip(step.fields, state, strict=True))
    rehearsed = rehearse(step.rehearse, rows, state, step.tensors)
    before = step.key()
    try:
        graph = trace(step.pure, rows, fields, step.tensors)
    except CannotCompileError:
        if rehearsed and step.key() != before:
            _give_up(step.holder)
        raise
    if rehearsed and step.key() != before:
        raise CannotCompileError(_give_up(step.holder))
    return graph


def _give_up(holder: Any) -> str:
    """Remember a step that leads to something else whenever it has run: nobody need try again."""
    reason = (
        "the step changes, whenever it runs, what it can read: a count, a list, an iterator; what "
        "the next step is to know belongs into State, "
        + definition(getattr(holder, "step", holder))
    )
    with suppress(TypeError):  # of what nobody can refer to weakly
        _changing[holder] = reason
    return reason


def passes(
    step: ComposedStep,
    xs: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    wanted: tuple[str, ...] = (),
) -> list[tuple[str, Graph]]:
    """The graph after every pass, with the pass's name."""
    with _one_at_a_time:
        return _passed(step, _traced(step, xs, state), wanted)


def _passed(step: ComposedStep, graph: Graph, wanted: tuple[str, ...]) -> list[tuple[str, Graph]]:
    if graph.ahead is not None:
        read = (step.tensors[name.removeprefix("param.")] for name in graph.ahead.given)
        half = isinstance(step, autocast.CastStep) and step.dtype in autocast.HALF
        if half and any(autocast.is_cast(t.dtype) for t in read):
            # Its tensors are cast, for products alone.
            raise CannotCompileError(
                "what torch computes of parameters ahead of a program is "
                "not computed under autocast"
            )
        wanted = (*wanted, *graph.ahead.learned(wanted))
    stages = [("trace", graph)]
    rest: list[tuple[str, Callable[[Graph], Graph]]] = [
        ("merge", merge),
        ("split", regroup_sums),
        ("autodiff", lambda g: gather_sums(differentiate(g, wanted))),
    ]
    for name, transform in rest:
        made = transform(stages[-1][1])
        made.ahead = graph.ahead
        stages.append((name, made))
    stages[-1][1].narrow = isinstance(step, autocast.CastStep) and step.narrow
    return stages
