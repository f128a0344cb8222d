"""Where programs of `grid` meet, by what is written; `races` looks at what they do."""

import re
from typing import Any

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import plan
from flexrnn.engine.cuda.emit.meetings import Access, Trace, meetings, own

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
        (flexrnn.cells.LayerNormLSTMCell, 3, 3),
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
    """And what others have written is read behind the wait: all but a program's own numbers."""
    seen = 0
    for loop in loops(cell):
        source = loop.source(16, even=True)
        stages = re.findall(r"^def stage\d+\(.*?\n\n", source.grid.text, re.M | re.S)
        reads = {n for s in stages for n in re.findall(r"tl\.load\((\w+)", s)}
        writes = {n for s in stages for n in re.findall(r"tl\.store\((\w+)", s)}
        rings = {b.name for b in source.buffers.values() if b.kind in ("old", "new")}
        own = own_of(source, stages) & (writes | rings)
        for stage in stages:
            early, waits, rest = stage.rpartition("    wait(")
            before = set(re.findall(r"tl\.load\((\w+)", early)) if waits else set()
            assert not before & ((writes | rings) - own), stage
            awaited, arrives, late = rest.partition("    arrive(")
            behind = set(re.findall(r"tl\.store\((\w+)", late)) if arrives else set()
            assert not behind & ((reads | rings) - own), stage
            if waits:
                assert not set(re.findall(r"tl\.load\((\w+)", rest)) & own, stage
            if arrives:
                assert not set(re.findall(r"tl\.store\((\w+)", awaited)) & own, stage
            seen += len(behind)
    assert seen


def own_of(source: Any, stages: list[str]) -> set[str]:
    """Memory that is read and written at one unit alone, or of which every program has a copy."""
    found: dict[str, set[str]] = {}
    names = {b.name: b for b in source.buffers.values()}
    for name, at in re.findall(r"tl\.(?:load|store)\((\w+)( \+ .*?), ", "".join(stages)):
        found.setdefault(ring(names[name]), set()).add(at)
    units = {name for name, at in found.items() if len(at) == 1 and next(iter(at)).endswith("unit")}
    copies = {b.name for name, b in source.buffers.items() if name in source.grid.copied}
    return {name for name, b in names.items() if ring(b) in units} | copies


def ring(buffer: Any) -> str:
    """What the two names of a state that travels have in common."""
    return buffer.name.partition("_")[2] if buffer.kind in ("old", "new") else buffer.name


def test_a_program_has_its_own_numbers() -> None:
    def own_in(*stages: Trace) -> frozenset[str]:
        return own(stages, KINDS)

    assert own_in(stage("before.h saved", "after.h saved")) == {"before.h", "after.h", "saved"}
    assert own_in(stage("before.h*", "after.h saved")) == {"saved"}  # a ring has two names
    assert own_in(stage("temporary", "saved"), stage("saved*", "temporary")) == {"temporary"}
    others = Trace([Access("saved", "another's")], [])
    assert not own_in(stage("", "saved"), others)
