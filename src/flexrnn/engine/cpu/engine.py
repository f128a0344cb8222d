"""The CPU engine: programs run by generated C++, and by large products before and after it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexrnn.engine.compiler.pretty import origins
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu import emit
from flexrnn.engine.cpu.backward import Backward
from flexrnn.engine.cpu.build import openmp
from flexrnn.engine.cpu.build.isa import machine
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.forward import Forward
from flexrnn.engine.cpu.plan import (
    dense,
    is_known,
    is_narrow,
    laid_out,
    materialized,
    operands,
    sizes_of_call,
)
from flexrnn.engine.cpu.precision import allows_bfloat16
from flexrnn.engine.cpu.saved import saved_of
from flexrnn.engine.cpu.straight import Straight
from flexrnn.engine.interpreter import Run
from flexrnn.engine.lowering.extract import extract
from flexrnn.engine.lowering.stages import lower
from flexrnn.engine.step import CannotRunError

DTYPES = (torch.float32, torch.float64)  # those that generated code knows


def _check(like: Tensor) -> None:
    if not like.is_cpu:
        raise CannotRunError(f"the cpu engine runs on the CPU, got tensors on {like.device}")
    if like.dtype not in DTYPES:
        raise CannotRunError(f"the cpu engine computes in float32 and float64, got {like.dtype}")


def prepare(program: Program, like: Tensor) -> None:
    """Refuse a program, a dtype, a device or a machine that this engine cannot serve.

    Raises:
        CannotRunError: as it says.
    """
    _check(like)
    if not is_known(program):
        parts = extract(program, hoist=False, keep=())
        for part in (parts.forward, parts.backward):
            if part is not None:
                lower(part.graph, again=True, flat=True)
    library('extern "C" void nothing() {}')  # there is a compiler, and a place for what it makes


def source(program: Program) -> str:
    """The C++ in float32 for several rows whose weights are near: the loop there and the loop back.

    With products of bfloat16, where this machine has them and the program may.
    Without what stands in front of every source, the functions of `runtime/*.h`; and with the
    person's lines that formulas are from, which what is compiled goes without.
    """
    parts = extract(program, hoist=False, keep=program.fields[:1], lines=True)
    narrow = is_narrow(program.graph.narrow or allows_bfloat16(), torch.float32)
    head = "\n".join(f"// {row}" for row in origins(program))
    texts = [f"{head}\n"] if head else []
    for name, part in (("forward", parts.forward), ("backward", parts.backward)):
        if part is not None:
            found = emit.source(
                lower(part.graph, again=True, flat=True),
                backward=name == "backward",
                registers=machine().sums,
                lanes=machine().vector_bytes // torch.float32.itemsize,
                shape=emit.Shape.ROWS,
                narrow=narrow,
            )
            texts.append("\n".join((f"// The {name} loop.\n", *found.functions, found.text)))
    return "\n".join(texts)


def saved_like(
    program: Program, steps: int, like: Tensor, keep: Sequence[str]
) -> tuple[Tensor | str, ...]:
    """What `forward` saves; as `interpreter.saved_like`, but most of it lies in one block."""
    saved, batch = saved_of(program, tuple(keep)), like.shape[0]
    block = (like.new_empty(steps * batch * saved.width),) if saved.block else ()
    alone = (like.new_empty(steps, batch, *inner) for inner in saved.alone.values())
    return (*saved.kept.values(), *block, *alone)


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
    like = state[0]
    _check(like)
    given = operands(program, xs, state, tensors, batch_sizes)
    sizes = sizes_of_call(xs, state, reverse, openmp.threads(), batch_sizes)
    return laid_out(Forward, program, tuple(keep), sizes, given, like.dtype)(given, like)


def straight(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
    *,
    reverse: bool = False,
) -> Straight | None:
    """What `forward` does without derivatives, for operands of these kinds that lie so.

    Returns:
        What takes their addresses, in this order; None where it is not so easy.
    """
    names = [f"x{k}" for k in range(len(xs))]
    names += [f"state.{field}" for field in program.fields]
    names += [f"param.{name}" for name in tensors]
    given = operands(program, xs, state, tensors)
    row = (*xs, *state, *tensors.values())
    if any(given[name] is not tensor for name, tensor in zip(names, row, strict=True)):
        return None  # some have to be copied first
    sizes = sizes_of_call(xs, state, reverse, openmp.threads(), None)
    laid = laid_out(Forward, program, tuple(keep), sizes, given, state[0].dtype)
    return Straight(laid, names) if laid.is_straight else None


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
    like = state[0]
    _check(like)
    given = operands(program, xs, state, tensors, batch_sizes)
    fewer = batch_sizes is not None
    sizes = sizes_of_call(xs, state, reverse, openmp.threads(), batch_sizes)
    for name, tensor in saved_of(program, tuple(history)).by_name(saved).items():
        # Autograd's hooks may hand over others. Of a history the loop takes the rows to be as far
        # apart as those of the first state, in front of it.
        given[name] = tensor.contiguous()
    for field, cotangent in zip(program.fields, final, strict=True):
        given[f"final.{field}"] = materialized(cotangent).contiguous()
    for field, cotangent in history.items():
        given[f"grad.{field}"] = dense(materialized(cotangent), fewer=fewer)
    return laid_out(Backward, program, tuple(history), sizes, given, like.dtype)(given, like)
