"""What a comparison has found so far: plain data that grows, and can be written at any moment."""

import json
import math
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from flexrnn import __version__


@dataclass
class Agreement:
    """How far one cell is from `nn.LSTM` with the same weights, in one dtype.

    Each difference is the largest absolute one; `gradients` has one for x and one for each weight,
    `scale` the largest absolute value of the same quantity in `nn.LSTM`, to judge them by.
    `why_not` says why there is nothing to compare; then the rest is empty.
    """

    key: str
    label: str
    dtype: str
    why_not: str = ""
    output: float | None = None
    states: float | None = None
    gradients: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)


@dataclass
class Speed:
    """Every time taken of one cell at one size, in milliseconds; `summary` has the medians."""

    key: str
    label: str
    size: dict[str, int]
    products_per_step: int
    products_once: int
    forward: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)


@dataclass
class Learning:
    """One cell as a character language model.

    `curve` has a point whenever the held-back text was scored: step, seconds of training so far,
    bits per character there and, since the point before, on the training text.
    """

    key: str
    label: str
    parameters: int
    curve: list[dict[str, float | None]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    characters_per_second: float | None = None
    bits_per_character: float | None = None
    sample: str = ""


@dataclass
class Results:
    """One run of `flexrnn compare`: where, with what, and what came out so far."""

    options: dict[str, Any]
    machine: dict[str, Any]
    started: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat("T", "seconds")
    )
    state: str = "running"  # then "finished" or "interrupted"
    seconds: float = 0.0
    text: dict[str, Any] | None = None
    agreement: list[Agreement] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    learning: list[Learning] = field(default_factory=list)
    gates: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as dictionaries, lists, numbers and strings, with the medians worked out."""
        plain = to_plain(self)
        plain["speed"] = summaries(self.speed)
        return plain


def summaries(rows: list[Speed]) -> list[dict[str, Any]]:
    """Medians, quartiles and the ratio to `nn.LSTM` at the same size, one row a cell and size.

    Example:
        >>> from flexrnn.lab.results import Speed, summaries
        >>> size = {"batch": 1, "seq": 2, "hidden": 3}
        >>> ours = Speed("ours", "Ours", size, 2, 0, forward=[2.0, 4.0, 3.0])
        >>> torchs = Speed("torch", "torch.nn.LSTM", size, 1, 1, forward=[1.5])
        >>> [row["forward"]["ratio"] for row in summaries([ours, torchs])]
        [2.0, 1.0]
    """
    found = []
    for row in rows:
        baseline = next((r for r in rows if r.key == "torch" and r.size == row.size), None)
        plain = to_plain(row)
        for kind in ("forward", "training"):
            times = getattr(row, kind)
            against = getattr(baseline, kind) if baseline else []
            low, _, high = quantiles(times, n=4) if len(times) > 1 else [None] * 3
            plain[kind] = {
                "median_ms": median(times) if times else None,
                "quartiles_ms": [low, high],
                "rounds": len(times),
                "ratio": median(times) / median(against) if times and against else None,
            }
        found.append(plain)
    return found


def to_plain(value: Any) -> Any:
    """Dataclasses to dictionaries; NaN and infinities, which JSON does not have, to `None`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def machine() -> dict[str, Any]:
    """Where the numbers were measured: processor, cores, versions, threads.

    Example:
        >>> from flexrnn.lab.results import machine
        >>> machine()["threads"] >= 1
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flexrnn": __version__,
    }


def _processor() -> str:
    """Its name; where that says no model, as in a cloud's machine, with the numbers that do."""
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.exists():
        first, _, _ = cpuinfo.read_text(errors="replace").partition("\n\n")
        lines = (line.partition(":") for line in first.splitlines())
        said = {field.strip(): value.strip() for field, _, value in lines}
        name, numbers = said.get("model name"), ("cpu family", "model")
        if name and not any(c.isdigit() for c in name) and said.keys() >= {*numbers}:
            name += " (family {}, model {})".format(*(said[number] for number in numbers))
        if name:
            return name
    return platform.processor() or platform.machine()


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write the results, whole or not at all."""
    write(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file beside its place, then move it there: a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)  # gone meanwhile? The results are not
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's file is for the owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
