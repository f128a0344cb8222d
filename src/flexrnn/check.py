"""What a layer refuses: constructor arguments, the input, the initial state.

Where torch has words for a mistake, they are torch's, so that a drop-in fails as it did.
"""

import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from flexrnn.cell import Cell, accepts
from flexrnn.dtypes import check_state_kind, first_weight, loop_dtypes, may_enter
from flexrnn.fields import field_names, field_sizes, wrap


def check_options(
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    bidirectional: Any,
    proj_size: Any,
) -> None:
    """Refuse constructor arguments of `FlexRNN` that are not of their kind."""
    _check_probability(
        "dropout", dropout, "representing the probability of an element being zeroed"
    )
    flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, value in {**sizes, "proj_size": proj_size}.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")
    for name, value in sizes.items():
        if value <= 0:
            raise ValueError(f"{name} must be greater than zero, got {value}")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and num_layers=1",
            stacklevel=4,
        )


def check_features(
    cell: type[Cell],
    zoneout: Any,
    recurrent_dropout: Any,
    weight_drop: Any,
    learn_initial_state: Any,
    checkpoint_every: Any,
) -> None:
    """Refuse those arguments of `FlexRNN` that `torch.nn.LSTM` does not have."""
    if isinstance(zoneout, Mapping):
        for field, p in zoneout.items():
            if field not in field_names(cell):
                raise ValueError(
                    f"zoneout: expected fields of {cell.__name__}'s state "
                    f"{field_names(cell)}, got {field!r}"
                )
            _check_probability(f"zoneout[{field!r}]", p, "with which a unit keeps its old value")
    else:
        _check_probability("zoneout", zoneout, "with which a unit keeps its old value")
    meaning = "representing the probability of an element being zeroed"
    _check_probability("recurrent_dropout", recurrent_dropout, meaning)
    _check_probability("weight_drop", weight_drop, meaning)
    if not isinstance(learn_initial_state, bool):
        raise TypeError(
            f"learn_initial_state should be of type bool, got: {type(learn_initial_state).__name__}"
        )
    if checkpoint_every is None:
        return
    if not isinstance(checkpoint_every, int) or isinstance(checkpoint_every, bool):
        raise TypeError(
            f"checkpoint_every should be of type int, got: {type(checkpoint_every).__name__}"
        )
    if checkpoint_every <= 0:
        raise ValueError(f"checkpoint_every must be greater than zero, got {checkpoint_every}")


def _check_probability(name: str, value: Any, meaning: str) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1] {meaning}, got {value!r}")


def check_cell_class(
    cell: Any, hidden_size: int, proj_size: int, cell_options: Iterable[str]
) -> None:
    """Refuse what is not a cell class, or one whose constructor a layer cannot call."""
    if not (isinstance(cell, type) and issubclass(cell, Cell)):
        hint = ", the class itself" if isinstance(cell, Cell) else ""
        raise TypeError(f"cell: expected a subclass of flexrnn.Cell{hint}, got {cell!r}")
    for argument in ("bias", "device", "dtype"):
        if not accepts(cell, argument):
            raise TypeError(
                f"{cell.__name__}.__init__: expected an argument {argument!r}; a layer calls "
                "cell(input_size, hidden_size, bias=, device=, dtype=, **cell_options)"
            )
    for option in cell_options:
        if not accepts(cell, option):
            raise TypeError(
                f"unexpected keyword argument {option!r}: neither the layer nor {cell.__name__} "
                "has it"
            )
    if proj_size and not accepts(cell, "proj_size"):
        raise ValueError(
            f"proj_size argument is only supported for LSTM, not {cell.__name__}, whose "
            "constructor has no proj_size"
        )
    if proj_size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
        )


def check_widths(cells: list[Cell]) -> None:
    """Refuse cells whose states cannot lie in one tensor `(L·D, B, width)` a field."""
    for cell in cells[1:]:
        for field, first, width in zip(
            field_names(cell), field_sizes(cells[0]), field_sizes(cell), strict=True
        ):
            if width != first:
                raise ValueError(
                    f"num_layers: expected the state's field {field} of {type(cell).__name__} to "
                    f"be as wide in every layer, got {first} at input_size {cells[0].input_size} "
                    f"and {width} at input_size {cell.input_size}"
                )


def check_input(x: Any, input_size: int, name: str, cell: Cell, *, packed: bool) -> None:
    """Refuse an input that is no tensor of the right width, dtype and device.

    Args:
        x: what was given: `(T, B, I)`, `(T, I)`, or the data `(N, I)` of a packed sequence.
        input_size: I.
        name: the layer's class, for the message.
        cell: the layer's first; dtype and device must be its parameters', but for autocast.
        packed: `x` comes from a packed sequence.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"input: expected a tensor or a PackedSequence, got {type(x).__name__}")
    if x.is_nested:
        raise TypeError("input: expected an ordinary tensor or a PackedSequence, got a nested one")
    if packed and x.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
    if x.dim() not in (2, 3):
        raise ValueError(
            f"{name}: Expected input to be 2D or 3D, got {x.dim()}D tensor instead "
            f"(shape {tuple(x.shape)})"
        )
    if (weight := first_weight(cell)) is not None:
        dtype, _ = loop_dtypes(cell, x)
        if not may_enter(cell, x, dtype):
            model = f"convert model: model.to({x.dtype})"
            if any(parameter.is_complex() for parameter in cell.parameters()):
                model = "make another layer: model.to would leave complex parameters or cut them"
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or {model}"
            )
        if x.device != weight.device:
            raise RuntimeError(
                f"input: expected it on the weights' device {weight.device}, got {x.device}"
            )
    if x.shape[-1] != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got "
            f"{x.shape[-1]} (input of shape {tuple(x.shape)})"
        )


def check_length(x: Tensor) -> None:
    """Refuse an input `(T, ...)` without a time step."""
    if x.shape[0] == 0:
        raise RuntimeError(
            f"Expected sequence length to be larger than 0 in RNN, got input of {tuple(x.shape)}"
        )


def check_packed(packed: PackedSequence) -> None:
    """Refuse a packed sequence whose parts contradict one another."""
    data, batch_sizes = packed.data, packed.batch_sizes
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise ValueError(
            "input: expected batch_sizes of a PackedSequence of shape (T,) and torch.int64, "
            f"got {tuple(batch_sizes.shape)} and {batch_sizes.dtype}"
        )
    sizes = batch_sizes.tolist()
    if not sizes or min(sizes) < 1 or sorted(sizes, reverse=True) != sizes:
        raise ValueError(
            f"input: expected batch_sizes of a PackedSequence positive and decreasing, got {sizes}"
        )
    if sum(sizes) != data.shape[0]:
        raise ValueError(
            f"input: expected {sum(sizes)} rows in a PackedSequence with batch_sizes {sizes}, "
            f"got data of shape {tuple(data.shape)}"
        )
    _check_order(packed.sorted_indices, packed.unsorted_indices, sizes[0])


def _check_order(there: Tensor | None, back: Tensor | None, batch: int) -> None:
    """Refuse `sorted_indices` and `unsorted_indices` that do not undo one another."""
    if there is None and back is None:
        return
    if there is not None and back is not None and there.shape == back.shape == (batch,):
        if there.device.type != "cpu":  # a look at the values would stop the queue
            return
        rows = back.tolist()
        undone = sorted(range(batch), key=rows.__getitem__)
        if sorted(rows) == list(range(batch)) and there.tolist() == undone:
            return
    raise ValueError(
        "input: expected sorted_indices and unsorted_indices of a PackedSequence to be "
        f"permutations of {batch} rows that undo one another, got {there} and {back}"
    )


def check_hx(
    cell: Cell, hx: Any, x: Tensor, *, layers: int, batch: int, batched: bool
) -> tuple[Tensor, ...]:
    """The fields of a layer's initial state, each `(L·D, B, width)`; nothing is ever broadcast.

    Args:
        cell: any of the layer's cells.
        hx: what was given.
        x: the input, of whose dtype and device the state must be.
        layers: L·D, layers times directions.
        batch: B.
        batched: the input has a batch; otherwise a field is `(L·D, width)`.
    """
    state = wrap(cell, hx)
    fields = field_names(cell)
    dims = 3 if batched else 2
    if any(value.dim() != dims for value in state):
        if len(state) == 1:
            what, got, tensors = "hx", f"{state[0].dim()}-D", "tensor"
        else:
            what = "hx and cx" if fields == ("h", "c") else f"every field of hx {fields}"
            got, tensors = "(" + ", ".join(f"{s.dim()}-D" for s in state) + ")", "tensors"
        raise RuntimeError(
            f"For {'' if batched else 'un'}batched {dims}-D input, {what} should also be {dims}-D "
            f"but got {got} {tensors}"
        )
    if not batched:
        state = tuple(value.unsqueeze(1) for value in state)
    for k, (value, size) in enumerate(zip(state, field_sizes(cell), strict=True)):
        if tuple(value.shape) != (layers, batch, size):
            what = "hidden" if len(state) == 1 else f"hidden[{k}]"
            raise RuntimeError(
                f"Expected {what} size {(layers, batch, size)}, got {list(value.shape)}"
            )
    check_state_kind(cell, state, x)
    return state
