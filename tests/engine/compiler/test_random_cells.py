"""Random cells through every pass: values and every gradient against the reference.

A cell is a walk through the table of operations and the shapes of products, with one to four
states, any of which may be handed on as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import flexrnn
from flexrnn.engine.compiler.ops import OPS, Op
from flexrnn.engine.cpu import chunks

# What jumps would tell engines apart by rounding, and autograd has constants of two in float32.
JUMPS = {"fmod", "remainder", "frac", "single"}
ROUNDED = {"hardsigmoid", "hardswish"}
SMOOTH = [
    op for op in OPS.values()
    if op.vjp is not None and op.name not in JUMPS | ROUNDED | {"where"}
]  # fmt: skip
REDUCED = [
    lambda v: v.mean(-1, keepdim=True) + v * 0,
    lambda v: v - v.mean(-1, keepdim=True),
    lambda v: nn.functional.layer_norm(v, v.shape[-1:]),
    lambda v: torch.softmax(v, -1),
    lambda v: v * v.amax(-1, keepdim=True),
]


def apply(op: Op, operands: list[Tensor]) -> Tensor:
    """A row of the table, of values between −1 and 1 that are stretched over its domain."""
    stretched = [
        v * (0.5 * (high - low)) + 0.5 * (high + low)
        for v, (low, high) in zip(operands, op.domain, strict=False)
    ]
    attributes = {"low": -0.5, "high": 0.5} if op.name == "clamp" else dict(op.attributes)
    return op.torch(*stretched, **attributes)


class RandomCell(flexrnn.Cell):
    """A walk through the operations: each line of the plan makes one more value."""

    State: Any

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, plan=()):
        super().__init__(input_size, hidden_size)
        self.plan = plan
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weights = nn.ParameterList(torch.randn(H, H, **kwargs) / H**0.5 for _ in range(3))
        self.joined = nn.Parameter(torch.randn(H, 2 * H, **kwargs) / H**0.5)
        self.wide = nn.Parameter(torch.randn(5 * H, H, **kwargs) / H**0.5)
        self.vector = nn.Parameter(torch.randn(H, **kwargs))
        self.inner = nn.Linear(input_size, H, bias, **kwargs)

    def step(self, x: Tensor, state: Any) -> Any:
        values = [self.inner(x).tanh(), *map(torch.tanh, state), self.vector.tanh() + 0 * state[0]]
        for kind, which, left, right in self.plan:
            a, b, c = (values[k % len(values)] for k in (left, right, left + right))
            if kind == "row":
                new = apply(SMOOTH[which % len(SMOOTH)], [a, b, c])
            elif kind == "choice":
                new = torch.where(a > b, c, b * 0.5)
            elif kind == "reduced":
                new = REDUCED[which % len(REDUCED)](a)
            elif kind == "product":
                new = a @ self.weights[which % 3]
            elif kind == "joined":
                new = nn.functional.linear(torch.cat([a, b], -1), self.joined)
            elif kind == "gates":
                gates = 2 + which % 4
                weight = self.wide[: gates * self.hidden_size]
                first, *rest = nn.functional.linear(a, weight).chunk(gates, -1)
                new = torch.sigmoid(first) * b
                for gate in rest:
                    new = new + torch.tanh(gate) * c
            else:
                new = a * self.vector + b
            values.append(torch.tanh(new))  # bounded, so that four steps stay comparable
        news = values[-len(state) :]
        if len(self.plan) % 3 == 0:
            news[-1] = state[-1]  # a state that never changes
        return self.State(*news)


def with_states(count: int) -> type[RandomCell]:
    """The class with that many states."""
    fields = [(name, Tensor) for name in "abcd"[:count]]
    state: Any = NamedTuple(f"States{count}", fields)
    return type(f"RandomCell{count}", (RandomCell,), {"State": state})


CELLS = [with_states(count) for count in (1, 2, 3, 4)]
KINDS = ["row", "row", "choice", "reduced", "product", "joined", "gates", "vector"]
LINE = st.tuples(st.sampled_from(KINDS), *(st.integers(0, 99) for _ in range(3)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cell=st.sampled_from(CELLS),
    plan=st.lists(LINE, min_size=2, max_size=9),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
    hidden=st.sampled_from([1, 3, 5]),
    packed=st.booleans(),
    rows=st.sampled_from([1, 512]),
    learns=st.lists(st.booleans(), min_size=13, max_size=13),
)
def test_a_random_cell_is_the_reference(
    cell: Any,
    plan: Any,
    steps: int,
    batch: int,
    hidden: int,
    packed: bool,
    rows: int,
    learns: list[bool],
    same_by_program: Callable[..., None],
) -> None:
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(cell, 2, hidden, dtype=torch.float64, plan=tuple(plan))
    for parameter, learning in zip(layer.parameters(), learns, strict=False):
        parameter.requires_grad_(learning)
    states = len(cell.State._fields)
    hx = tuple(
        torch.randn(1, batch, hidden).double().requires_grad_(learns[9 + k]) for k in range(states)
    )
    if packed:
        sequences = [torch.randn(1 + (k * 2) % steps, 2).double() for k in range(batch)]
        x: Any = pack_sequence(sequences, enforce_sorted=False)
    else:
        x = torch.randn(steps, batch, 2).double().requires_grad_(learns[8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "ROWS", rows)  # of a chunk: one step, or all
        patch.setattr(chunks, "BYTES", 1)
        same_by_program(layer, x, hx if states > 1 else hx[0], rtol=1e-9)
