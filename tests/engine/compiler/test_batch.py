# pyright: reportPrivateUsage=false
# What is kept between traces has no public name.
"""Traces have the batch size from one another, and nothing else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn.engine.compiler import batch, passes
from flexrnn.engine.compiler.program import dumps

from .test_solved import roots
from .written import Cell

STEPS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a norm": lambda c, x, h: F.layer_norm(x @ c.W + h, (4,)),
    "rows by rows": lambda c, x, h: torch.softmax((x @ c.W)[..., None] * h[:, None], -1).sum(1),
    "ranks": lambda c, x, h: h.argsort(-1).argsort(-1) * (x @ c.W),
    # Of what torch computes ahead here, a number counts what torch has computed of sizes.
    "roots": lambda c, x, h: roots(c, x, h, 3),
}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The text of a step's program, traced anew; of none the reason."""
    monkeypatch.setattr(batch, "_free", [])

    def make(step: Callable[..., Tensor]) -> str:
        monkeypatch.setattr(passes, "_programs", {})
        monkeypatch.setattr(passes, "_traces", {})
        x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
        layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=step)
        report = flexrnn.explain(layer, x).steps[0]
        return report.refusal if report.program is None else dumps(report.program)

    return make


@pytest.mark.parametrize("name", STEPS)
def test_a_program_is_the_same_whatever_was_traced_before(
    name: str, program: Callable[..., str]
) -> None:
    first = program(STEPS[name])
    (used,) = batch._free
    assert program(STEPS[name]) == first
    for step in STEPS.values():
        program(step)
    assert batch._free == [used]  # it served all of them
    assert program(STEPS[name]) == first


@pytest.mark.parametrize(
    "mode", [FakeTensorMode, partial(torch.device, "meta"), torch.inference_mode]
)
def test_it_is_there_with_the_first_layer_whatever_is_in_force(
    mode: Callable[[], Any], program: Callable[..., str]
) -> None:
    with mode():
        flexrnn.LSTM(3, 4)
    (made,) = batch._free
    text = program(STEPS["a norm"])
    assert batch._free == [made]
    batch._free.clear()
    assert program(STEPS["a norm"]) == text


def test_a_question_about_the_batch_size_is_noticed_every_time(program: Callable[..., str]) -> None:
    def asks(cell: Any, x: Tensor, h: Tensor) -> Tensor:
        return h + x @ cell.W if h.shape[0] > 3 else h

    def asks_what_is_known(cell: Any, x: Tensor, h: Tensor) -> Tensor:
        return h + x @ cell.W if h.shape[0] > 1 else h

    for step, asked in ((asks, "(B > 3)"), (asks_what_is_known, "(B > 1)")):
        program(STEPS["a norm"])
        reasons = {program(step) for _ in range(3)}
        assert len(reasons) == 1
        assert f"the step's course depends on the batch size {asked}" in reasons.pop()
        assert not batch._free


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_a_layer_is_made_under_torchs_older_tracer(program: Callable[..., str]) -> None:
    x = torch.randn(4, 2, 3)
    made: Any = torch.jit.trace(lambda x: flexrnn.LSTM(3, 5)(x)[0], (x,), check_trace=False)
    assert made(x).shape == (4, 2, 5)
    assert not batch._free
