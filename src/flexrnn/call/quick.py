# pyright: reportPrivateUsage=false
# Whether a module has hooks, and where it keeps its tensors, has no public name.
"""A plain call on the shortest way: what the first one found out is there at the next.

The long way, `forward`, knows every case and words every error. This one knows the plain case,
looks that it is the one, and does nothing that the case does not need. What it remembers is of
kinds alone (dtypes, widths, which tensors want a gradient); the tensors are those of the call.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules import module as hooks
from torch.nn.utils.rnn import PackedSequence

from flexrnn.call.initial import initial_state
from flexrnn.call.prepared import Prepared, has_tensors, known, timed
from flexrnn.call.stack import each
from flexrnn.call.way import (
    ENGINE,
    KEPT,
    SERVED,
    Memory,
    begins_with_zeros,
    is_kept,
    way_of,
    zeros_for,
)
from flexrnn.check import check_packed
from flexrnn.engine import autocast, engines, scan
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.kinds import can_tell
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.paired import complex_of
from flexrnn.engine.standins import marks
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim
from flexrnn.record import is_recorded

_MANY = 512  # units of which a step that is to be differentiated is as fast by the reference
_memories: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


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


def step(
    layer: Any, x: Tensor, state: Any, reset: Tensor | None = None
) -> tuple[Tensor, Any] | None:
    """Run a layer for one step without derivatives, past its `__call__`.

    Args:
        layer: a `FlexRNN` of one direction whose class does not override `forward`.
        x: `(B, I)`.
        state: the state before the step, each field `(L, B, width)`, or None.
        reset: `(B,)`, true where a row begins anew, or None.

    Returns:
        The output `(B, width)` and the new state; None where `forward` is to be called.
    """
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or x.dim() != 2
        or "parametrizations" in layer._modules  # not to be computed twice, should this fail
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or not (reset is None or _is_mark(reset))
    ):
        return None
    return _run(layer, x, state, axis=None, reset=reset)


def _is_mark(reset: Tensor) -> bool:
    return type(reset) is Tensor and reset.is_cpu and _is_strided(reset)


def _is_plain(layer: Any) -> bool:
    """Whether nobody listens, nothing is drawn or left out, and the engine is not another."""
    return not (
        layer.zoneout
        or (layer.training and (layer.recurrent_dropout or layer.weight_drop))
        or (layer.training and layer.dropout and layer.num_layers > 1)
        or (layer.checkpoint_every is not None and torch.is_grad_enabled())
        or scan.in_force(layer.backend) not in ("auto", ENGINE)
        or scan.is_watched()
        or is_recorded(layer)
    )


def _run(
    layer: Any, x: Tensor, hx: Any, *, axis: int | None, reset: Tensor | None = None
) -> tuple[Tensor, Any] | None:
    """Run all layers and directions; the output is `(T, B, ·)`, or `(B, ·)` of a single step.

    Args:
        layer: the layer.
        x: `(T, B, I)`, `(B, T, I)`, or `(B, I)` for a single step.
        hx: the initial state.
        axis: of time in x.
        reset: `(B,)`, true where a row begins with zeros instead.
    """
    if (memory := _memories.get(layer)) is None:
        memory = _memories[layer] = Memory(layer._slots)
    given = (hx,) if isinstance(hx, Tensor) else () if hx is None else hx
    if memory.blind or not isinstance(given, tuple) or (hx is not None and not given):
        return None
    cells = list(layer._modules["cells"]._modules.values())
    if reset is None or not given:
        cut = None
    elif layer.learn_initial_state or not all(map(begins_with_zeros, cells)):
        return None
    else:
        cut = reset.unsqueeze(1)
    own = layer._parameters  # first, for a module's `__getattr__` is slow
    params = [own[f] if f in own else getattr(layer, f) for f in memory.flat]
    row = (x, *given, *params)
    about = known(layer, cells) if _may_be_prepared(layer, x) else None
    # What is cut lies otherwise than what was given, if that did not lie in one piece.
    like = None if about is None else (cut is None, *_like(layer, x, len(given), axis))
    prepared = memory.prepared.get(like)
    if prepared and not prepared.holds(about, row):
        prepared = None
    try:
        if prepared and prepared.run and (result := prepared.run(x, _cut(given, cut), params)):
            return result
        if not _is_plain(layer) or (about is None and any(map(has_tensors, cells))):
            return None
        if not _lie_here(row) or not _is_served(layer, x, axis):
            return None
        sequence = timed(x, axis)
        batch, states = sequence.shape[1], _dtype_of_states(x, params)
        if states in autocast.HALF and any(field.dtype is not states for field in given):
            return None  # they are rounded first
        if hx is None and layer.learn_initial_state:
            options = {"dtype": states, "device": x.device, "batch": batch, "learned": True}
            given = initial_state(layer, cells, layer._suffixes, **options)
            if not _lie_here((x, *given)):
                return None
        way = way_of(layer, memory, cells, sequence, given, params)
        if way is None or not way.fields.fit(given, len(cells), batch):
            return None
        if len(sequence) == 1 and any(way.fields.complex) and _is_free(layer):
            return None  # to take apart and join takes as long as the reference's step
        start = () if given else zeros_for(memory, way.fields, sequence)
        given = _cut(given, cut)
        result = way(x, given, params, start=start, axis=axis)
    except (CannotCompileError, CannotRunError):
        return None
    learned = len(row) != 1 + len(given) + len(params)  # a state that is computed anew
    again = like and memory.comes_again(like) and not (prepared or learned)
    if again and can_tell(row) and not any(map(marks, row)):  # a mark is no part of a kind
        run = None
        if is_kept(start):
            run = partial(way, start=start, axis=axis)
            if not torch.is_grad_enabled() and way.to is None:
                run = way.straight((x, *given, *params), start, axis)
        memory.prepared[like] = Prepared(about, row, run)
        trim(memory.prepared, KEPT)
    return result


def _is_free(layer: Any) -> bool:
    """Whether nobody has named an engine."""
    return scan.in_force(layer.backend) == "auto"


def _cut(fields: tuple[Tensor, ...], rows: Tensor | None) -> tuple[Tensor, ...]:
    """Fields of a state, with zeros in these rows `(B, 1)`."""
    return fields if rows is None else tuple(field.masked_fill(rows, 0) for field in fields)


def _lie_here(row: Sequence[Tensor]) -> bool:
    """Whether an engine may be called with these tensors as they are, or as autocast casts them."""
    dtype, cast = row[0].dtype, autocast.is_on(row[0])
    if cast and not autocast.is_cast(dtype):
        return False
    return kind(row) is Call.EAGER and all(
        (autocast.is_cast(t.dtype) if cast else t.dtype in (dtype, complex_of(dtype)))
        and t.is_cpu
        and _is_strided(t)
        for t in row
    )


def _dtype_of_states(x: Tensor, params: Sequence[Tensor]) -> torch.dtype:
    """In which states travel: under autocast in that of the parameters; see `loop_dtypes`."""
    return params[0].dtype if params and autocast.is_on(x) else x.dtype


def _may_be_prepared(layer: Any, x: Tensor) -> bool:
    """Whether a closer look pays: no fake tensors, no other device or engine."""
    return (
        type(x) in (Tensor, Parameter)
        and x.is_cpu
        and x.numel() > 0
        and x.dtype in SERVED
        and _is_strided(x)
        and scan.in_force(layer.backend) in ("auto", ENGINE)
    )


def _like(layer: Any, x: Tensor, fields: int, axis: int | None) -> Any:
    """Calls that may take turns, each prepared for itself."""
    mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), layer.training
    return axis, x.shape, x.stride(), x.dtype, fields, mode


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _is_served(layer: Any, x: Tensor, axis: int | None) -> bool:
    """Whether the input is one of the layer's, and for the engine.

    Of a single step, too: prepared, it is faster than by the reference, by far where it is not to
    be differentiated, and else where weights are not many.
    """
    shape = x.shape
    if len(shape) != (2 if axis is None else 3) or shape[-1] != layer.input_size:
        return False
    steps = None if axis is None else shape[axis]
    if steps == 0:
        return False
    if steps == 1 and (layer.hidden_size < _MANY or not torch.is_grad_enabled()):
        steps = None
    backend = scan.in_force(layer.backend)
    first = engines.chain(backend, x, steps)[0]
    return first == ENGINE and x.dtype in SERVED
