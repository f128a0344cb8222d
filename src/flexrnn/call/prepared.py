# pyright: reportPrivateUsage=false
# What is in force for torch's operations, and where a module keeps its tensors, has no public name.
"""A plain call, prepared; without derivatives from tensors to the loop's addresses and back.

What one call has found out holds for the next while nothing has changed of what is in force in
this thread, of the layer's options and cells, and of the tensors' kinds. The numbers are read where
they lie now: no address is remembered.
"""

from collections.abc import Callable, Sequence
from operator import add, attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.bind import identity
from flexrnn.cell import Cell
from flexrnn.engine import engines, scan
from flexrnn.engine.compiler.kept import age
from flexrnn.engine.cpu.build import openmp
from flexrnn.engine.cpu.precision import allows_bfloat16
from flexrnn.engine.cpu.straight import Straight
from flexrnn.engine.kinds import Kinds
from flexrnn.engine.ordinary import Call, kind
from flexrnn.fields import unwrap
from flexrnn.record import is_recorded
from flexrnn.references import shares

_options = attrgetter("zoneout", "training", "recurrent_dropout", "weight_drop", "dropout",
                      "num_layers", "checkpoint_every", "backend", "batch_first", "bidirectional",
                      "input_size", "learn_initial_state")  # fmt: skip
_address = Tensor.data_ptr


class Part(NamedTuple):
    """One of the layers on top of one another."""

    run: Straight
    parameters: tuple[int, ...]  # which of all


Run = Callable[[Tensor, tuple[Tensor, ...], Sequence[Tensor]], tuple[Tensor, Any] | None]


class Prepared:
    """A call of one kind, prepared, or known to be none that can be.

    Args:
        about: what `known` says of it.
        row: the input as it is given, the initial state, and the parameters.
        run: the call, of these three; it returns nothing where it cannot be done. None where there
            is no shorter way.
    """

    def __init__(self, about: Any, row: Sequence[Tensor], run: Run | None):
        self._about, self._kinds, self.run = about, Kinds(row), run

    def holds(self, about: Any, row: Sequence[Any]) -> bool:
        """Whether a call is of this kind, and everything around it as it was."""
        return about == self._about and self._kinds.are_those_of(row)


class Inference:
    """A call without derivatives in one direction, by addresses.

    Args:
        row: as of `Prepared`.
        parts: of every layer.
        state: the class of the state, a NamedTuple.
        widths: of the state.
        start: the initial state of every layer `(B, width)`, where none is given.
        axis: of time in the input; None of a single step.
    """

    def __init__(
        self,
        row: Sequence[Tensor],
        parts: Sequence[Part],
        state: Any,
        widths: Sequence[int],
        start: tuple[Tensor, ...],
        axis: int | None,
    ):
        self._parts, self._state, self._start = parts, state, start
        *lead, _ = row[0].transpose(0, axis or 0).shape
        batch, size = lead[-1], row[0].element_size()
        self._output, self._axis = (*lead, widths[0]), axis
        self._fields = [(len(parts), batch, width) for width in widths]
        self._apart = [size * batch * width for width in widths]  # bytes from layer to layer
        given = () if start else row[1 : 1 + len(widths)]
        self._between = [size * field.stride(0) for field in given] or [0] * len(widths)

    def __call__(
        self, x: Tensor, given: tuple[Tensor, ...], params: Sequence[Tensor]
    ) -> tuple[Tensor, Any] | None:
        """Run it; the output is `(T, B, width)`, or `(B, width)`. None where memory was freed."""
        final = [x.new_empty(*shape) for shape in self._fields]
        weights, ends = [*map(_address, params)], [*map(_address, final)]
        begins = [*map(_address, given or self._start)]
        if not (all(weights) and all(begins) and _address(x)):
            return None
        output = x
        for k, (run, parameters) in enumerate(self._parts):
            if k:
                ends = [*map(add, ends, self._apart)]
                begins = [*map(add, begins, self._between)]
            below, output = output, x.new_empty(*self._output)
            own = [weights[i] for i in parameters]
            operands = ()
            if run.reads:
                operands = (timed(below, 0 if k else self._axis), *(params[i] for i in parameters))
            run((_address(below), *begins, *own, _address(output), *ends), operands)
        return output, unwrap(self._state(*final))


def timed(x: Tensor, axis: int | None) -> Tensor:
    """An input with time in front."""
    return x[None] if axis is None else x.transpose(0, 1) if axis else x


def known(layer: Any, cells: Sequence[Cell]) -> Any:
    """All that makes a call what it is but for its tensors; None where some of it has no name.

    Whoever calls has looked for Dynamo, hooks, and whether there are derivatives.
    """
    if (
        kind(()) is not Call.EAGER
        or torch._C._len_torch_function_stack()
        or scan.is_watched()
        or is_recorded(layer)
        or any(map(has_tensors, cells))
    ):
        return None
    return (
        _options(layer),
        scan.in_force(layer.backend),
        engines.ENGINES["cpu"],
        torch.get_default_dtype(),
        openmp.threads(),
        allows_bfloat16(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),  # which is what a step asks that names no device
        age(),
        [*map(identity, cells)],
    )


def has_tensors(module: torch.nn.Module) -> bool:
    """Whether a module, or one inside it, has parameters or buffers; a cell's are the layer's.

    Or whether something else leads to the layer's, and may lead to others at the next call.
    """
    if shares(module):
        return True
    own, inside = (module._parameters, module._buffers), module._modules
    if any(own) and any(tensor is not None for held in own for tensor in held.values()):
        return True
    return bool(inside) and any(m is not None and has_tensors(m) for m in inside.values())
