"""Of each row the unit whose number is its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn

from .written import Cell, halves


def slots(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """A memory of two slots, one of which is read, and then written."""
    memory, rows = halves(torch.tanh(x @ c.W + h @ c.U)) * 1, torch.arange(h.shape[0])
    place = memory.sum(-1).argmax(-1)
    memory[rows, place] = memory[rows, place] * 0.5 + x[:, :2]
    return memory.flatten(1)


def cleared(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = torch.tanh(x @ c.W + h @ c.U) * 1
    z[torch.arange(h.size(0), device=h.device), h.argmax(1)] = 0.0
    z[torch.arange(0, h.size(0)), z.argmin(1) - 4] += x[:, 0]
    return z


def several(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """What `topk` finds, marked and written to; of several values the last stays."""
    marks, rows = torch.zeros_like(h), torch.arange(h.size(0), device=h.device).view(-1, 1)
    places = h.topk(3, -1).indices
    marks[rows, places[:, :2]] = h[:, :2] * 2
    marks[rows, places] += x
    marks[rows.long(), places[:, 2:] - 4] = c.b[:1]
    chosen = torch.zeros(h.shape[0], 4, dtype=torch.bool)
    chosen[rows, places[:, :1]] = True
    return marks * h + x @ c.W + chosen * h


def several_slots(c: Any, x: Tensor, h: Tensor) -> Tensor:
    memory, rows = halves(x @ c.W + h) * 1, torch.arange(h.size(0))[:, None]
    places = memory.sum(-1).argsort(-1)
    read = memory[rows, places]
    memory[rows, places] = read * c.b[:2]
    memory[rows, places[:, :1]] = h[:, None, :2]
    return (memory + read).flatten(1)


def put(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """By another name; what several add to one unit is summed up."""
    memory, rows = (x @ c.W + h) * 1, torch.arange(h.size(0))
    memory.index_put_((rows, h.argmax(1)), x[:, 0])
    memory.index_put_([rows, h.argmin(1)], x[:, 1], accumulate=True)
    twice = h.topk(2, -1).indices[:, [0, 1, 0]]
    memory = memory.index_put((rows[:, None], twice), x, accumulate=True)
    slots = torch.index_put(halves(memory), (rows, x.argmax(1) // 2), x[:, :2], accumulate=True)
    return slots.flatten(1)


def table(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Of a table in every row one place: what an action is worth in a state."""
    q, rows = halves(torch.tanh(x @ c.W + h)) * 1, torch.arange(h.size(0))
    state, action = (x[:, 0] > 0).long(), x[:, 1:].argmax(-1) - 2
    q[rows, state, action] += 0.5 * (x[:, 2] - q[rows, state, action])
    return q.flatten(1) + q[rows, action, state][:, None] * h


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "put": put,
    "a place of a table": table,
    "read": lambda c, x, h: (
        x @ c.W + h[torch.arange(h.shape[0]), h.argmax(-1)].unsqueeze(1) * torch.tanh(h)),
    "read by one number": lambda c, x, h: x @ c.W + h[torch.arange(h.shape[0]), 2].unsqueeze(1),
    "slots": slots,
    "cleared": cleared,
    "several, read": lambda c, x, h: x @ c.W + (
        h[torch.arange(h.size(0)).unsqueeze(1), h.topk(2, -1).indices].repeat(1, 2)),
    "several": several,
    "several slots": several_slots,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


NOBODYS: list[Callable[..., Tensor]] = [
    lambda h, rows: h[rows, h.argmax(-1) + 9],
    lambda h, rows: halves(h)[rows, h.argmax(-1) % 2, h.argmax(-1) % 2 + 2],
    lambda h, rows: halves(h)[rows, h.argmax(-1) % 2 - 4, h.argmax(-1) % 2],
]


@pytest.mark.parametrize("read", NOBODYS)
def test_a_number_that_no_unit_has_picks_nan(read: Callable[..., Tensor]) -> None:
    def step(c: Any, x: Tensor, h: Tensor) -> Tensor:
        return read(h, torch.arange(h.shape[0])).unsqueeze(1) + x @ c.W

    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=step)
    with flexrnn.backend("cpu"):
        assert layer(torch.randn(1, 2, 3, dtype=torch.float64))[0].isnan().all()


def first_row(c: Any, z: Tensor, h: Tensor) -> Tensor:
    rows = torch.arange(h.size(0))
    rows.clamp_(max=0)
    return z[rows, h.argmax(1)][:, None] + h


def first_row_behind(c: Any, z: Tensor, h: Tensor) -> Tensor:
    rows = torch.arange(h.size(0))
    column = rows.unsqueeze(1)
    rows.clamp_(max=0)
    return z[column, h.topk(1).indices] + h


@pytest.mark.parametrize(
    "function",
    [
        first_row,
        first_row_behind,
        lambda c, z, h: h + z * torch.arange(h.shape[0]).unsqueeze(1),
        lambda c, z, h: h + z.view(-1)[torch.arange(h.shape[0]) * 5 + h.argmax(1)][:, None],
    ],
)
def test_numbers_of_rows_that_name_others_are_refused(
    function: Callable[..., Tensor], refuses: Callable[..., None]
) -> None:
    refuses(function, r"it numbers the rows, and not in x\[torch.arange\(B\), numbers\]")
