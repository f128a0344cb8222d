"""The engines that run programs, and the order in which `auto` tries them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flexrnn.engine import autocast, interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu import engine as cpu
from flexrnn.engine.cpu.straight import Straight
from flexrnn.engine.cuda import engine as cuda
from flexrnn.engine.interpreter import Run


class Engine(Protocol):
    """What an engine offers; `interpreter` says what each argument is."""

    def prepare(self, program: Program, like: Tensor) -> None:
        """Get everything ready to run a program on a state's device and dtype.

        Raises:
            CannotRunError: it cannot be run here.
        """
        ...

    def forward(
        self,
        program: Program,
        xs: Sequence[Tensor],
        state: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        keep: Sequence[str],
        *,
        reverse: bool = False,
        batch_sizes: Tensor | None = None,
    ) -> Run:
        """Run over time. Raises `CannotRunError` as `prepare` does."""
        ...

    def saved_like(
        self, program: Program, steps: int, like: Tensor, keep: Sequence[str]
    ) -> tuple[Tensor | str, ...]:
        """What `forward` saves, by shape and dtype: the operator promises it in advance."""
        ...

    def backward(
        self,
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
        """The gradients."""
        ...


ENGINES: dict[str, Engine] = {"interpreter": interpreter, "cpu": cpu, "cuda": cuda}
WITHOUT_PROGRAM = ("reference", "torch")  # what else has a name
CASTS: tuple[str, ...] = ("cpu", "cuda", "torch")  # are given tensors in a dtype of their choice
# The fastest first; the last can run everything. `torch` is missing: on the CPU generated code is
# the faster, and on a card `native.is_faster` says for which calls it is not.
AUTO: tuple[str, ...] = ("cpu", "cuda", "reference")


def source(engine: str, program: Program, dtype: torch.dtype) -> str:
    """The code that an engine generates for a program, or nothing."""
    if engine == "cuda":
        return cuda.source(program, dtype)
    return cpu.source(program) if engine == "cpu" else ""


def straight(
    engine: str,
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
    *,
    reverse: bool,
) -> Straight | None:
    """As `cpu.straight`, of an engine that has it; None of another."""
    if ENGINES[engine] is not cpu:
        return None
    return cpu.straight(program, xs, state, tensors, keep, reverse=reverse)


def is_written(engine: str) -> bool:
    """Whether what an engine does can be written down; see `replay`."""
    return ENGINES[engine] is cpu


def not_served(engine: str, like: Tensor) -> str:
    """Why an engine is not for tensors of this kind, or nothing.

    These are limits that are stated and not met by accident, so that `auto` passes on in silence.
    """
    kind = like.device.type
    if engine not in ("cpu", "cuda"):
        return ""
    if kind != engine:
        return f"serves {'the CPU' if engine == 'cpu' else 'CUDA'}, not {kind}"
    to = autocast.dtype_for(like)
    if engine == "cuda" and torch.version.hip is not None:
        return "has not run on an AMD card yet, and runs there where it is named"
    dtypes = cuda.DTYPES if engine == "cuda" else (*autocast.HALF, *cpu.DTYPES)
    if (to or like.dtype) not in dtypes:
        return f"computes in half types, float32 and float64, not in {to or like.dtype}"
    return ""


def chain(backend: str, like: Tensor, steps: int | None = None) -> tuple[str, ...]:
    """The engines that a backend tries, one after another.

    Args:
        backend: an engine's name, or `auto`.
        like: a state.
        steps: T, where it is known. A single one is no loop: the reference is the faster, but for
            what is prepared; see `call.quick`. On the CPU it would round half types otherwise.
    """
    if backend != "auto":
        return (backend,)
    if steps == 1 and not (like.device.type == "cpu" and cast_to("cpu", like)):
        return AUTO[-1:]
    return tuple(engine for engine in AUTO if not not_served(engine, like))


def is_narrow(engine: str, like: Tensor) -> bool:
    """Whether tensors that an engine is given in another dtype are of bfloat16, or autocast's."""
    return engine == "cpu" and (autocast.dtype_for(like) or like.dtype) == torch.bfloat16


def cast_to(engine: str, like: Tensor) -> torch.dtype | None:
    """The dtype in which an engine is given the tensors of a call, or None where they stay.

    Under autocast that is autocast's; `cpu` computes in float32 in the place of half types, but for
    products of bfloat16; see `is_narrow`. Results are rounded to the dtypes that they would have
    otherwise.
    """
    to = autocast.dtype_for(like)
    if engine == "cpu":
        return torch.float32 if to is not None or like.dtype in autocast.HALF else None
    return to if engine in CASTS else None
