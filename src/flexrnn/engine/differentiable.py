"""A program as one operation of autograd, for eager calls."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine import autocast, recompute
from flexrnn.engine.again import Again
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.build import openmp
from flexrnn.engine.cpu.precision import allows_bfloat16
from flexrnn.engine.cpu.straight import Straight
from flexrnn.engine.engines import ENGINES, is_written, straight
from flexrnn.engine.ordinary import for_ordinary_operations
from flexrnn.engine.replay import Result
from flexrnn.engine.signature import Signature


class Ready(NamedTuple):
    """A program with everything decided but its operands."""

    engine: str  # by name: what stands under it is looked up when it runs
    program: Program
    about: Signature  # the program's
    keep: tuple[str, ...]  # fields of the state that are wanted at every step
    reverse: bool  # from the last step to the first
    batch_sizes: Tensor | None = None  # where sequences end at different steps
    again: Again | None = None  # where it stays, and calls come again

    def __call__(self, row: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it on operands as the signature orders them.

        Returns:
            The kept fields' histories, then the last state.
        """
        row = self.complete(row)
        if not torch.is_grad_enabled():
            return self.forward(tuple(row))[: self.ends]
        if self.about.gradients:
            return _Scan.apply(self, *self._without_flat(row))
        with torch.no_grad():
            results = self.forward(tuple(row))[: self.ends]
        return results if self.batch_sizes is None else self._with_unread(results, row)

    def _without_flat(self, row: Sequence[Tensor]) -> Sequence[Tensor]:
        """Operands, of which parameters without a gradient here are nothing to autograd.

        It would go on to what they were made of, where there may be nothing any more: the `weight`
        that torch's older `weight_norm` leaves in a module is one of the call before. The results
        still have a gradient where no other operand has one: it leads nowhere, and not to an error.
        """
        learns = [k for k in self.about.flat if row[k].requires_grad]
        if not learns:
            return row
        return [t.detach().requires_grad_() if k in learns else t for k, t in enumerate(row)]

    def _with_unread(self, results: tuple[Any, ...], row: Sequence[Tensor]) -> tuple[Any, ...]:
        """Results of steps without derivative: sequences of no step end in their first state."""
        assert self.batch_sizes is not None
        _, state, _ = self.about.parts(row)
        read = int(self.batch_sizes[0]) if len(self.batch_sizes) else 0
        if read == len(state[0]):
            return results
        ends = zip(results[len(self.keep) :], state, strict=True)
        return *results[: len(self.keep)], *(torch.cat([e[:read], s[read:]]) for e, s in ends)

    def complete(self, row: Sequence[Tensor]) -> Sequence[Tensor]:
        """The operands that a step has, and those that torch makes of them ahead."""
        ahead = self.program.graph.ahead
        if ahead is None:
            return row
        return *row, *ahead.of(dict(zip(self.about.names, row, strict=False)))

    @property
    def ends(self) -> int:
        """How many tensors it returns."""
        return len(self.keep) + self.about.states

    def forward(self, row: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """As the engine's `forward`: histories, the last state, and what it saves."""
        ran = ENGINES[self.engine].forward(
            self.program,
            *self.about.parts(row),
            self.keep,
            reverse=self.reverse,
            batch_sizes=self.batch_sizes,
        )
        return (*ran.history.values(), *ran.final, *ran.saved)

    def backward(self, wanted: Sequence[bool], saved: int, row: tuple[Tensor, ...]) -> Result:
        """As the engine's `backward`: the gradients by operands.

        Args:
            wanted: which of them.
            saved: how many tensors `forward` has saved.
            row: the operands, what is saved, and the cotangents of what it returned.
        """
        operands = len(self.about.names)
        ends = operands + saved
        final = ends + len(self.keep)
        found = ENGINES[self.engine].backward(
            self.program,
            *self.about.parts(row[:operands]),
            row[operands:ends],
            dict(zip(self.keep, row[ends:final], strict=True)),
            row[final:],
            reverse=self.reverse,
            batch_sizes=self.batch_sizes,
        )
        by_name = zip(self.about.names, wanted, strict=True)
        return tuple(found.get(name) if is_wanted else None for name, is_wanted in by_name)

    def straight(self, row: Sequence[Tensor]) -> Straight | None:
        """As the engine's `straight`, for these operands; None also where some are made ahead."""
        if self.program.graph.ahead is not None:
            return None
        parts = self.about.parts(row)
        return straight(self.engine, self.program, *parts, self.keep, reverse=self.reverse)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Ready, *row: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ends = call, call.ends
        results = _run(call, call.forward, row, ("forward", row[0].shape, row[0].stride()))
        ctx.save_for_backward(*row, *results[ends:])
        return results[:ends]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        call: Ready = ctx.call
        about, wanted = call.about, ctx.needs_input_grad[1:]
        tensors = ctx.saved_tensors  # looked at once: under a checkpoint a look computes them anew
        saved, x = len(tensors) - len(about.names), tensors[0]
        with autocast.off(x):
            if for_ordinary_operations(cotangents):
                times: Any = {"reverse": call.reverse, "batch_sizes": call.batch_sizes}
                row = tensors[: len(about.names)]
                found = recompute.gradients(call.program, row, call.keep, cotangents, **times)
                return None, *(found.get(name) for name in about.names)
            function = partial(call.backward, wanted, saved)
            sort = ("backward", x.shape, x.stride(), cotangents[0].stride(), wanted)
            return None, *_run(call, function, (*tensors, *cotangents), sort)


def _run(call: Ready, function: Any, row: tuple[Tensor, ...], sort: tuple[Any, ...]) -> Any:
    """Call a function of tensors; as it was written down where it was."""
    if call.again is None or not is_written(call.engine):
        return function(row)
    return call.again(function, row, (*sort, openmp.threads(), allows_bfloat16()))
