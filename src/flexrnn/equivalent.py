"""Which cells are an LSTM, GRU or RNN of torch's: those that say so, as long as they still are."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flexrnn.cell import Cell
from flexrnn.engine.step import Native

_ADDITIONS = {
    "ragged": "lengths of sequences",
    "reset": "resets",
    "zoned": "zoneout",
    "expected": "zoneout",
    "masks": "recurrent dropout",
    "draws": "random numbers of a step's own",
}


def native_of(
    cell: Cell, tensors: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Native | str:
    """The kernel of torch's own that is a cell's composed step, or why there is none.

    Args:
        cell: bound to its parameters.
        tensors: all that it holds, by name.
        options: what the layer adds to the step; see `compose.CellStep`.
    """
    name, kernel = type(cell).__name__, cell.torch_equivalent
    if kernel is None:
        return f"{name} is none of torch's LSTM, GRU and RNN"
    for option, what in _ADDITIONS.items():
        if options[option]:
            return f"torch's own kernels have no {what}"
    if changed := _changed(cell):
        return f"{name} is another function than torch's, for it has a {changed} of its own"
    if kernel == "rnn":
        kernel = f"rnn_{getattr(cell, 'nonlinearity', 'tanh')}"
    for bias in ((), ("bias_ih", "bias_hh")):
        for projection in ((), ("weight_hr",)) if kernel == "lstm" else ((),):
            weights = ("weight_ih", "weight_hh", *bias, *projection)
            if set(tensors) == set(weights):
                return Native(kernel, weights, cell.training)
    return f"{name} has other tensors than torch's layer: {', '.join(tensors)}"


def _changed(cell: Cell) -> str:
    """What is no longer what it was in the class that is torch's equivalent, if anything is."""
    cls = type(cell)
    says = next(base for base in cls.__mro__ if "torch_equivalent" in vars(base))
    for name, owner in (("step", says), ("State", says), ("tap", Cell), ("drop_recurrent", Cell)):
        if name in vars(cell) or getattr(cls, name) is not getattr(owner, name):
            return name
    return ""
