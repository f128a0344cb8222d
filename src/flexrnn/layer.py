"""`FlexRNN`: a complete recurrent layer from any cell."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from flexrnn.bind import Slot, bind, cells_of, move_parameters
from flexrnn.call import direction, packing, quick, ragged, shown, stack, stream
from flexrnn.call.initial import add_learned, initial_state, reset_learned, unbatched
from flexrnn.call.marks import Marks, check_alone, check_lengths, check_reset, marks
from flexrnn.cell import Cell
from flexrnn.check import (
    check_cell_class,
    check_features,
    check_hx,
    check_input,
    check_length,
    check_options,
    check_packed,
    check_widths,
)
from flexrnn.dtypes import loop_dtypes, real_to
from flexrnn.engine import scan
from flexrnn.engine.compiler.trace import make_ready
from flexrnn.fields import unwrap
from flexrnn.record import is_recorded, publish
from flexrnn.regularize import check_regularizers, drop_weights, zoneout_of


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
        zoneout: probability with which a unit keeps its old value at a step, for every field of
            the state or as `{field: p}`; in evaluation mode its expectation (Krueger et al. 2017).
        recurrent_dropout: probability with which an element of what the cell passes through
            `drop_recurrent` is zeroed while training, the same elements at every step of a
            sequence (Gal & Ghahramani 2016).
        weight_drop: probability with which an element of every `weight_hh*` is zeroed while
            training, drawn once a call (Merity, Keskar & Socher 2017).
        learn_initial_state: the state before the first step and behind resets is parameters
            `initial_{field}_l{k}[_reverse]` `(width,)`, which begin as the cell's `initial_state`.
        checkpoint_every: keep for the backward pass only the state at every so-many-th step, and
            compute the steps between anew there (Chen et al. 2016).
        backend: the engine: `"auto"`, the fastest that can; `"cpu"`, C++; `"cuda"`, Triton;
            `"torch"`, its own; `"interpreter"`, programs in Python; `"reference"`, an eager loop.
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
        zoneout: float | Mapping[str, float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_drop: float = 0.0,
        learn_initial_state: bool = False,
        checkpoint_every: int | None = None,
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
        check_cell_class(cell, hidden_size, proj_size, cell_options)
        check_features(
            cell, zoneout, recurrent_dropout, weight_drop, learn_initial_state, checkpoint_every
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.zoneout = dict(zoneout) if isinstance(zoneout, Mapping) else float(zoneout)
        self.recurrent_dropout = float(recurrent_dropout)
        self.weight_drop = float(weight_drop)
        self.learn_initial_state = learn_initial_state
        self.checkpoint_every = checkpoint_every
        self.backend = scan.check_backend(backend)

        options = {"bias": bias, "device": device, "dtype": dtype, **cell_options}
        if proj_size:
            options["proj_size"] = proj_size
        self.cells = nn.ModuleList()
        self._slots: list[tuple[Slot, ...]] = []  # of each cell, where its parameters belong
        width = input_size
        for k in range(num_layers):
            for way in ("", "_reverse")[: self.num_directions]:
                built = cell(width, hidden_size, **options)
                self._slots.append(move_parameters(built, self, f"_l{k}{way}"))
                self.cells.append(built)
            width = self.num_directions * cast(Cell, self.cells[-1]).output_size
        check_widths([cast(Cell, cell) for cell in self.cells])
        for index, built in enumerate(self._bound_cells()):
            check_regularizers(built, self._slots[index], recurrent_dropout, weight_drop)
            if learn_initial_state:
                add_learned(self, built, self._suffixes[index], unbatched(built, dtype))
        if backend != "reference":
            make_ready()

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
        for cell, suffix in zip(self._bound_cells(), self._suffixes, strict=True):
            cell.reset_parameters()
            if self.learn_initial_state:
                reset_learned(self, cell, suffix)

    def apply(self, fn: Any) -> "FlexRNN":
        """Apply `fn` to every module inside, with its parameters in place, then to the layer.

        An initialiser that looks for `nn.Linear` thus finds the weights of one inside a cell.
        """
        for module in self.children():
            for inner in self._bound_cells() if module is self.cells else (module,):
                inner.apply(fn)
        fn(self)
        return self

    def step(self, x: Tensor, state: Any = None, *, reset: Any = None) -> tuple[Tensor, Any]:
        """Run one time step, for streaming: the numbers of the sequence call, step by step.

        It is a call of the layer with a sequence of one step, so hooks run.

        Args:
            x: `(B, I)`, or `(I,)` without a batch.
            state: what the last call returned; like `hx`.
            reset: `(B,)`, or `()` without a batch: true where a row begins anew.

        Returns:
            `(output, state)`, the output `(B, width)` or `(width,)`.

        Raises:
            RuntimeError: the layer is bidirectional: its second direction begins at the end; or it
                is training with recurrent dropout or weight drop, whose masks are for a sequence.
            TypeError: a subclass overrides `forward` and takes no state, or does not return it.

        Example:
            >>> import torch, flexrnn
            >>> layer, state = flexrnn.GRU(3, 5), None
            >>> for x in torch.randn(7, 2, 3):
            ...     output, state = layer.step(x, state)
            >>> output.shape
            torch.Size([2, 5])
        """
        return stream.step(self, x, state, reset, FlexRNN.forward)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        return_states: bool = False,
    ) -> Any:
        """Run the layer over sequences.

        Args:
            input: `(T, B, I)`, `(B, T, I)` with `batch_first`, `(T, I)`, or a `PackedSequence`.
            hx: the initial state; see the class.
            lengths: `(B,)` integers from 0 to T on any device, in any order (`()` without a
                batch): row b's sequence ends after so many steps. Behind its end outputs are zero;
                its final state is that at its end, where the reverse direction starts; what the
                input holds there touches nothing. A sequence of length 0 keeps its initial state.
            reset: `(T, B)` truth values, `(B, T)` with `batch_first` (`(T,)` without a batch): true
                where row b is cut between steps t − 1 and t, for both directions. Behind a cut the
                state is the initial one, never `hx`, and no gradient crosses it.
            return_states: return the state of every layer and direction at every step, too.

        Returns:
            `(output, state)`: the last layer's output at every step, of the input's kind, and the
            final state of every layer and direction. With `return_states` also `states`, like
            `state` with each field `(L·D, T, B, width)`, or `(L·D, B, T, width)` with
            `batch_first`.

        Raises:
            TypeError, ValueError, RuntimeError: an argument does not fit, or `step` returned
                another structure, shape or dtype; the message says which and what came.
        """
        plain = lengths is None and reset is None and return_states is False
        if plain and (result := quick.call(self, input, hx)) is not None:
            return result
        cells = list(self._bound_cells())
        if not isinstance(return_states, bool):
            raise TypeError(
                f"return_states should be of type bool, got: {type(return_states).__name__}"
            )
        if isinstance(input, PackedSequence):
            check_alone(lengths=lengths, reset=reset, return_states=return_states)
            return self._packed(cells, input, hx)
        self._check_input(cells, input)
        batched = input.dim() == 3
        batch_first = self.batch_first and batched
        x = input.transpose(0, 1) if batch_first else input
        check_length(x)
        lengths = check_lengths(lengths, x)
        reset = check_reset(reset, x, batch_first=batch_first)
        x = x if batched else x.unsqueeze(1)
        given: dict[str, Any] = {"layers": len(cells), "batch": x.shape[1], "batched": batched}
        state = None if hx is None else check_hx(cells[0], hx, x, **given)
        compact = lengths is not None and ragged.serves(self, x, lengths, state)
        where = marks(lengths, reset, x.shape[0], x.device, compact=compact)
        output, state, states = self._run(
            cells,
            where.enter(x),
            state,
            where,
            every_state=return_states,
            arrange=lambda tap: tap if batched else tap.squeeze(1),
        )
        output = where.leave(output)
        states = stack.each(where.leave_each, states)
        if not batched:
            output, state = output.squeeze(1), stack.each(lambda s: s.squeeze(1), state)
            states = stack.each(lambda s: s.squeeze(2), states)
        elif batch_first:
            output, states = output.transpose(0, 1), stack.each(lambda s: s.transpose(1, 2), states)
        result = (output, unwrap(state))
        return (*result, unwrap(states)) if return_states else result

    def _packed(self, cells: list[Cell], packed: PackedSequence, hx: Any) -> tuple[Any, Any]:
        """Run over sequences of unlike lengths; the longest is the first of a state."""
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        self._check_input(cells, data, packed=True)
        check_packed(packed)
        state, batch = None, int(batch_sizes[0])
        if hx is not None:
            state = check_hx(cells[0], hx, data, layers=len(cells), batch=batch, batched=True)
        if state is not None and sorted_indices is not None:
            state = stack.each(lambda s: s.index_select(1, sorted_indices), state)
        x, where, lengths = packing.unpack(
            packed, compact=ragged.serves(self, data, batch_sizes, state)
        )

        def unsort(tensor: Tensor) -> Tensor:
            return tensor if unsorted_indices is None else tensor.index_select(1, unsorted_indices)

        output, state, _ = self._run(cells, x, state, where, lengths, arrange=unsort)
        state = stack.each(unsort, state)
        output = packing.pack(output, where, lengths)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), unwrap(state)

    def _run(
        self,
        cells: list[Cell],
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        where: Marks,
        packed: Tensor | None = None,
        *,
        every_state: bool = False,
        arrange: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Any, Any]:
        """All layers and directions over `x` `(T, B, I)`; arguments as in `stack.run`.

        A state that is None is the layer's own; `arrange` makes of what is recorded, `(T, B, ...)`,
        what a person sees.
        """
        dtype, _ = loop_dtypes(cells[0], x)
        start = None
        if state is None or where.reset is not None:
            start = initial_state(
                self,
                cells,
                self._suffixes,
                learned=self.learn_initial_state,
                batch=where.batch or x.shape[1],
                dtype=dtype,
                device=x.device,
            )
        state = start if state is None else tuple(real_to(s, dtype) for s in state)
        assert state is not None
        state = tuple(map(where.sorted, state))
        start = None if start is None else tuple(map(where.sorted, start))
        if self.weight_drop and self.training:
            for cell, slots in zip(cells, self._slots, strict=True):
                drop_weights(cell, slots, self.weight_drop)
        options = direction.Options(
            zoneout_of(cells[0], self.zoneout),
            self.recurrent_dropout,
            self.training,
            self.checkpoint_every,
            self.backend,
        )
        taps: dict[str, Tensor] | None = {} if is_recorded(self) else None
        output, final, states = stack.run(
            cells,
            cells_of(self),
            x,
            state,
            start,
            where,
            options,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            packed=packed,
            every_state=every_state,
            taps=taps,
        )
        publish(self, taps or {}, arrange)
        return output, stack.each(where.unsorted, final), states

    def _check_input(self, cells: list[Cell], x: Any, packed: bool = False) -> None:
        check_input(x, self.input_size, type(self).__name__, cells[0], packed=packed)

    @property
    def _suffixes(self) -> list[str]:
        """What follows a parameter's name, of every layer and direction."""
        ways = ("", "_reverse")[: self.num_directions]
        return [f"_l{k}{way}" for k in range(self.num_layers) for way in ways]

    def _bound_cells(self) -> Iterator[Cell]:
        for cell, slots in zip(cells_of(self), self._slots, strict=True):
            yield bind(cell, slots, self)

    def __repr__(self) -> str:
        copy = self.__class__.__new__(self.__class__)  # with the parameters back in their cells
        cells = nn.ModuleList(self._bound_cells())
        copy.__dict__.update(self.__dict__, _modules={**self._modules, "cells": cells})
        return super(FlexRNN, copy).__repr__()

    def extra_repr(self) -> str:
        """Arguments that are not at their defaults, as `torch.nn.LSTM` shows them."""
        name = "" if type(self) is not FlexRNN else type(self.cells[0]).__name__ + ", "
        return name + shown.options(self)
