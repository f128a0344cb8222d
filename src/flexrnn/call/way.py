"""How plain calls of one kind run, found out once.

What is remembered is of kinds alone (dtypes, widths, which tensors want a gradient), and zeros that
begin a sequence; other tensors are those of the call.
"""

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.bind import Slot, bind, identity
from flexrnn.call.prepared import Inference, Part, Prepared, timed
from flexrnn.call.stack import stacked
from flexrnn.cell import Cell
from flexrnn.compose import CellStep
from flexrnn.engine import autocast, eager, engines
from flexrnn.engine.compiler.kept import age
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.cpu.engine import DTYPES
from flexrnn.engine.differentiable import Ready
from flexrnn.engine.paired import PairedReady, complex_of
from flexrnn.engine.standins import kinds
from flexrnn.engine.tables import trim
from flexrnn.fields import complex_fields, field_names, field_sizes, unwrap

ENGINE = "cpu"
SERVED = (*DTYPES, *autocast.HALF)
KEPT = 32  # ways of a layer; the oldest goes first
_SMALL = 64 << 10  # numbers of an initial state, up to which it is kept
_ZEROS = Cell.initial_state


class Fields(NamedTuple):
    """Of the state: how wide each field is, and whether it is complex."""

    widths: tuple[int, ...]
    complex: tuple[bool, ...]

    def fit(self, given: Sequence[Tensor], layers: int, batch: int) -> bool:
        """Whether these are the fields of an initial state, or there are none."""
        return not given or (
            len(given) == len(self.widths)
            and all(
                field.shape == (layers, batch, width) and field.is_complex() is is_complex
                for field, width, is_complex in zip(given, *self, strict=True)
            )
        )


class Way(NamedTuple):
    """How calls of one kind run: layer by layer, the directions of each one after another."""

    # Of each cell; its parameters, of the layer's.
    parts: tuple[tuple[Ready | PairedReady, tuple[int, ...]], ...]
    directions: int
    state: Any  # its class, a NamedTuple
    fields: Fields
    to: torch.dtype | None = None  # of results, where the engine is given float32 in its place

    def __call__(
        self,
        x: Tensor,
        given: tuple[Tensor, ...],
        params: Sequence[Tensor],
        *,
        start: tuple[Tensor, ...],
        axis: int | None,
    ) -> tuple[Tensor, Any]:
        """Run all layers and directions.

        Args:
            x: the input, with time on its axis.
            given: the initial state, or nothing.
            params: of the layer.
            start: the initial state of every cell, where none is given.
            axis: of time in x.

        Returns:
            The output `(T, B, ·)`, or `(B, ·)` of a single step, and the last state.
        """
        x, dtype = timed(x, axis), self.to or x.dtype
        if self.to is None:
            x, finals = self._run(x, given, params, start)
        else:
            with autocast.off(x):
                x, finals = self._run(x, given, params, start)
        last = unwrap(stacked(self.state, finals, dtype))
        return x[0] if axis is None else x, last

    def _run(
        self,
        x: Tensor,
        given: tuple[Tensor, ...],
        params: Sequence[Tensor],
        start: tuple[Tensor, ...],
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """The output and all last states."""
        finals: list[tuple[Tensor, ...]] = []
        outputs: list[Tensor] = []
        for k, (ready, at) in enumerate(self.parts):
            state = start or [field[k] for field in given]
            row = (x, *state, *[params[i] for i in at])
            output, *final = ready(row if self.to is None else [t.float() for t in row])
            finals.append(tuple(final))
            outputs.append(output if self.to is None else output.to(self.to))
            if len(outputs) == self.directions:
                x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
                outputs = []
        return x, finals

    def straight(
        self, row: tuple[Tensor, ...], start: tuple[Tensor, ...], axis: int | None
    ) -> Inference | None:
        """What calls without derivatives run that are like one which has just run.

        Args:
            row: its input, the initial state, and the parameters.
            start: the initial state of every cell, where none was given.
            axis: of time in the input.

        Returns:
            None where there are two directions, or something has to be copied or cast first.
        """
        if self.to is not None:
            return None
        widths = self.fields.widths
        x, fields = row[0], 0 if start else len(widths)
        x = timed(x, axis)
        given, params = row[1 : 1 + fields], row[1 + fields :]
        parts: list[Part] = []
        for k, (ready, at) in enumerate(self.parts):
            state = start or tuple(field[k] for field in given)
            run = ready.straight((x, *state, *(params[i] for i in at)))
            if run is None or self.directions > 1:
                return None
            parts.append(Part(run, at))
            x = x.new_empty(*x.shape[:2], widths[0])
        return Inference(row, parts, self.state, widths, start, axis)


class Memory:
    """What is known of a layer. It holds neither the layer nor any tensor of it."""

    def __init__(self, slots: Sequence[tuple[Slot, ...]]):
        self.flat = list(dict.fromkeys(slot.flat for slot in chain(*slots)))
        self.ways: dict[Any, Way | None] = {}
        self.prepared: dict[Any, Prepared] = {}
        self.seen: dict[Any, None] = {}  # kinds of calls that came once: the second is prepared
        self.blind = False  # a cell has what can change without anybody seeing it
        self.zeros: tuple[Any, tuple[Tensor, ...]] = (None, ())

    def comes_again(self, like: Any) -> bool:
        """Whether a call like this has come before."""
        if like in self.seen or like in self.prepared:
            return True
        self.seen[like] = None
        trim(self.seen, KEPT)
        return False


def is_kept(start: tuple[Tensor, ...]) -> bool:
    """Whether an initial state is one that is kept."""
    return sum(map(Tensor.numel, start)) <= _SMALL


def zeros_for(memory: Memory, fields: Fields, x: Tensor) -> tuple[Tensor, ...]:
    """The state before the first step of x `(T, B, I)`, of every cell; nobody writes there.

    It is in the dtype that the engine is given.
    """
    batch, dtype = x.shape[1], engines.cast_to(ENGINE, x) or x.dtype
    about, zeros = memory.zeros
    if about != (batch, dtype, fields):
        with torch.inference_mode(False):  # else autograd could never save it
            zeros = tuple(
                torch.zeros(batch, width, dtype=complex_of(dtype) if z else dtype, device=x.device)
                for width, z in zip(*fields, strict=True)
            )
        if is_kept(zeros):
            memory.zeros = (batch, dtype, fields), zeros
    return zeros


def way_of(
    layer: Any,
    memory: Memory,
    cells: list[Cell],
    x: Tensor,
    given: tuple[Tensor, ...],
    params: list[Tensor],
) -> Way | None:
    """The way of a call `(T, B, I)`, remembered, or found out now."""
    identities = tuple(map(identity, cells))
    key = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        layer.bidirectional,
        x.dtype,
        autocast.dtype_for(x),
        torch.is_autocast_enabled("cuda"),
        age(),
        x.requires_grad,
        identities,
        *[field.requires_grad for field in given],
        *[(tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in params],
        kinds(params),
    )
    way = memory.ways.get(key)
    if way is None and key not in memory.ways:
        if not all(isinstance(number, int) for number in identities):
            memory.blind = True
            return None
        if not _fields_of(cells[0]).fit(given, len(cells), x.shape[1]):
            return None
        try:
            way = _found(layer, memory, cells, x, given, params)
        except CannotCompileError:
            way = None
        memory.ways[key] = way
        trim(memory.ways, KEPT)
    return way


def _found(
    layer: Any,
    memory: Memory,
    cells: list[Cell],
    x: Tensor,
    given: tuple[Tensor, ...],
    params: list[Tensor],
) -> Way | None:
    """Find out how a layer runs; None if it has more than parameters or begins in its own way."""
    fields, ways = _fields_of(cells[0]), layer.num_directions
    start = () if given else zeros_for(memory, fields, x)
    if start and not all(map(begins_with_zeros, cells)):
        return None
    lent: Any = SimpleNamespace(**dict(zip(memory.flat, params, strict=True)))
    parts: list[tuple[Ready | PairedReady, tuple[int, ...]]] = []
    learns, own, to = False, x.dtype, engines.cast_to(ENGINE, x)
    rounded, narrow = autocast.dtype_for(x) or own, engines.is_narrow(ENGINE, x)
    if to is not None and (any(fields.complex) or any(p.is_complex() for p in params)):
        return None  # what is cast is real
    for k, (cell, slots) in enumerate(zip(cells, layer._slots, strict=True)):
        step: Any = CellStep(bind(cell, slots, lent), origin=cell)
        if to is not None:
            step = autocast.CastStep(step, to, narrow=narrow)
        places = {f"{s.module}.{s.name}".lstrip("."): memory.flat.index(s.flat) for s in slots}
        if step.tensors.keys() != places.keys():
            return None
        state = cell.State(*(autocast.cast(s, to) for s in start or (f[k] for f in given)))
        again: dict[str, Any] = {"reverse": k % ways == 1, "engine": ENGINE}
        with autocast.off(x):
            ready = eager.ready_again(step, state, autocast.cast(x, to), **again)
        parts.append((ready, tuple(places[name] for name in step.tensors)))
        learns |= bool(ready.about.gradients)
        if k % ways == ways - 1:  # of what the next layer gets only the kind counts
            dtype = complex_of(own) if fields.complex[0] else own
            x = x.new_empty(1, x.shape[1], ways * fields.widths[0], dtype=dtype)
            x, learns = (x.requires_grad_() if learns else x), False
    return Way(tuple(parts), ways, cells[0].State, fields, None if to is None else rounded)


def _fields_of(cell: Cell) -> Fields:
    complexes = complex_fields(cell)
    return Fields(field_sizes(cell), tuple(name in complexes for name in field_names(cell)))


def begins_with_zeros(cell: Cell) -> bool:
    """Whether a cell's initial state is that of `Cell`."""
    return getattr(cell.initial_state, "__func__", None) is _ZEROS
