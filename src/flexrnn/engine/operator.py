"""A program as one operator of torch's: what `torch.compile` and `torch.export` see of a layer.

The program travels as text, so that an exported model runs in any process that has imported
FlexRNN. Registered when this file is imported:

    flexrnn::scan(str program, str engine, bool reverse, str[] keep, Tensor[] operands) -> Tensor[]
    flexrnn::ahead(str text, str[] names, Tensor[] tensors) -> Tensor[]
    flexrnn::scan_backward(str program, str engine, bool reverse, str[] keep, Tensor[] operands,
                           Tensor[] saved, Tensor[] cotangents) -> Tensor[]

`operands` are in the order of `signature`; the last are what `ahead` makes of the step's tensors,
where the program wants such. `scan` returns the kept fields' histories, the last state, and what
the engine saves for `scan_backward`, which returns the gradients of `signature`. What `ahead` does
are torch's own operations, and all that looks into an operator sees those.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from flexrnn.engine import autocast, interpreter, recompute
from flexrnn.engine.compiler import ahead
from flexrnn.engine.compiler.program import Program, loads
from flexrnn.engine.compiler.surroundings import alone
from flexrnn.engine.engines import ENGINES, Engine
from flexrnn.engine.fallback import warn
from flexrnn.engine.ordinary import for_ordinary_operations
from flexrnn.engine.signature import signature
from flexrnn.engine.step import CannotRunError

_SHARED = "str program, str engine, bool reverse, str[] keep, Tensor[] operands"

loaded = lru_cache(maxsize=512)(loads)
aheads = lru_cache(maxsize=512)(ahead.loads)


def _scan(
    text: str, engine: str, reverse: bool, keep: Sequence[str], operands: Sequence[Tensor]
) -> list[Tensor]:
    program = loaded(text)
    parts = signature(program).parts(operands)
    kernel = _kernel(engine, program, parts[1][0])
    with autocast.off(parts[1][0]):
        ran = kernel.forward(program, *parts, keep, reverse=reverse)
    history = list(ran.history.values())
    own = [s for s in ran.saved if all(s is not h for h in history)]
    return [tensor.contiguous() for tensor in (*history, *ran.final, *own)]


def _scan_like(
    text: str, engine: str, reverse: bool, keep: Sequence[str], operands: Sequence[Tensor]
) -> list[Tensor]:
    program = loaded(text)
    xs, state, _ = signature(program).parts(operands)
    steps, like = xs[0].shape[0], state[0]
    kernel = _kernel(engine, program, like)
    kept = (state[program.fields.index(field)] for field in keep)
    return [
        *(field.new_empty((steps, *field.shape)) for field in kept),
        *(field.new_empty(field.shape) for field in state),
        *(s for s in kernel.saved_like(program, steps, like, keep) if isinstance(s, Tensor)),
    ]


def _scan_backward(
    text: str,
    engine: str,
    reverse: bool,
    keep: Sequence[str],
    operands: Sequence[Tensor],
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[Tensor]:
    program = loaded(text)
    about = signature(program)
    parts = about.parts(operands)
    kernel = _kernel(engine, program, parts[1][0])
    history = dict(zip(keep, cotangents, strict=False))
    final = cotangents[len(keep) :]
    with autocast.off(parts[1][0]):
        found = kernel.backward(program, *parts, saved, history, final, reverse=reverse)
    # No two results of an operator, nor a result and an operand, may share memory; and each begins
    # where its memory does.
    taken = {_memory(tensor) for tensor in (*operands, *saved, *cotangents)}
    gradients = []
    for name in about.gradients:
        gradient = found[name].contiguous()
        if gradient.storage_offset() or _memory(gradient) in taken:
            gradient = gradient.clone()
        gradients.append(gradient)
        taken.add(_memory(gradient))
    return gradients


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _scan_backward_like(
    text: str,
    engine: str,
    reverse: bool,
    keep: Sequence[str],
    operands: Sequence[Tensor],
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor],
) -> list[Tensor]:
    about = signature(loaded(text))
    named = zip(about.names, operands, strict=True)
    return [t.new_empty(t.shape) for name, t in named if name in about.gradients]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    text, engine, reverse, keep, operands = inputs
    program = loaded(text)
    kernel = _kernel(engine, program, operands[signature(program).inputs])
    ends = len(keep) + len(program.fields)
    own = iter(output[ends:])
    saved = [
        next(own) if field is None else output[keep.index(field)]
        for field in _whose(kernel, program, tuple(keep))
    ]
    ctx.call = (text, engine, reverse, keep, [tuple(o.shape) for o in output[:ends]])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[ends:])
    ctx.save_for_backward(*operands, *saved)


def _backward(ctx: Any, cotangents: Sequence[Tensor | None]) -> tuple[Any, ...]:
    text, engine, reverse, keep, shapes = ctx.call
    program = loaded(text)
    about = signature(program)
    tensors = ctx.saved_tensors
    row, saved = tensors[: len(about.names)], tensors[len(about.names) :]
    like = row[about.inputs]
    given = [
        like.new_zeros(shape) if cotangent is None else cotangent
        for cotangent, shape in zip(cotangents, shapes, strict=False)
    ]
    if for_ordinary_operations(given):
        with autocast.off(like):
            found = recompute.gradients(program, row, keep, given, reverse=reverse)
    else:
        results = cast("list[Tensor]", torch.ops.flexrnn.scan_backward(
            text, engine, reverse, keep, row, saved, given))  # fmt: skip
        found = dict(zip(about.gradients, results, strict=True))
    # Torch takes a list that is empty for one of tensors.
    return None, None, None, None if keep else [], [found.get(name) for name in about.names]


def _kernel(engine: str, program: Program, like: Tensor) -> Engine:
    """The engine; the interpreter where it cannot run, as on another machine than it was named."""
    try:
        ENGINES[engine].prepare(program, like)
    except (KeyError, CannotRunError) as cause:
        warn(f"engine {engine!r} cannot run an exported program: {cause}")
        return interpreter
    return ENGINES[engine]


@lru_cache(maxsize=512)
def _whose(kernel: Engine, program: Program, keep: tuple[str, ...]) -> tuple[str | None, ...]:
    """Of each saved tensor, the field whose history it is, or None."""
    state = program.graph.nodes[program.graph.inputs[f"state.{program.fields[0]}"]]
    with alone():  # nobody need see this
        like = torch.empty(interpreter.shape_of(state, (1,)), device="meta")
        entries = kernel.saved_like(program, 1, like, keep)
    return tuple(entry if isinstance(entry, str) else None for entry in entries)


def _ahead(text: str, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Tensor]:
    named = zip(names, tensors, strict=True)
    return list(aheads(text).of({f"param.{name}": tensor for name, tensor in named}))


_library = torch.library.Library("flexrnn", "DEF")
for _name, _extra, _run, _like in (
    ("scan", "", _scan, _scan_like),
    ("scan_backward", ", Tensor[] saved, Tensor[] cotangents", _scan_backward, _scan_backward_like),
):
    _library.define(f"{_name}({_SHARED}{_extra}) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flexrnn::{_name}", _like, lib=_library)
_library.define(
    "ahead(str text, str[] names, Tensor[] tensors) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("ahead", _ahead, "CompositeImplicitAutograd")
torch.library.register_autograd(
    "flexrnn::scan", _backward, setup_context=_setup_context, lib=_library
)
scan = torch.ops.flexrnn.scan.default
made_ahead = torch.ops.flexrnn.ahead.default
