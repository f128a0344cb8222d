"""One layer at one size: is it right, how long does it take, and how much memory."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

import flexrnn
from flexrnn.engine.engines import ENGINES, Engine
from flexrnn.lab.bench import apart, flops, gate
from flexrnn.lab.bench.cases import Case, Size
from flexrnn.lab.bench.results import Row

TELLING_BYTES = 4 << 20  # of less, what the process itself happens to touch is too large a part


@dataclass
class Measure:
    """How to measure; `memories` has those of torch's layers, which several cases are beside."""

    dtype: torch.dtype
    backend: str
    seconds: float
    seed: int
    peak_gflops: float
    memories: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def rows(self, case: Case, size: Size) -> list[Row]:
        """A row for each mode; one that says why, for a layer that is wrong or does not run."""
        row = Row(case.key, case.ours.label, size._asdict(), case.modes[0])
        row.per = "step" if case.stepwise else "call"
        try:
            with flexrnn.backend(self.backend), _quiet():
                return self._rows(case, size, row)
        except Exception as error:  # one layer's trouble must not cost the others' numbers
            row.why_not = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return [row]

    def _rows(self, case: Case, size: Size, row: Row) -> list[Row]:
        layer = case.build(case.ours, size, self.dtype, self.seed)
        verdict = gate.judge(case, layer, size, self.dtype, self.backend, self.seed)
        row.check = {name: getattr(verdict, name) for name in ("tensor", "error", "allowed")}
        if not verdict.right:
            row.why_not = str(verdict)
            return [row]
        row.engine, row.causes = self._engine(case, layer, size)
        work = flops.count(case, layer, size, self.dtype)
        return [self._timed(case, size, replace(row, mode=m), work[m]) for m in case.modes]

    def _timed(self, case: Case, size: Size, row: Row, work: float) -> Row:
        said = apart.times(case, size, row.mode, self.dtype, self.backend, self.seconds, self.seed)
        if "why_not" in said:
            row.why_not = said["why_not"]
            return row
        ours, *rivals = said["times"]
        for rival in rivals:
            rival["ratio"] = ours["median_ms"] / rival["median_ms"]
        row.ours, row.rivals, row.side_by_side = ours, rivals, said["side_by_side"]
        gflops = 1e-6 * work / ours["median_ms"]
        row.gflops, row.of_peak = gflops, gflops / self.peak_gflops
        if row.mode == "training":
            row.memory = self._memory(case, size)
        return row

    def _engine(self, case: Case, layer: nn.Module, size: Size) -> tuple[str, list[str]]:
        """Which engine runs the layer, and why none that is faster."""
        if case.stepwise:  # `explain` is about sequences, and single steps have a way of their own
            size = size._replace(steps=2)  # what one leads to the next
            with torch.no_grad(), ran() as engines:
                case.ours.run(layer.eval(), case.given(size, self.dtype))
            untold = "torch" if self.backend == "torch" else "reference"  # they run no program
            return (engines or [untold])[-1], []
        x = torch.zeros(size.steps, size.batch, size.input, dtype=self.dtype)
        said = flexrnn.explain(layer, x)
        causes = [cause for step in said.steps for cause in step.causes]
        return said.engine, list(dict.fromkeys(causes))

    def _memory(self, case: Case, size: Size) -> dict[str, Any]:
        ours = apart.memory(case, 0, size, self.dtype, self.backend)
        key = (case.rivals[0].label, size)
        if key not in self.memories:
            self.memories[key] = apart.memory(case, 1, size, self.dtype, self.backend)
        theirs = self.memories[key]
        for said in (ours, theirs):
            if "why_not" in said:
                return said
        ratio = ours["bytes"] / theirs["bytes"] if theirs["bytes"] >= TELLING_BYTES else None
        return {"ours": ours["bytes"], "theirs": theirs["bytes"], "ratio": ratio}


@contextmanager
def ran() -> Iterator[list[str]]:
    """The names of the engines that run a program forward inside the block, as they do."""
    names: list[str] = []

    class Noted:
        def __init__(self, name: str):
            self.name, self.engine = name, ENGINES[name]

        def __getattr__(self, attribute: str) -> Any:
            if attribute == "forward":
                names.append(self.name)
            return getattr(self.engine, attribute)

    before = dict(ENGINES)
    ENGINES.update({name: cast(Engine, Noted(name)) for name in before})
    try:
        yield names
    finally:
        ENGINES.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """A layer that the reference runs says so in its row; torch's warns of its own slow path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flexrnn.FallbackWarning)
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield
