"""A program as one operation of autograd, for eager calls."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine import autocast, recompute
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.straight import Straight
from flexrnn.engine.engines import ENGINES, straight
from flexrnn.engine.signature import Signature


class Ready(NamedTuple):
    """A program with everything decided but its operands."""

    engine: str  # by name: what stands under it is looked up when it runs
    program: Program
    about: Signature  # the program's
    keep: tuple[str, ...]  # fields of the state that are wanted at every step
    reverse: bool  # from the last step to the first
    batch_sizes: Tensor | None = None  # where sequences end at different steps

    def __call__(self, row: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it on operands as the signature orders them.

        Returns:
            The kept fields' histories, then the last state.
        """
        if self.about.gradients and torch.is_grad_enabled():
            return _Scan.apply(self, *row)
        ran = self.forward(row)
        return (*ran.history.values(), *ran.final)

    def forward(self, row: Sequence[Tensor]) -> Any:
        """As the engine's `forward`."""
        return ENGINES[self.engine].forward(
            self.program,
            *self.about.parts(row),
            self.keep,
            reverse=self.reverse,
            batch_sizes=self.batch_sizes,
        )

    def straight(self, row: Sequence[Tensor]) -> Straight | None:
        """As the engine's `straight`, for these operands."""
        parts = self.about.parts(row)
        return straight(self.engine, self.program, *parts, self.keep, reverse=self.reverse)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Ready, *row: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ran = call, call.forward(row)
        ctx.save_for_backward(*row, *ran.saved)
        return (*ran.history.values(), *ran.final)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        call: Ready = ctx.call
        engine, program, about, keep, reverse, batch_sizes = call
        times = {"reverse": reverse, "batch_sizes": batch_sizes}
        tensors = ctx.saved_tensors  # looked at once: under a checkpoint a look computes them anew
        row, saved = tensors[: len(about.names)], tensors[len(about.names) :]
        with autocast.off(row[0]):
            if torch.is_grad_enabled():  # create_graph=True
                found = recompute.gradients(program, row, keep, cotangents, **times)
            else:
                history = dict(zip(keep, cotangents, strict=False))
                operands, final = about.parts(row), cotangents[len(keep) :]
                found = ENGINES[engine].backward(program, *operands, saved, history, final, **times)
        return None, *(found.get(name) for name in about.names)
