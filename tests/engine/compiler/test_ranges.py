"""Whole numbers that a program in float32 would not know: refused, where they may be that large."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState

LARGE = 2**30 + 3


class Counting(flexrnn.Cell):
    """`h ← tanh(W x + U h + n)`, n from whole numbers that the function makes."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None,
                 function=None, large=True):  # fmt: skip
        super().__init__(input_size, hidden_size)
        self.inner = torch.nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.function: Any = function
        places = torch.arange(hidden_size) + LARGE * large
        self.register_buffer("places", places)
        self.register_buffer("table", torch.arange(40))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(torch.cat([x, state.h], -1))
        n = self.function(self, x, (x[:, :1] > 0).long())
        return HiddenState(torch.tanh(z + n.to(z.dtype) / 8))


SMALL: dict[str, Callable[..., Tensor]] = {
    "cut off": lambda c, x, one: (x * 1e9).long() % 7,
    "chosen by them": lambda c, x, one: torch.where(x > 0, (x * 1e9).long(), 5).clamp(0, 3),
    "clamped and summed up": lambda c, x, one: (x * 9).long().clamp(-9, 9).sum(-1, True) + 4,
    "between 0 and 1": lambda c, x, one: (x.sigmoid() * 9).long() // 2 + 1,
    "compared": lambda c, x, one: ((x * 1e9).long() > 123).long(),
    "places": lambda c, x, one: x.argsort(-1)[:, :1] * 3 + x.argmax(-1, True),
    "counted on from reals": lambda c, x, one: ((x * 9).long() + 1) % 7,
    "a place behind": lambda c, x, one: c.table[(x * 2).long().abs() + 1],
    "gathered": lambda c, x, one: c.table.expand(x.shape[0], -1).gather(1, x.argmax(-1, True)) * 3,
    "in another order": lambda c, x, one: (one + c.table[:4])[:, [2, 0, 1, 3]] * 9,
    "shifted": lambda c, x, one: ((x * 99).long() >> 1) & 1,
    "of a buffer": lambda c, x, one: c.places + one,
    "of numbers": lambda c, x, one: torch.where(one > 0, torch.arange(4), 3) * 2,
    "of a buffer, beside reals": lambda c, x, one: c.places * x[:, :1],
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_ones_are_the_references(name: str, dtype: torch.dtype) -> None:
    options = {"dtype": dtype, "function": SMALL[name], "large": False}
    layer, x = flexrnn.FlexRNN(Counting, 4, 4, **options), torch.randn(5, 2, 4, dtype=dtype)
    with flexrnn.backend("cpu"):
        output = layer(x)[0]
    with flexrnn.backend("reference"):
        assert_close(output, layer(x)[0])


MAY_BE = "may be as large as"
NOBODY = "nobody knows how large these whole numbers may be"
REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a sum": (lambda c, x, one: ((x * 1e9).long() + 1) % 7, NOBODY),
    "a sum of several": (lambda c, x, one: (x * 1e7).long().sum(-1, True) % 7, NOBODY),
    "a running sum": (lambda c, x, one: (x * 1e7).long().cumsum(-1)[:, -1:] % 7, NOBODY),
    "a product": (lambda c, x, one: ((x * 1e4).long() * 4096) % 7, NOBODY),
    "a quotient": (lambda c, x, one: (x * 1e9).long() // 1000 % 10, NOBODY),
    "a number": (lambda c, x, one: torch.where(one > 0, LARGE, one) % 7, MAY_BE),
    "a tensor of one": (lambda c, x, one: torch.where(one > 0, torch.tensor(LARGE), 3), MAY_BE),
    "filled": (lambda c, x, one: one.masked_fill(one > 0, LARGE) % 7, MAY_BE),
    "clamped": (lambda c, x, one: one.clamp(min=LARGE) % 7, MAY_BE),
    "compared with": (lambda c, x, one: (one + 5 == LARGE).long(), "a whole number that large"),
    "a buffer": (lambda c, x, one: (c.places + one) % 7, "from -1048576 to 1048576 in a buffer"),
    "of a buffer": (lambda c, x, one: c.places[one[:, 0]][:, None] % 7, "1048576 in a buffer"),
    "picked by one for all": (
        lambda c, x, one: torch.where(one == torch.arange(1), c.table, 0).sum(-1, True),
        MAY_BE,
    ),
    "by a division": (lambda c, x, one: ((x.exp() / 1e-6).relu().long() + 1) % 7, NOBODY),
    "many sums": (lambda c, x, one: (x * 9).long() * 4096 % 7, MAY_BE),
    "32 bits": (lambda c, x, one: (x * 1e9).int() * 3 % 7, NOBODY),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_larger_is_refused(name: str) -> None:
    function, reason = REFUSED[name]
    layer = flexrnn.FlexRNN(Counting, 4, 4, function=function)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason):
        layer(torch.randn(5, 2, 4))


def test_a_buffer_that_has_become_too_large_is_noticed() -> None:
    layer = flexrnn.FlexRNN(Counting, 4, 4, function=SMALL["of a buffer"], large=False)
    x = torch.randn(5, 2, 4)
    with flexrnn.backend("cpu"):
        layer(x)
        layer.get_buffer("cells.0.places").fill_(LARGE)
        with pytest.raises(RuntimeError, match="expected whole numbers"):
            layer(x)


def test_whole_numbers_of_a_state_may_count() -> None:
    def step(x: Tensor, state: Any) -> Any:
        h, n = state
        return torch.tanh(h + x + (n % 3)), n + 1

    x = torch.randn(6, 2, 4)
    for begin in (0, 2**20 - 3):  # the latter passes what may be given
        state = torch.zeros(2, 4), torch.full((2, 4), begin)
        with flexrnn.backend("reference"):
            expected = flexrnn.scan(step, state, x)
        with flexrnn.backend("cpu"):
            if begin:
                with pytest.raises(RuntimeError, match="expected whole numbers"):
                    flexrnn.scan(step, state, x)
            else:
                assert_close(flexrnn.scan(step, state, x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_32_bits_have_a_bound_of_their_own(dtype: torch.dtype) -> None:
    def step(x: tuple[Tensor, Tensor], state: Any) -> Any:
        h, n = state
        return torch.tanh(h + x[0] + ((x[1] * 3 + n) % 7)), n + 1

    state = torch.zeros(2, 4, dtype=dtype), torch.zeros(2, 1, dtype=torch.int32)
    x = torch.randn(6, 2, 4, dtype=dtype), torch.randint(-9, 9, (6, 2, 1), dtype=torch.int32)
    with flexrnn.backend("reference"):
        expected = flexrnn.scan(step, state, x)
    with flexrnn.backend("cpu"):
        assert_close(flexrnn.scan(step, state, x), expected)
        if dtype == torch.float64:  # which knows more than they do
            x[1][0] = 2**28
            with pytest.raises(RuntimeError, match=r"torch\.int32 from -134217727"):
                flexrnn.scan(step, state, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_those_that_grow_otherwise_are_refused(dtype: torch.dtype) -> None:
    def step(x: Tensor, state: Any) -> Any:
        h, n = state
        return torch.tanh(h + x + (n % 3)), n * 3 + 1

    state = torch.zeros(2, 4, dtype=dtype), torch.ones(2, 4, dtype=torch.int64)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="1 may grow from step to step"):
        flexrnn.scan(step, state, torch.randn(40, 2, 4, dtype=dtype))
