"""`flexrnn bench`: for every layer and size check, time, and write down after each."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flexrnn.engine.scan import check_backend
from flexrnn.lab.bench import apart, chart, flops, gate, show
from flexrnn.lab.bench.cases import BOTH, Case, Size, choose
from flexrnn.lab.bench.measure import Measure
from flexrnn.lab.bench.results import Bench, Row, file_name, machine
from flexrnn.lab.errors import UsageError
from flexrnn.lab.files import check_folder, no_interrupt
from flexrnn.lab.results import write, write_json
from flexrnn.lab.terminal import progress

SIZES = (
    Size(1, 100, 32, 64),
    Size(1, 100, 128, 256),
    Size(8, 100, 128, 256),
    Size(32, 100, 128, 256),
    Size(64, 50, 256, 512),
    Size(16, 200, 512, 1024),
    Size(128, 28, 28, 128),
    Size(1, 1000, 64, 512),
)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in gate.FACTORS}


@dataclass(frozen=True)
class Options:
    """What `flexrnn bench` was asked for; the defaults are the whole table."""

    cells: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    dtype: str = "float32"
    threads: int | None = None  # as torch has them
    seconds: float = 2.0
    only: str | None = None
    backend: str = "auto"
    seed: int = 0
    out: Path = Path("runs/bench")

    def chosen_sizes(self) -> tuple[Size, ...]:
        """The sizes to measure.

        Raises:
            UsageError: one is not four numbers of at least 1.

        Example:
            >>> from flexrnn.lab.bench.run import Options
            >>> Options(sizes=("8,100,128,256",)).chosen_sizes()
            (Size(batch=8, steps=100, input=128, hidden=256),)
        """
        return tuple(_size(text) for text in dict.fromkeys(self.sizes)) or SIZES


def _size(text: str) -> Size:
    try:
        size = Size(*map(int, text.split(",")))
    except (ValueError, TypeError):
        raise UsageError(f"--size: expected B,T,I,H, as in 8,100,128,256, got {text!r}") from None
    if min(size) < 1:
        raise UsageError(f"--size: expected numbers of at least 1, got {text!r}")
    return size


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure, show and write; Ctrl-C ends it early, with all that is done by then written.

    Args:
        options: what to do; refused before anything is measured if it makes no sense.
        console: where tables and bars go.

    Returns:
        What was found, as its JSON has it; a row with `why_not` is of a layer that is not right.

    Raises:
        UsageError: an option or the folder cannot be used.
    """
    began = time.perf_counter()
    cases, sizes = choose(options.cells), options.chosen_sizes()
    _check(options)
    if options.only is not None:
        cases = [
            case._replace(modes=(options.only,)) for case in cases if options.only in case.modes
        ]
        if not cases:
            raise UsageError(f"--only {options.only}: none of the cells is measured in this mode")
    check_folder(options.out)

    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    bench = Bench(_plain(options, cases, sizes), machine())
    name = file_name(bench.machine, options.dtype)

    def save() -> None:
        bench.seconds = time.perf_counter() - began
        found = bench.as_dict()
        write_json(options.out / f"{name}.json", found)
        if any(row.ours for row in bench.rows):
            write(options.out / f"{name}.svg", chart.draw(found))

    try:
        dtype = DTYPES[options.dtype]
        bench.peak_gflops = peak = flops.peak(dtype)
        show.start(console, bench.as_dict())
        how = Measure(dtype, options.backend, options.seconds, options.seed, peak)
        for case in cases:
            _case(bench, case, sizes, how, console)
            save()
            show.case(console, bench.as_dict(), case.key)
        bench.state = "finished"
    except KeyboardInterrupt:
        bench.state = "interrupted"
    except BaseException:
        bench.state = "failed"
        raise
    finally:
        torch.set_num_threads(threads)
        with no_interrupt():
            save()
    found = bench.as_dict()
    show.end(console, found, options.out / name)
    return found


def reload(path: Path, console: Console) -> dict[str, Any]:
    """Show what another run found.

    Args:
        path: its JSON.
        console: where tables go.

    Raises:
        UsageError: it cannot be read, or is none of `flexrnn bench`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in found["rows"]]
        found = Bench(**{**found, "rows": rows}).as_dict()
    except OSError as error:
        raise UsageError(f"--load {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"--load {path}: expected the JSON of flexrnn bench") from None
    show.start(console, found)
    for key in dict.fromkeys(row["key"] for row in found["rows"]):
        show.case(console, found, key)
    show.crowded(console, found)
    return found


def _check(options: Options) -> None:
    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype: expected one of {', '.join(DTYPES)}, got {options.dtype!r}")
    if options.only not in (None, *BOTH):
        raise UsageError(f"--only: expected inference or training, got {options.only!r}")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads: expected at least 1, got {options.threads}")
    if not 0 <= options.seconds < float("inf"):
        raise UsageError(f"--seconds: expected a time of at least 0, got {options.seconds:g}")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed: expected a number from 0 to 2^63 - 1, got {options.seed}")
    try:
        check_backend(options.backend)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if options.backend == "cuda":
        raise UsageError("--backend: expected an engine for the CPU, got 'cuda'")


def _plain(options: Options, cases: list[Case], sizes: tuple[Size, ...]) -> dict[str, Any]:
    return {
        "cells": [case.key for case in cases],
        "sizes": [size._asdict() for size in sizes],
        "dtype": options.dtype,
        "seconds": options.seconds,
        "modes": [options.only] if options.only else list(BOTH),
        "backend": options.backend,
        "seed": options.seed,
    }


def _case(
    bench: Bench, case: Case, sizes: tuple[Size, ...], how: Measure, console: Console
) -> None:
    with progress(console) as bars:
        bar = bars.add_task(case.key[:24], total=1 + len(sizes), note="")
        bench.first_use.append(
            {
                "key": case.key,
                "label": case.ours.label,
                **apart.first_use(case, how.dtype, how.backend),
            }
        )
        bars.advance(bar)
        for size in sizes:
            bench.rows += how.rows(case, size)
            bars.advance(bar)
