"""What `flexrnn bench` has found so far: plain data, as its JSON has it."""

import os
import re
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from flexrnn.engine.cpu.build import compiler, isa
from flexrnn.engine.step import CannotRunError
from flexrnn.lab import results as common

# What people set, and what changes times.
VARIABLES = ("MALLOC_", "OMP_", "KMP_", "GOMP_", "MKL_", "FLEXRNN_ISA", "ONEDNN_", "LD_PRELOAD")


@dataclass
class Row:
    """One comparison at one size in one mode.

    Attributes:
        key, label: the case, and the layer that is measured.
        size: `batch`, `steps`, `input`, `hidden`.
        mode: "inference" or "training".
        per: "call", or "step" where times, faults and operations are those of one step.
        engine: that runs the layer; `causes` says why each faster one does not.
        why_not: why there is no number: what is wrong, or what the layer raised.
        check: the tensor that is nearest to its limit: `tensor`, `error`, `allowed`.
        ours: `label`, `median_ms`, `quartiles_ms`, `runs`, `page_faults`.
        rivals: the same of each of torch's, and `ratio`: our median by theirs.
        side_by_side: whether threads had a core each before and after.
        gflops: of matrix products in a second; `of_peak`: as a part of the machine's peak.
        memory: of a training step: `ours` and `theirs` in bytes and the `ratio`, or `why_not`.
    """

    key: str
    label: str
    size: dict[str, int]
    mode: str
    per: str = "call"
    engine: str = ""
    causes: list[str] = field(default_factory=list)
    why_not: str = ""
    check: dict[str, Any] | None = None
    ours: dict[str, Any] | None = None
    rivals: list[dict[str, Any]] = field(default_factory=list)
    side_by_side: bool | None = None
    gflops: float | None = None
    of_peak: float | None = None
    memory: dict[str, Any] | None = None


@dataclass
class Bench:
    """One run: where, with what, and what came out so far."""

    options: dict[str, Any]
    machine: dict[str, Any]
    started: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat("T", "seconds")
    )
    state: str = "running"  # then "finished", "interrupted" or "failed"
    seconds: float = 0.0
    peak_gflops: float | None = None
    first_use: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as dictionaries, lists, numbers and strings."""
        return common.to_plain(asdict(self))


def machine() -> dict[str, Any]:
    """Where the numbers are measured: as `flexrnn compare` says, and what compiles, and for what.

    Example:
        >>> from flexrnn.lab.bench.results import machine
        >>> sorted(machine())[:4]
        ['compiler', 'cores', 'date', 'environment']
    """
    try:
        found, vectors = compiler.find().version.splitlines()[0], isa.machine().name
    except CannotRunError as error:
        found, vectors = f"none: {error}", None
    return {
        **common.machine(),
        "compiler": found,
        "isa": vectors,
        "date": date.today().isoformat(),
        "environment": {
            name: Path(value).name if name == "LD_PRELOAD" else value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES)
        },
    }


def file_name(machine: dict[str, Any], dtype: str) -> str:
    """How a machine's entry is called: processor, instructions, threads, a dtype but float32.

    Where processors of unlike generations have one name, this has the numbers of their model.

    Example:
        >>> from flexrnn.lab.bench.results import file_name
        >>> file_name({"processor": "AMD EPYC", "isa": "avx2", "threads": 2}, "float32")
        'cpu-amd-epyc-avx2-2'
    """
    parts = ["cpu", machine["processor"], machine["isa"] or "", str(machine["threads"])]
    parts += [dtype] if dtype != "float32" else []
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
