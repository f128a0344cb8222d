"""A program as one operation of autograd."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.step import ComposedStep, wanted_of


class Run(Protocol):
    """What a forward pass leaves behind."""

    @property
    def history(self) -> Mapping[str, Tensor]:
        """Of every kept field, `(T, B, ...)`."""
        ...

    @property
    def final(self) -> tuple[Tensor, ...]:
        """The state after the last step."""
        ...

    @property
    def saved(self) -> Mapping[int, Tensor]:
        """What the backward pass reads, by the node of the program."""
        ...


class Engine(Protocol):
    """What runs programs: a module with a `forward` and a `backward` like the interpreter's."""

    @property
    def forward(self) -> Callable[..., Run]:
        """See `interpreter.forward`."""
        ...

    @property
    def backward(self) -> Callable[..., Mapping[str, Tensor]]:
        """See `interpreter.backward`."""
        ...


def run(
    engine: Engine,
    step: ComposedStep,
    state: Any,
    xs: tuple[Tensor, ...],
    *,
    reverse: bool = False,
    keep: Sequence[int] = (),
) -> tuple[tuple[Tensor, ...], Any]:
    """Compile a step and run its program by an engine; operands as in `reference.run`.

    Raises:
        CannotCompileError: the step is not a program.
        CannotRunError: the engine has no form of it, or cannot run on this machine.
    """
    tensors = dict(step.tensors)
    xs = tuple(x.flip(0) for x in xs) if reverse else xs
    wanted = wanted_of(step, tuple(state), xs) if torch.is_grad_enabled() else ()
    program = compile_step(step, xs, tuple(state), wanted)
    fields = tuple(step.fields[k] for k in keep)
    results = _Scan.apply(
        engine, program, len(xs), fields, wanted, tuple(tensors), *xs, *state, *tensors.values()
    )
    history, final = results[: len(fields)], results[len(fields) :]
    history = tuple(h.flip(0) for h in history) if reverse else history
    return history, type(state)(*final) if hasattr(state, "_fields") else tuple(final)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        engine: Engine,
        program: Program,
        inputs: int,
        fields: tuple[str, ...],
        wanted: tuple[str, ...],
        names: tuple[str, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        xs, state, params = _parts(program, inputs, tensors)
        ran = engine.forward(program, xs, state, dict(zip(names, params, strict=True)), fields)
        ctx.save_for_backward(*tensors, *ran.saved.values())
        ctx.about = (engine, program, inputs, fields, wanted, names, tuple(ran.saved))
        return (*ran.history.values(), *ran.final)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch calls it so
        ctx: Any, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        engine, program, inputs, fields, wanted, names, indices = ctx.about
        kept = ctx.saved_tensors  # looked at once: under a checkpoint a look computes them anew
        count = len(kept) - len(indices)
        tensors, saved = kept[:count], kept[count:]
        xs, state, params = _parts(program, inputs, tensors)
        gradients = engine.backward(
            program,
            xs,
            state,
            dict(zip(names, params, strict=True)),
            dict(zip(indices, saved, strict=True)),
            dict(zip(fields, cotangents, strict=False)),
            cotangents[len(fields) :],
        )
        order = [f"x{k}" for k in range(inputs)]
        order += [f"state.{field}" for field in program.fields]
        order += [f"param.{name}" for name in names]
        wished = (gradients.get(name) if name in wanted else None for name in order)
        return (None, None, None, None, None, None, *wished)


def _parts(
    program: Program, inputs: int, tensors: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Inputs, state and the other tensors, which travel as one row."""
    end = inputs + len(program.fields)
    return tensors[:inputs], tensors[inputs:end], tensors[end:]
