"""Where programs of `grid` meet, by what is written; `races` looks at what they do."""

import re
from typing import Any

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import plan
from flexrnn.engine.cuda.emit.meetings import Access, Trace, meetings

KINDS = {
    "before.h": "old",
    "after.h": "new",
    "saved": "timed",
    "temporary": "fixed",
    "partial": "fixed",
}


def stage(reads: str = "", writes: str = "") -> Trace:
    """Names of memory; with a star, whole rows."""

    def accesses(text: str) -> list[Access]:
        return [Access(n.rstrip("*"), None if n.endswith("*") else "own") for n in text.split()]

    return Trace(accesses(reads), accesses(writes))


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([stage("before.h", "after.h saved")], [False]),  # no unit looks at another
        ([stage("before.h*", "after.h saved")], [True]),  # the state's ring has two slots
        ([stage("before.h", "saved"), stage("saved*", "after.h")], [False, True]),
        ([stage("", "temporary"), stage("temporary", "saved")], [False, False]),
        # Who is fast must not write for the next step what others still read.
        ([stage("", "temporary"), stage("temporary*", "saved")], [True, True]),
        ([stage("before.h*", "temporary"), stage("temporary*", "after.h")], [True, True]),
        ([stage("before.h*", "partial*"), stage("partial*", "after.h")], [True, True]),
    ],
)
def test_programs_meet_between_unlike_accesses(stages: list[Trace], expected: list[bool]) -> None:
    assert meetings(stages, KINDS) == tuple(expected)


@pytest.mark.parametrize(
    ("cell", "there", "back"),
    [
        (flexrnn.cells.LSTMCell, 1, 1),
        (flexrnn.cells.PeepholeLSTMCell, 1, 1),
        (flexrnn.cells.GRUCell, 1, 1),
        (flexrnn.cells.LayerNormLSTMCell, 5, 3),
    ],
)
def test_they_meet_no_more_often_than_they_have_to(cell: Any, there: int, back: int) -> None:
    for loop, expected in zip(loops(cell), (there, back), strict=True):
        assert loop.source(16, even=True).grid.meetings == expected


def loops(cell: Any) -> list[Any]:
    layer = flexrnn.FlexRNN(cell, 8, 40)
    program = flexrnn.explain(layer, torch.randn(2, 3, 8)).steps[0].program
    assert program is not None
    found = plan.plan_of(program, program.fields[:1], torch.float32)
    return [found.forward, found.backward]


@pytest.mark.parametrize("cell", [flexrnn.cells.LSTMCell, flexrnn.cells.LayerNormLSTMCell])
def test_nothing_that_is_read_is_written_behind_the_arrival(cell: Any) -> None:
    """And what others have written is read behind the wait."""
    seen = 0
    for loop in loops(cell):
        source = loop.source(16, even=True)
        stages = re.findall(r"^def stage\d+\(.*?\n\n", source.grid.text, re.M | re.S)
        reads = {n for s in stages for n in re.findall(r"tl\.load\((\w+)", s)}
        writes = {n for s in stages for n in re.findall(r"tl\.store\((\w+)", s)}
        rings = {b.name for b in source.buffers.values() if b.kind in ("old", "new")}
        for stage in stages:
            early, waits, rest = stage.rpartition("    wait(")
            if waits:
                assert not set(re.findall(r"tl\.load\((\w+)", early)) & (writes | rings), stage
            _, arrives, late = rest.partition("    arrive(")
            behind = set(re.findall(r"tl\.store\((\w+)", late)) if arrives else set()
            assert not behind & (reads | rings), stage
            seen += len(behind)
    assert seen
