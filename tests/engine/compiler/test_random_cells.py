"""Random cells through every pass: values and every gradient against the reference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import flexrnn

UNARY = [
    torch.sigmoid, torch.tanh, torch.relu, torch.sin, torch.neg, torch.erf, torch.atan,
    nn.functional.softplus, nn.functional.silu, nn.functional.elu, lambda v: torch.exp(-v * v),
    lambda v: v.clamp(-0.5, 0.5), lambda v: (v * v + 1).rsqrt(), lambda v: 1 - v,
]  # fmt: skip
BINARY = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda a, b: a / (b * b + 1), lambda a, b: torch.where(a > b, a, b * 0.5),
    lambda a, b: torch.lerp(a, b, 0.3),
]  # fmt: skip
REDUCED = [
    lambda v: v.mean(-1, keepdim=True) + v * 0,
    lambda v: v - v.mean(-1, keepdim=True),
    lambda v: nn.functional.layer_norm(v, v.shape[-1:]),
    lambda v: torch.softmax(v, -1),
    lambda v: v * v.amax(-1, keepdim=True),
]


class States(NamedTuple):
    a: Tensor
    b: Tensor
    c: Tensor


class RandomCell(flexrnn.Cell):
    """A walk through the operations: each line of the plan makes one more value."""

    State = States

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, plan=()):
        super().__init__(input_size, hidden_size)
        self.plan = plan
        H, kwargs = hidden_size, {"device": device, "dtype": dtype}
        self.weights = nn.ParameterList(torch.randn(H, H, **kwargs) / H**0.5 for _ in range(3))
        self.joined = nn.Parameter(torch.randn(H, 2 * H, **kwargs) / H**0.5)
        self.wide = nn.Parameter(torch.randn(3 * H, H, **kwargs) / H**0.5)
        self.vector = nn.Parameter(torch.randn(H, **kwargs))
        self.inner = nn.Linear(input_size, H, bias, **kwargs)

    def step(self, x: Tensor, state: States) -> States:
        values = [self.inner(x), *state, self.vector + 0 * state.a]
        for kind, which, left, right in self.plan:
            a, b = values[left % len(values)], values[right % len(values)]
            if kind == "unary":
                new = UNARY[which % len(UNARY)](a)
            elif kind == "binary":
                new = BINARY[which % len(BINARY)](a, b)
            elif kind == "reduced":
                new = REDUCED[which % len(REDUCED)](a)
            elif kind == "product":
                new = a @ self.weights[which % 3]
            elif kind == "joined":
                new = nn.functional.linear(torch.cat([a, b], -1), self.joined)
            elif kind == "chunks":
                p, q, r = nn.functional.linear(a, self.wide).chunk(3, -1)
                new = torch.sigmoid(p) * torch.tanh(q) + r * b
            else:
                new = a * self.vector + b
            values.append(torch.tanh(new))  # bounded, so that four steps stay comparable
        return States(values[-1], values[-2], state.c if len(self.plan) % 3 == 0 else values[-3])


KINDS = ["unary", "binary", "reduced", "product", "joined", "chunks", "vector"]
LINE = st.tuples(st.sampled_from(KINDS), *(st.integers(0, 30) for _ in range(3)))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    plan=st.lists(LINE, min_size=2, max_size=9),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
    hidden=st.sampled_from([1, 3, 5]),
    packed=st.booleans(),
    learns=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_a_random_cell_is_the_reference(
    plan: Any,
    steps: int,
    batch: int,
    hidden: int,
    packed: bool,
    learns: list[bool],
    same_by_program: Callable[..., None],
) -> None:
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(RandomCell, 2, hidden, dtype=torch.float64, plan=tuple(plan))
    for parameter, learning in zip(layer.parameters(), learns, strict=False):
        parameter.requires_grad_(learning)
    hx = tuple(
        torch.randn(1, batch, hidden).double().requires_grad_(learns[9 + k]) for k in range(3)
    )
    if packed:
        rows = [torch.randn(1 + (k * 2) % steps, 2).double() for k in range(batch)]
        x: Any = pack_sequence(rows, enforce_sorted=False)
    else:
        x = torch.randn(steps, batch, 2).double().requires_grad_(learns[8])
    same_by_program(layer, x, hx, rtol=1e-9)
