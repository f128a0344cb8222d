# pyright: reportPrivateUsage=false
# Whether a module has hooks has no public name.
"""One step without derivatives, on the shortest way: who streams makes a call for every step.

The long way, `forward`, knows every case and words every error. This one knows a single case, looks
that it is the one, and does nothing that the case does not need.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from flexrnn.bind import Slot, bind, identity, tensors_of
from flexrnn.call.stack import stacked
from flexrnn.cell import Cell, field_sizes, unwrap
from flexrnn.compose import CellStep
from flexrnn.engine import autocast, engines, scan
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.ordinary import Call, kind
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim
from flexrnn.record import is_recorded

_ENGINE = "cpu"
_KEPT = 512  # ways of cells; the oldest goes first


class _Way(NamedTuple):
    """How a cell's step runs on tensors of one kind."""

    program: Program
    params: tuple[tuple[str, str, torch.Size], ...]  # in the cell, in the layer, shape
    widths: tuple[int, ...]  # of the state


_ways: dict[Any, _Way | None] = {}


def step(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
    """Run a layer for one step, or nothing where this is not the one case.

    Args:
        layer: a `FlexRNN` of one direction whose class does not override `forward`.
        x: `(B, I)`.
        state: the state before the step, each field `(L, B, width)`.

    Returns:
        The output `(B, width)` and the new state; None where `forward` is to be called.
    """
    fields = (state,) if isinstance(state, Tensor) else state
    if not _is_plain(layer, x) or not isinstance(fields, tuple):
        return None
    try:
        if kind((x, *fields)) is not Call.EAGER:
            return None
        return _run(layer, x, fields)
    except (CannotCompileError, CannotRunError):
        return None


def _is_plain(layer: Any, x: Tensor) -> bool:
    """Whether nobody listens, nothing is derived, drawn or cast, and the engine serves."""
    return not (
        torch.is_grad_enabled()
        or x.dim() != 2
        or x.device.type != "cpu"
        or x.shape[1] != layer.input_size
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or layer.zoneout
        or (layer.training and layer.dropout)
        or scan.in_force(layer.backend) not in ("auto", _ENGINE)
        or scan.is_watched()
        or is_recorded(layer)
        or autocast.is_on(x)
        or torch.compiler.is_compiling()
        or engines.not_served(_ENGINE, x)
    )


def _run(layer: Any, x: Tensor, fields: tuple[Any, ...]) -> tuple[Tensor, Any] | None:
    batch, dtype, layers = x.shape[0], x.dtype, layer.num_layers
    finals: list[tuple[Tensor, ...]] = []
    cell: Any = None
    output = x[None]
    for k, (cell, slots) in enumerate(zip(layer.cells, layer._slots, strict=True)):
        key = (
            identity(cell),
            slots,  # which parameters there are, and which are one
            dtype,
            torch.get_default_dtype(),
            torch.is_inference_mode_enabled(),
        )
        if (way := _ways.get(key)) is None and key not in _ways:
            way = _remember(key, layer, cell, slots, output, fields, k)
        if way is None or cell._buffers or not _fit(fields, way.widths, layers, batch, dtype):
            return None
        tensors = {name: getattr(layer, flat) for name, flat, _ in way.params}
        for tensor, (*_, shape) in zip(tensors.values(), way.params, strict=True):
            if tensor.shape != shape or tensor.dtype is not dtype or not _lies_here(tensor):
                return None
        own = [field[k] for field in fields]
        keep = way.program.fields[:1]
        ran = engines.ENGINES[_ENGINE].forward(way.program, (output,), own, tensors, keep)
        output = ran.history[keep[0]]
        finals.append(ran.final)
    return output[0], unwrap(stacked(cell, finals, dtype))


def _lies_here(tensor: Tensor) -> bool:
    return tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter)


def _fit(
    fields: tuple[Any, ...], widths: tuple[int, ...], layers: int, batch: int, dtype: torch.dtype
) -> bool:
    return len(fields) == len(widths) and all(
        field.shape == (layers, batch, width) and field.dtype is dtype and field.is_cpu
        for field, width in zip(fields, widths, strict=True)
    )


def _remember(
    key: Any,
    layer: Any,
    cell: Cell,
    slots: tuple[Slot, ...],
    x: Tensor,
    fields: tuple[Any, ...],
    k: int,
) -> _Way | None:
    """Find out how a cell's step runs; not at all on this way, if it has more than parameters."""
    way = None
    bound = bind(cell, slots, layer)
    params = tuple((s.name, s.flat, getattr(layer, s.flat).shape) for s in slots)
    if not cell._modules and tensors_of(bound).keys() == {name for name, *_ in params}:
        widths = field_sizes(cell)
        if not _fit(fields, widths, layer.num_layers, x.shape[1], x.dtype):
            return None
        own = cell.State(*(field[k] for field in fields))
        program = compile_step(CellStep(bound, origin=cell), (x,), own)
        way = _Way(program, params, widths)
    if not isinstance(key[0], int):  # nobody could see that the cell has changed
        return way
    _ways[key] = way
    trim(_ways, _KEPT)
    return way
