"""The engine's interface: programs run by Triton's kernels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.batches import Time
from flexrnn.engine.compiler.pretty import origins
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cuda import kernels
from flexrnn.engine.cuda.calls import Call, layout_of
from flexrnn.engine.cuda.emit.wrapped import wrapped
from flexrnn.engine.cuda.loop import Loop, compute
from flexrnn.engine.cuda.plan import plan_of, plan_with_lines
from flexrnn.engine.cuda.written import REAL
from flexrnn.engine.interpreter import Run
from flexrnn.engine.step import CannotRunError

DTYPES = tuple(REAL)

saved_like = interpreter.saved_like


def _check(like: Tensor) -> None:
    kernels.check(like)
    if like.dtype not in DTYPES:
        names = ", ".join(str(dtype) for dtype in DTYPES)
        raise CannotRunError(f"the cuda engine computes in {names}, got {like.dtype}")


def prepare(program: Program, like: Tensor) -> None:
    """Refuse a program, a dtype, a device or a machine that this engine cannot serve.

    Raises:
        CannotRunError: as it says.
    """
    _check(like)
    plan_of(program, program.fields[:1], like.dtype)


def source(program: Program, dtype: torch.dtype) -> str:
    """The Triton that is generated for a program: the loop there and the loop back.

    As the tier `sequence` has it; what the kernels call beside it stands in `functions`. Formulas
    name the person's lines that they are from, which what is launched goes without.
    """
    plan = plan_with_lines(program, dtype)
    head = "\n".join(f"# {row}" for row in origins(program))
    texts = [head] if head else []
    texts.append(f"# The forward loop.\n\n{plan.forward.source().sequence.text}")
    if plan.backward is not None:
        texts.append(f"# The backward loop.\n\n{plan.backward.source().sequence.text}")
    return wrapped("\n\n".join(texts))


def forward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
    *,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> Run:
    """Run a program over time; as `interpreter.forward`."""
    like, time = state[0], Time(xs[0], batch_sizes)
    _check(like)
    plan = plan_of(program, keep, like.dtype)
    constant, outputs = plan.parts.constant, plan.parts.forward.graph.outputs
    call = _call(like, time, reverse)
    loop = Loop(program, plan.forward, like, call, time.lead, forth=not reverse)
    loop.values |= _operands(program, xs, tensors)
    rings: dict[str, Tensor] = {}
    history: dict[str, Tensor] = {}
    for field, first in zip(program.fields, state, strict=True):
        if field in constant:
            loop.memory[f"const.{field}"] = first
            continue
        rings[field] = loop.ring(field, first, "before", "after")
        if f"history.{field}" in outputs:
            history[field] = loop.timed(program.graph.outputs[f"state.{field}"])
            loop.memory[f"history.{field}"] = history[field]
    saved = {i: loop.timed(i) for i in program.schedule.saved if f"saved.{i}" in outputs}
    loop.memory |= {f"saved.{index}": tensor for index, tensor in saved.items()}
    loop.run(time.lead)
    loop.values |= saved  # not before: what torch computes from them for the loop reads them
    for field, values in history.items():
        loop.values.setdefault(program.graph.outputs[f"state.{field}"], values)
    kept, final = {}, []
    for field, first in zip(program.fields, state, strict=True):
        if field in keep:
            stays = field in constant
            kept[field] = time.everywhere(first).clone() if stays else history[field]
        final.append(loop.last(rings[field]) if field in rings else first.clone())
    return Run(kept, tuple(final), tuple(loop.values[i] for i in program.schedule.saved))


def backward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    saved: Sequence[Tensor],
    history: Mapping[str, Tensor],
    final: Sequence[Tensor],
    *,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run a program's backward pass; as `interpreter.backward`."""
    like, time = state[0], Time(xs[0], batch_sizes)
    _check(like)
    plan, graph = plan_of(program, tuple(history), like.dtype), program.graph
    part = plan.parts.backward
    assert part is not None
    assert plan.backward is not None
    call = _call(like, time, reverse)
    loop = Loop(program, plan.backward, like, call, time.lead, forth=reverse)
    values, memory = loop.values, loop.memory
    values |= _operands(program, xs, tensors)
    for index, tensor in zip(program.schedule.saved, saved, strict=True):
        values[index] = memory[f"saved.{index}"] = tensor
    rings: dict[str, Tensor] = {}
    for field, first, cotangent in zip(program.fields, state, final, strict=True):
        old, new = graph.inputs[f"state.{field}"], graph.outputs[f"state.{field}"]
        if old == new:  # it never changes
            values[old] = time.everywhere(first)
            memory[f"const.{field}"] = first
        elif new in values:  # the state before each step: the initial one, then all but one
            after = memory[f"after.{field}"] = values[new]
            before = time.before(after, first, reverse=reverse)
            values[old] = memory[f"before.{field}"] = before
        rings[field] = loop.ring(field, cotangent, "carry", "passed")
        if field in history:
            memory[f"grad.{field}"] = history[field]
    kept = {int(name[5:]): name for name in part.graph.outputs if name.startswith("kept.")}
    for index, name in kept.items():
        values[index] = memory[name] = loop.timed(index)
    loop.run((call.batch,))
    compute(program, part.after, values, time.lead, like)
    of_state = {field: loop.last(ring) for field, ring in rings.items()}
    return interpreter.by_name(program, of_state, values)


def _operands(
    program: Program, xs: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    """Inputs and parameters by their nodes."""
    names = program.graph.inputs
    values = {names[f"x{k}"]: x for k, x in enumerate(xs)}
    return values | {names[f"param.{name}"]: tensor for name, tensor in tensors.items()}


def _call(like: Tensor, time: Time, reverse: bool) -> Call:
    """What a tier is told; of products of float32 torch's switch says how exact they are."""
    batch, sizes = like.shape[0], time.batch_sizes
    allowed = like.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return Call(
        time.count,
        batch,
        reverse,
        precision="tf32" if allowed else "ieee",
        itemsize=like.itemsize,
        processors=kernels.processors(like.device),
        shared=kernels.shared(like.device),
        layout=None if sizes is None else layout_of(sizes, batch, like.device),
    )
