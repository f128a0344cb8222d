"""The engines that run programs, and the order in which `auto` tries them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu import engine as cpu
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
    ) -> dict[str, Tensor]:
        """The gradients."""
        ...


ENGINES: dict[str, Engine] = {"interpreter": interpreter, "cpu": cpu}
AUTO: tuple[str, ...] = ("reference",)  # the fastest first; the last can run everything
