"""`FlexRNN`: a complete recurrent layer from any cell."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from flexrnn.bind import Slot, bind, move_parameters
from flexrnn.cell import Cell, first_state, first_weight, loop_dtypes, unwrap
from flexrnn.check import (
    check_cell_class,
    check_hx,
    check_input,
    check_length,
    check_options,
    check_packed,
    check_widths,
)
from flexrnn.compose import CellStep
from flexrnn.engine import scan


class FlexRNN(nn.Module):
    """A recurrent layer with the interface of `torch.nn.LSTM`, for any `Cell`.

    The layer builds `cell(in_size, hidden_size, bias=, device=, dtype=, **cell_options)` once for
    each layer and direction and takes over its parameters under torch's flat names:
    `weight_ih_l0`, `weight_hh_l1_reverse`, any other as `NAME_l{k}[_reverse]`.

    Args:
        cell: a subclass of `Cell`.
        input_size: I, features of one time step.
        hidden_size: H, hidden units.
        num_layers: L, layers on top of one another.
        bias: whether the cells have biases.
        batch_first: input and output are `(B, T, ·)` instead of `(T, B, ·)`; states are not.
        dropout: probability with which elements of every layer's output but the last's are zeroed
            while training.
        bidirectional: run a second set of cells from the end; outputs lie side by side (D = 2).
        proj_size: width of a projected output, for cells that have one; 0 means none.
        device: of the parameters.
        dtype: of the parameters.
        backend: the engine: `"auto"` or `"reference"`.
        **cell_options: passed to every cell.

    Shapes:
        input: `(T, B, I)`, `(B, T, I)` with `batch_first`, `(T, I)` without a batch, or a
            `PackedSequence`.
        hx: a tuple of the state's fields, each `(L·D, B, width)` or `(L·D, width)`; the bare
            tensor where the state has one field; the cell's `initial_state` where `None`.
        output: as the input, with D·(width of the state's first field) features.
        final state: as hx.

    Raises:
        TypeError, ValueError: an argument is not of its kind; the message names it.

    Example:
        >>> import torch, flexrnn
        >>> cell = flexrnn.cells.PeepholeLSTMCell
        >>> layer = flexrnn.FlexRNN(cell, 3, 5, num_layers=2, bidirectional=True, batch_first=True)
        >>> output, (h_n, c_n) = layer(torch.randn(2, 7, 3))
        >>> output.shape, c_n.shape
        (torch.Size([2, 7, 10]), torch.Size([4, 2, 5]))
    """

    def __init__(
        self,
        cell: type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        **cell_options: Any,
    ):
        super().__init__()
        check_options(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
        )
        check_cell_class(cell, hidden_size, proj_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.backend = scan.check_backend(backend)

        options = {"bias": bias, "device": device, "dtype": dtype, **cell_options}
        if proj_size:
            options["proj_size"] = proj_size
        self.cells = nn.ModuleList()
        self._slots: list[tuple[Slot, ...]] = []  # of each cell, where its parameters belong
        width = input_size
        for k in range(num_layers):
            for direction in ("", "_reverse")[: self.num_directions]:
                built = cell(width, hidden_size, **options)
                self._slots.append(move_parameters(built, self, f"_l{k}{direction}"))
                self.cells.append(built)
            width = self.num_directions * cast(Cell, self.cells[-1]).output_size
        check_widths([cast(Cell, cell) for cell in self.cells])

    @property
    def num_directions(self) -> int:
        """D: 2 where the layer is bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as `torch.nn.LSTM.all_weights` lists them."""
        return [
            [getattr(self, flat) for flat in dict.fromkeys(slot.flat for slot in slots)]
            for slots in self._slots
        ]

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy of the weights that could grow stale."""

    def reset_parameters(self) -> None:
        """Let every cell draw its parameters anew."""
        for cell in self._bound_cells():
            cell.reset_parameters()

    def apply(self, fn: Any) -> "FlexRNN":
        """Apply `fn` to every module inside, with its parameters in place, then to the layer.

        An initialiser that looks for `nn.Linear` thus finds the weights of one inside a cell.
        """
        for module in self.children():
            for inner in self._bound_cells() if module is self.cells else (module,):
                inner.apply(fn)
        fn(self)
        return self

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run one time step, for streaming: the numbers of the sequence call, step by step.

        Args:
            x: `(B, I)`, or `(I,)` without a batch.
            state: what the last call returned; like `hx`.

        Returns:
            `(output, state)`, the output `(B, width)` or `(width,)`.

        Raises:
            RuntimeError: the layer is bidirectional: its second direction begins at the end.

        Example:
            >>> import torch, flexrnn
            >>> layer, state = flexrnn.GRU(3, 5), None
            >>> for x in torch.randn(7, 2, 3):
            ...     output, state = layer.step(x, state)
            >>> output.shape
            torch.Size([2, 5])
        """
        return self(x, state, _one_step=True)

    def forward(self, input: Any, hx: Any = None, *, _one_step: bool = False) -> tuple[Any, Any]:
        """Run the layer over sequences.

        Args:
            input: `(T, B, I)`, `(B, T, I)` with `batch_first`, `(T, I)`, or a `PackedSequence`.
            hx: the initial state; see the class.

        Returns:
            `(output, state)`: the last layer's output at every step, of the input's kind, and the
            final state of every layer and direction.

        Raises:
            TypeError, ValueError, RuntimeError: the input or the state does not fit, or `step`
                returned another structure, shape or dtype; the message says which and what came.
        """
        cells = list(self._bound_cells())
        if _one_step:
            return self._streamed(cells, input, hx)
        if isinstance(input, PackedSequence):
            return self._packed(cells, input, hx)
        self._check_input(cells, input)
        batch_first = self.batch_first and input.dim() == 3
        output, state = self._sequence(cells, input.transpose(0, 1) if batch_first else input, hx)
        return output.transpose(0, 1) if batch_first else output, state

    def _sequence(self, cells: list[Cell], x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        """Run over `x` `(T, B, I)` or `(T, I)`; the state comes out as a person sees it."""
        check_length(x)
        batched = x.dim() == 3
        x = x if batched else x.unsqueeze(1)
        output, state = self._run(cells, x, self._initial(cells, hx, x, batched))
        if batched:
            return output, unwrap(state)
        return output.squeeze(1), unwrap(_map(lambda s: s.squeeze(1), state))

    def _streamed(self, cells: list[Cell], x: Any, hx: Any) -> tuple[Tensor, Any]:
        """Run over one row `x` `(B, I)` or `(I,)`."""
        if self.bidirectional:
            raise RuntimeError("step: expected one direction; the second begins at the end")
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor (batch, input_size), got {type(x).__name__}")
        if x.dim() not in (1, 2):
            raise ValueError(f"x: expected shape (batch, input_size), got {tuple(x.shape)}")
        x = x.unsqueeze(0)
        self._check_input(cells, x)
        output, state = self._sequence(cells, x, hx)
        return output[0], state

    def _packed(self, cells: list[Cell], packed: PackedSequence, hx: Any) -> tuple[Any, Any]:
        """Run over sequences of unlike lengths: pad, hold each state at its end, pack."""
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        self._check_input(cells, data, packed=True)
        check_packed(packed)
        sorted_only = PackedSequence(data, batch_sizes)
        x, lengths = pad_packed_sequence(sorted_only)  # (T, B, I), longest sequence first
        state = self._initial(cells, hx, x, True)
        if hx is not None and sorted_indices is not None:
            state = _map(lambda s: s.index_select(1, sorted_indices), state)
        output, state = self._run(cells, x, state, lengths)
        if unsorted_indices is not None:
            state = _map(lambda s: s.index_select(1, unsorted_indices), state)
        output = pack_padded_sequence(output, lengths)
        return PackedSequence(output.data, batch_sizes, sorted_indices, unsorted_indices), unwrap(
            state
        )

    def _run(
        self, cells: list[Cell], x: Tensor, state: Any, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """All layers and directions over `x` `(T, B, I)`, whose `lengths` `(B,)` decrease."""
        dtype, out_dtype = loop_dtypes(cells[0], x)
        state = _map(lambda s: s.to(dtype), state)
        valid = None
        if lengths is not None:
            steps = torch.arange(x.shape[0], device=x.device)[:, None, None]
            valid = steps < lengths.to(x.device)[:, None]  # (T, B, 1)
        finals = []
        for k in range(self.num_layers):
            outputs = []
            for d in range(self.num_directions):
                index = k * self.num_directions + d
                cell = cells[index]
                (output,), final = scan.run(
                    CellStep(cell, ragged=valid is not None, origin=self.cells[index]),
                    _map(lambda s, index=index: s[index], state),
                    (x,) if valid is None else (x, valid),
                    reverse=d == 1,
                    keep=(0,),
                    backend=self.backend,
                )
                outputs.append(output.to(out_dtype))
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.dropout and self.training and k < self.num_layers - 1:
                x = self._drop(x, lengths)
        state = cells[0].State(*(torch.stack(f).to(out_dtype) for f in zip(*finals, strict=True)))
        return x, state

    def _drop(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None:
            return dropout(x, self.dropout, self.training)
        # Drawn for the rows that exist and for no padding: the numbers that torch draws.
        packed = pack_padded_sequence(x, lengths)
        data = dropout(packed.data, self.dropout, self.training)
        return pad_packed_sequence(PackedSequence(data, packed.batch_sizes))[0]

    def _check_input(self, cells: list[Cell], x: Any, packed: bool = False) -> None:
        weight = first_weight(cells[0])
        check_input(x, self.input_size, type(self).__name__, weight, packed=packed)

    def _initial(self, cells: list[Cell], hx: Any, x: Tensor, batched: bool) -> Any:
        """The state before the first step, a `State` of `(L·D, B, width)`."""
        State = cells[0].State
        batch = x.shape[1]
        if hx is not None:
            return State(
                *check_hx(cells[0], hx, x, layers=len(cells), batch=batch, batched=batched)
            )
        dtype, _ = loop_dtypes(cells[0], x)
        each = [first_state(cell, (batch,), dtype, x.device) for cell in cells]
        return State(*(torch.stack(fields) for fields in zip(*each, strict=True)))

    def _bound_cells(self) -> Iterator[Cell]:
        for cell, slots in zip(self.cells, self._slots, strict=True):
            yield bind(cast(Cell, cell), slots, self)

    def __repr__(self) -> str:
        shown = self.__class__.__new__(self.__class__)  # with the parameters back in their cells
        cells = nn.ModuleList(self._bound_cells())
        shown.__dict__.update(self.__dict__, _modules={**self._modules, "cells": cells})
        return super(FlexRNN, shown).__repr__()

    def extra_repr(self) -> str:
        """Arguments that are not at their defaults, as `torch.nn.LSTM` shows them."""
        name = "" if type(self) is not FlexRNN else type(self.cells[0]).__name__ + ", "
        text = f"{name}{self.input_size}, {self.hidden_size}"
        shown = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
            "backend": "auto",
        }
        for name, default in shown.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


def _map(fn: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state of the same class with `fn` applied to every field."""
    return type(state)(*map(fn, state))
