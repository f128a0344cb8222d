"""`nn.MultiheadAttention` in a step: over parts of the state, by heads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState

SLOTS, WIDTH = 3, 4


class Relational(flexrnn.Cell):
    """Slots of a memory attend to one another and to the input, after Santoro et al. 2018."""

    State = HiddenState

    def __init__(self, input_size: int, hidden_size: int, bias: bool, how: str, **kwargs: Any):
        super().__init__(input_size, hidden_size)
        self.how = how
        sizes: dict[str, Any] = {"kdim": 3, "vdim": 3} if how == "cross" else {}
        self.inner = nn.Linear(input_size, WIDTH, **kwargs)
        self.attention = nn.MultiheadAttention(
            WIDTH, 2, bias=bias, batch_first=how != "second", **sizes, **kwargs
        )
        self.register_buffer("closed", torch.ones(SLOTS, SLOTS + 1, dtype=torch.bool).triu(2))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        slots = state.h.view(-1, SLOTS, WIDTH)
        seen = torch.cat([slots, self.inner(x).unsqueeze(1)], 1)
        given: dict[str, Any] = {}
        match self.how:
            case "cross":
                seen = seen[..., :3] * 2
            case "second":
                slots, seen = slots.transpose(0, 1), seen.transpose(0, 1)
            case "padding":  # the first slot and the input are always there
                padding = seen.mean(-1) > 0.1
                first = torch.arange(SLOTS + 1) % SLOTS == 0
                given = {"key_padding_mask": padding & ~first}
            case "mask":
                given = {"attn_mask": self.closed, "need_weights": False}
            case "weights":
                given = {"average_attn_weights": False}
        new, weights = self.attention(slots, seen, seen, **given)
        if self.how == "second":
            new = new.transpose(0, 1)
        new = new.flatten(1)
        if self.how == "weights":
            new = new + weights.flatten(1)[:, : SLOTS * WIDTH]
        elif self.how == "padding":
            new = new * (1 + weights.flatten(1)[:, : SLOTS * WIDTH])
        return HiddenState(torch.tanh(state.h + new))


@pytest.mark.parametrize("how", ["", "cross", "second", "padding", "mask", "weights"])
@pytest.mark.parametrize("bias", [True, False])
def test_slots_that_attend(same_by_program: Callable[..., None], how: str, bias: bool) -> None:
    layer = flexrnn.FlexRNN(Relational, 5, SLOTS * WIDTH, bias=bias, how=how, dtype=torch.float64)
    for batch in (1, 2, 3):
        x = torch.randn(3, batch, 5, dtype=torch.float64, requires_grad=True)
        h = torch.randn(1, batch, SLOTS * WIDTH, dtype=torch.float64, requires_grad=True)
        same_by_program(layer, x, h)


def test_what_is_refused(function_layer: Any) -> None:
    attention = nn.MultiheadAttention(5, 1, dtype=torch.float64)
    cases = {
        "more than queries": lambda c, z, h: z + c.attention(z, h, h)[0],
        "random numbers": lambda c, z, h: z + c.attention(z[None], h[None], h[None])[0][0],
    }
    for reason, function in cases.items():
        attention.dropout = 0.5 if reason == "random numbers" else 0.0
        layer = function_layer(function)
        for cell in layer.cells:
            cell.attention = attention
        with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason):
            layer(torch.randn(2, 3, 3, dtype=torch.float64))
