"""Spellings: torch's cells, and its layers for sequences over the few steps that a step has.

Torch's cells ask for the batch size, which has no value here, and its layers have no form that says
what they compute.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from flexrnn.engine.compiler.refusal import refused

_MOST = 64  # cells in a row: each is written down of its own

State = tuple[Tensor, ...]


class _Options(NamedTuple):
    """What torch's layers are called with behind their weights."""

    bias: bool
    layers: int
    dropout: float
    training: bool
    both: bool
    batch_first: bool


def _lstm_cell(
    x: Tensor, state: Sequence[Tensor], w: Tensor, u: Tensor, b: Any = None, d: Any = None
) -> tuple[Tensor, Tensor]:
    h, c = state
    i, f, g, o = (linear(x, w, b) + linear(h, u, d)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
    x_r, x_z, x_n = linear(x, w, b).chunk(3, -1)
    h_r, h_z, h_n = linear(h, u, d).chunk(3, -1)
    z, n = (x_z + h_z).sigmoid(), (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return n + z * (h - n)


def _rnn_cell(activation: Any) -> Callable[..., Tensor]:
    def cell(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, d: Any = None) -> Tensor:
        return activation(linear(x, w, b) + linear(h, u, d))

    return cell


def _one_field(cell: Callable[..., Tensor]) -> Callable[..., State]:
    """A cell whose state is one tensor, among those whose state has several."""

    def step(x: Tensor, state: State, *weights: Tensor) -> State:
        return (cell(x, *state, *weights),)

    return step


def _lstm_step(x: Tensor, state: State, *weights: Tensor) -> State:
    """An LSTM's, whose last weight may be that of a projection."""
    projects = len(weights) % 2
    h, c = _lstm_cell(x, state, *weights[: len(weights) - projects])
    return (linear(h, weights[-1]) if projects else h), c


def _layers(name: str, step: Callable[..., State], *, fields: int) -> Any:
    """One of torch's layers, over as many steps as its input has."""

    def spelt(x: Tensor, hx: Any, weights: Any, *rest: Any) -> tuple[Tensor, ...]:
        if not rest or not isinstance(rest[0], bool):
            raise refused(name, "a program has no packed sequences inside a step")
        options = _Options(*rest)
        if options.dropout and options.training and options.layers > 1:
            raise refused(name, "it draws random numbers")
        axis = int(options.batch_first)
        ways = options.layers * (1 + options.both)
        if not isinstance(x.shape[axis], int):
            raise refused(name, "it takes the batch's rows for steps")
        if x.shape[axis] * ways > _MOST:
            raise refused(
                name, f"a step may run over {_MOST} steps of its own, those of all layers together"
            )
        begin = [field.unbind(0) for field in ((hx,) if fields == 1 else hx)]
        each = len(weights) // ways
        rows, ends = list(x.unbind(axis)), list[State]()
        for layer in range(options.layers):
            found: list[list[Tensor]] = []
            for direction in range(1 + options.both):
                k = layer * (1 + options.both) + direction
                state, outputs = tuple(field[k] for field in begin), list[Tensor]()
                for row in reversed(rows) if direction else rows:
                    state = step(row, state, *weights[k * each : (k + 1) * each])
                    outputs.append(state[0])
                ends.append(state)
                found.append(outputs[::-1] if direction else outputs)
            rows = [torch.cat(parts, -1) for parts in zip(*found, strict=True)]
        return torch.stack(rows, axis), *(torch.stack(field) for field in zip(*ends, strict=True))

    return spelt


_tanh_cell, _relu_cell = _rnn_cell(torch.tanh), _rnn_cell(torch.relu)

SPELT: dict[Any, Any] = {
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
    torch.rnn_tanh_cell: _tanh_cell,
    torch.rnn_relu_cell: _relu_cell,
    torch.lstm: _layers("lstm", _lstm_step, fields=2),
    torch.gru: _layers("gru", _one_field(_gru_cell), fields=1),
    torch.rnn_tanh: _layers("rnn_tanh", _one_field(_tanh_cell), fields=1),
    torch.rnn_relu: _layers("rnn_relu", _one_field(_relu_cell), fields=1),
}
