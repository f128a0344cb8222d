# pyright: reportPrivateUsage=false
# Whether a module has hooks, and where it keeps its tensors, has no public name.
"""A plain call on the shortest way: what the first one found out is there at the next.

The long way, `forward`, knows every case and words every error. This one knows the plain case,
looks that it is the one, and does nothing that the case does not need. What it remembers is of
kinds alone (dtypes, widths, which tensors want a gradient); the tensors are those of the call.
"""

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules import module as hooks
from torch.nn.utils.rnn import PackedSequence

from flexrnn.bind import Slot, bind, identity
from flexrnn.call.initial import initial_state
from flexrnn.call.prepared import Part, Prepared, has_tensors, known, timed
from flexrnn.call.stack import each, stacked
from flexrnn.cell import Cell, field_sizes, unwrap
from flexrnn.check import check_packed
from flexrnn.compose import CellStep
from flexrnn.engine import eager, engines, scan
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.cpu.engine import DTYPES
from flexrnn.engine.differentiable import Ready
from flexrnn.engine.kinds import can_tell
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim
from flexrnn.record import is_recorded

_ENGINE = "cpu"
_KEPT = 32  # ways of a layer; the oldest goes first
_SMALL = 64 << 10  # numbers of an initial state, up to which it is kept
_ZEROS = Cell.initial_state


class _Way(NamedTuple):
    """How calls of one kind run."""

    parts: tuple[tuple[Ready, tuple[int, ...]], ...]  # of each cell; its parameters, of the layer's
    widths: tuple[int, ...]  # of the state


class _Memory:
    """What is known of a layer. It holds neither the layer nor any tensor of it."""

    def __init__(self, slots: Sequence[tuple[Slot, ...]]):
        self.flat = list(dict.fromkeys(slot.flat for slot in chain(*slots)))
        self.ways: dict[Any, _Way | None] = {}
        self.prepared: dict[Any, Prepared] = {}
        self.seen: dict[Any, None] = {}  # kinds of calls that came once: the second is prepared
        self.blind = False  # a cell has what can change without anybody seeing it
        self.zeros: tuple[Any, tuple[Tensor, ...]] = (None, ())

    def comes_again(self, like: Any) -> bool:
        """Whether a call like this has come before."""
        if like in self.seen or like in self.prepared:
            return True
        self.seen[like] = None
        trim(self.seen, _KEPT)
        return False


_memories: WeakKeyDictionary[Any, _Memory] = WeakKeyDictionary()


def call(layer: Any, x: Any, hx: Any) -> tuple[Any, Any] | None:
    """Run a layer, or nothing where the call is not a plain one.

    Args:
        layer: a `FlexRNN`.
        x: the input.
        hx: the initial state.

    Returns:
        What `forward` returns; None where that has to be found on the long way.
    """
    if torch.compiler.is_compiling() or "parametrizations" in layer._modules:
        return None  # parametrizations are not to be computed twice
    if isinstance(x, PackedSequence):
        return _packed(layer, x, hx)
    if not isinstance(x, Tensor):
        return None
    found = _run(layer, x, hx, axis=int(layer.batch_first))
    return (found[0].transpose(0, 1), found[1]) if found and layer.batch_first else found


def _packed(layer: Any, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any] | None:
    """Run over sequences of one length, such as a single one: they lie as in `(T, B, I)`."""
    data, sizes, order, back = packed
    if (
        scan.is_watched()
        or (hx is not None and order is not None)
        or not (type(data) is type(sizes) is Tensor)
        or not (data.is_cpu and sizes.is_cpu)
        or not _is_strided(data)
        or data.dim() != 2
        or sizes.dim() != 1
        or not sizes.numel()
        or sizes[0] != sizes[-1]
    ):
        return None
    try:
        check_packed(packed)
    except ValueError:  # which the long way says, unless there is a mistake that comes before
        return None
    found = _run(layer, data.unflatten(0, (sizes.shape[0], -1)), hx, axis=0)
    if found is None:
        return None
    output, state = found
    if back is not None:

        def unsort(field: Tensor) -> Tensor:
            return field.index_select(1, back)

        state = unsort(state) if isinstance(state, Tensor) else each(unsort, state)
    return PackedSequence(output.flatten(0, 1), sizes, order, back), state


def step(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
    """Run a layer for one step without derivatives, past its `__call__`.

    Args:
        layer: a `FlexRNN` of one direction whose class does not override `forward`.
        x: `(B, I)`.
        state: the state before the step, each field `(L, B, width)`, or None.

    Returns:
        The output `(B, width)` and the new state; None where `forward` is to be called.
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or x.dim() != 2
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
    ):
        return None
    return _run(layer, x, state, axis=None)


def _is_plain(layer: Any) -> bool:
    """Whether nobody listens, nothing is drawn, cast or left out, and the engine is not another."""
    return not (
        layer.zoneout
        or (layer.training and (layer.recurrent_dropout or layer.weight_drop))
        or (layer.training and layer.dropout and layer.num_layers > 1)
        or (layer.checkpoint_every is not None and torch.is_grad_enabled())
        or scan.in_force(layer.backend) not in ("auto", _ENGINE)
        or scan.is_watched()
        or is_recorded(layer)
        or torch.is_autocast_enabled("cpu")
    )


def _run(layer: Any, x: Tensor, hx: Any, *, axis: int | None) -> tuple[Tensor, Any] | None:
    """Run all layers and directions; the output is `(T, B, ·)`, or `(B, ·)` of a single step.

    Args:
        layer: the layer.
        x: `(T, B, I)`, `(B, T, I)`, or `(B, I)` for a single step.
        hx: the initial state.
        axis: of time in x.
    """
    if (memory := _memories.get(layer)) is None:
        memory = _memories[layer] = _Memory(layer._slots)
    given = (hx,) if isinstance(hx, Tensor) else () if hx is None else hx
    if memory.blind or not isinstance(given, tuple) or (hx is not None and not given):
        return None
    cells = list(layer._modules["cells"]._modules.values())
    own = layer._parameters  # first, for a module's `__getattr__` is slow
    params = [own[f] if f in own else getattr(layer, f) for f in memory.flat]
    row = (x, *given, *params)
    about = known(layer, cells) if _may_be_prepared(layer, x) else None
    like = None if about is None else _like(layer, x, len(given), axis)
    prepared = memory.prepared.get(like)
    if prepared and not prepared.holds(about, row):
        prepared = None
    if prepared and prepared.parts and (result := prepared(x, given, params)):
        return result
    if not _is_plain(layer) or (about is None and any(map(has_tensors, cells))):
        return None
    try:
        if not _lie_here(row) or not _is_served(layer, x, axis):
            return None
        x = timed(x, axis)
        if hx is None and layer.learn_initial_state:
            options = {"dtype": x.dtype, "device": x.device, "batch": x.shape[1], "learned": True}
            given = initial_state(layer, cells, layer._suffixes, **options)
            if not _lie_here((x, *given)):
                return None
        way = _way(layer, memory, cells, x, given, params)
        if way is None or not _fit(given, way.widths, len(cells), x.shape[1]):
            return None
        start = () if given else _zeros(memory, way.widths, x)
        finals: list[tuple[Tensor, ...]] = []
        outputs: list[Tensor] = []
        for k, (ready, at) in enumerate(way.parts):
            state = start or [field[k] for field in given]
            output, *final = ready((x, *state, *[params[i] for i in at]))
            finals.append(tuple(final))
            outputs.append(output)
            if len(outputs) == layer.num_directions:
                x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
                outputs = []
    except (CannotCompileError, CannotRunError):
        return None
    learned = len(row) != 1 + len(given) + len(params)  # a state that is computed anew
    if like and memory.comes_again(like) and not (prepared or learned) and can_tell(row):
        parts = _parts(way, row, start, axis)
        memory.prepared[like] = Prepared(about, row, parts, cells[0].State, way.widths, start, axis)
        trim(memory.prepared, _KEPT)
    return x[0] if axis is None else x, unwrap(stacked(cells[0], finals, x.dtype))


def _lie_here(row: Sequence[Tensor]) -> bool:
    """Whether an engine may be called with these tensors as they are."""
    dtype = row[0].dtype
    return kind(row) is Call.EAGER and all(
        tensor.dtype is dtype and tensor.is_cpu and _is_strided(tensor) for tensor in row
    )


def _may_be_prepared(layer: Any, x: Tensor) -> bool:
    """Whether a closer look pays: no derivatives, no fake tensors, no other device or engine."""
    return (
        not torch.is_grad_enabled()
        and not layer.bidirectional
        and type(x) in (Tensor, Parameter)
        and x.is_cpu
        and x.numel() > 0
        and x.dtype in DTYPES
        and _is_strided(x)
        and scan.in_force(layer.backend) in ("auto", _ENGINE)
    )


def _like(layer: Any, x: Tensor, fields: int, axis: int | None) -> Any:
    """Calls that may take turns, each prepared for itself."""
    inference = torch.is_inference_mode_enabled()
    return axis, x.shape, x.stride(), x.dtype, fields, layer.training, inference


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _is_served(layer: Any, x: Tensor, axis: int | None) -> bool:
    """Whether the input is one of the layer's, and for the engine."""
    shape = x.shape
    if len(shape) != (2 if axis is None else 3) or shape[-1] != layer.input_size:
        return False
    steps = None if axis is None else shape[axis]
    if steps == 0:
        return False
    backend = scan.in_force(layer.backend)
    first = engines.chain(backend, x, steps)[0]
    return first == _ENGINE and not (backend == _ENGINE and engines.not_served(_ENGINE, x))


def _fit(given: Sequence[Tensor], widths: Sequence[int], layers: int, batch: int) -> bool:
    """Whether these are the fields of an initial state, or there are none."""
    return not given or (
        len(given) == len(widths)
        and all(
            field.shape == (layers, batch, width)
            for field, width in zip(given, widths, strict=True)
        )
    )


def _zeros(memory: _Memory, widths: tuple[int, ...], x: Tensor) -> tuple[Tensor, ...]:
    """The state before the first step, of every cell; nobody writes there."""
    batch, dtype = x.shape[1], x.dtype
    about, zeros = memory.zeros
    if about != (batch, dtype, widths):
        with torch.inference_mode(False):  # else autograd could never save it
            zeros = tuple(
                torch.zeros(batch, width, dtype=dtype, device=x.device) for width in widths
            )
        if batch * sum(widths) <= _SMALL:
            memory.zeros = (batch, dtype, widths), zeros
    return zeros


def _way(
    layer: Any,
    memory: _Memory,
    cells: list[Cell],
    x: Tensor,
    given: tuple[Tensor, ...],
    params: list[Tensor],
) -> _Way | None:
    """The way of a call `(T, B, I)`, remembered, or found out now."""
    identities = tuple(map(identity, cells))
    key = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        layer.bidirectional,
        x.dtype,
        x.requires_grad,
        identities,
        *[field.requires_grad for field in given],
        *[(tensor.shape, tensor.requires_grad) for tensor in params],
    )
    way = memory.ways.get(key)
    if way is None and key not in memory.ways:
        if not all(isinstance(number, int) for number in identities):
            memory.blind = True
            return None
        if not _fit(given, field_sizes(cells[0]), len(cells), x.shape[1]):
            return None
        try:
            way = _found(layer, memory, cells, x, given, params)
        except CannotCompileError:
            way = None
        memory.ways[key] = way
        trim(memory.ways, _KEPT)
    return way


def _found(
    layer: Any,
    memory: _Memory,
    cells: list[Cell],
    x: Tensor,
    given: tuple[Tensor, ...],
    params: list[Tensor],
) -> _Way | None:
    """Find out how a layer runs; None if it has more than parameters or begins in its own way."""
    widths, ways = field_sizes(cells[0]), layer.num_directions
    start = () if given else _zeros(memory, widths, x)
    if start and any(_initial(cell) is not _ZEROS for cell in cells):
        return None
    lent: Any = SimpleNamespace(**dict(zip(memory.flat, params, strict=True)))
    parts: list[tuple[Ready, tuple[int, ...]]] = []
    learns = False
    for k, (cell, slots) in enumerate(zip(cells, layer._slots, strict=True)):
        step = CellStep(bind(cell, slots, lent), origin=cell)
        places = {f"{s.module}.{s.name}".lstrip("."): memory.flat.index(s.flat) for s in slots}
        if step.tensors.keys() != places.keys():
            return None
        state = cell.State(*(start or (field[k] for field in given)))
        ready = eager.ready(step, state, (x,), reverse=k % ways == 1, keep=(0,), engine=_ENGINE)
        parts.append((ready, tuple(places[name] for name in step.tensors)))
        learns |= bool(ready.about.gradients)
        if k % ways == ways - 1:  # of what the next layer gets only the kind counts
            x = x.new_empty(1, x.shape[1], ways * widths[0])
            x, learns = (x.requires_grad_() if learns else x), False
    return _Way(tuple(parts), widths)


def _parts(
    way: _Way, row: tuple[Tensor, ...], start: tuple[Tensor, ...], axis: int | None
) -> list[Part]:
    """What calls without derivatives run that are like one which has just run; or nothing.

    Args:
        way: of that call, in one direction.
        row: its input, the initial state, and the parameters.
        start: the initial state of every cell, where none was given.
        axis: of time in the input.
    """
    x, fields = row[0], 0 if start else len(way.widths)
    x = timed(x, axis)
    given, params = row[1 : 1 + fields], row[1 + fields :]
    parts: list[Part] = []
    for k, (ready, at) in enumerate(way.parts):
        state = start or tuple(field[k] for field in given)
        run = ready.straight((x, *state, *(params[i] for i in at)))
        if run is None or sum(map(Tensor.numel, start)) > _SMALL:
            return []
        parts.append(Part(run, at))
        x = x.new_empty(*x.shape[:2], way.widths[0])
    return parts


def _initial(cell: Cell) -> Any:
    return getattr(cell.initial_state, "__func__", None)
