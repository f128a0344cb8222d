"""What needs a new process: times, the peak memory of training, and how long a first call takes.

The child runs this file: `python -m flexrnn.lab.bench.apart TASK`, where TASK is JSON, and so is
the last line that it prints.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import flexrnn
from flexrnn.engine.cpu.pool import POOL
from flexrnn.lab.bench.cases import Case, Size, find
from flexrnn.lab.bench.clock import calls, race
from flexrnn.lab.bench.cores import side_by_side

SMALL = Size(4, 8, 32, 64)  # of a first call: what is compiled serves all sizes
_MODULE = "flexrnn.lab.bench.apart"


def times(
    case: Case, size: Size, mode: str, dtype: torch.dtype, backend: str, seconds: float, seed: int
) -> dict[str, Any]:
    """The times of all layers of a comparison, in turns: see `clock.race`.

    In a process that has done much before, the allocator keeps what a layer gives back; in a new
    one it goes back to the system, and the next run of a layer that allocates much pays for pages
    again. What a person's process does is between the two.

    Args:
        case: the comparison.
        size: the input's.
        mode: "inference" or "training".
        dtype: of everything.
        backend: ours; a rival's does not matter.
        seconds: how long to go on at most.
        seed: of weights and inputs.

    Returns:
        `{"times": [...], "side_by_side": ...}`: times as `clock.Times.summary` has them, ours
        first; and whether threads had a core each before and after. Or `{"why_not": ...}`.
    """
    return _child("times", case, size, dtype, backend, mode=mode, seconds=seconds, seed=seed)


def memory(case: Case, who: int, size: Size, dtype: torch.dtype, backend: str) -> dict[str, Any]:
    """Bytes by which a training step raises the memory of a process that has nothing else to do.

    Layer, input and the output's gradient are there before; the layer's buffers, what it keeps for
    the backward pass, output and gradients are counted.

    Args:
        case: the comparison.
        who: 0 for ours, k for the k-th rival.
        size: the input's.
        dtype: of everything.
        backend: ours; a rival's does not matter.

    Returns:
        `{"bytes": ...}`, or `{"why_not": ...}` where the system (Linux does) does not tell.
    """
    return _child("memory", case, size, dtype, backend, who=who)


def first_use(case: Case, dtype: torch.dtype, backend: str) -> dict[str, Any]:
    """Seconds of the first training step of a process beyond those of the second one.

    Returns:
        `{"empty": ..., "full": ...}`: where nothing has been compiled on this machine, and where
        another process has compiled it; or `{"why_not": ...}`.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="flexrnn-bench-") as folder:  # private
        for cache in ("empty", "full"):
            environment = {"FLEXRNN_CACHE_DIR": folder}
            said = _child("first", case, SMALL, dtype, backend, environment, mode=case.modes[-1])
            if "why_not" in said:
                return said
            found[cache] = said["seconds"]
    return found


def _child(
    task: str,
    case: Case,
    size: Size,
    dtype: torch.dtype,
    backend: str,
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    wanted = {
        "task": task,
        "case": case.key,
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "backend": backend,
        **more,
    }
    # It finds what this process finds: a cell of one's own, say.
    path = os.pathsep.join(filter(None, sys.path))
    child = subprocess.run(
        [sys.executable, "-m", _MODULE, json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    if child.returncode:
        said = child.stderr.strip().splitlines()
        return {"why_not": said[-1] if said else f"exit status {child.returncode}"}
    return json.loads(child.stdout.splitlines()[-1])


def _main(wanted: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(wanted["threads"])
    case, size = find(wanted["case"]), Size(*wanted["size"])
    dtype = getattr(torch, wanted["dtype"])
    with flexrnn.backend(wanted["backend"]):
        match wanted["task"]:
            case "times":
                return _timed(case, size, wanted["mode"], dtype, wanted["seconds"], wanted["seed"])
            case "memory":
                return _risen(case, wanted["who"], size, dtype)
            case _:
                return _begun(case, size, wanted["mode"], dtype)


def _timed(
    case: Case, size: Size, mode: str, dtype: torch.dtype, seconds: float, seed: int
) -> dict[str, Any]:
    layers = [(who, case.build(who, size, dtype, seed)) for who in (case.ours, *case.rivals)]
    steps = size.steps if case.stepwise else 1
    given, before = case.given(size, dtype, seed), side_by_side()
    found = race(layers, given, mode, seconds)
    times = [each.summary(steps) for each in found]
    return {"times": times, "side_by_side": before and side_by_side(0.2)}


def _begun(case: Case, size: Size, mode: str, dtype: torch.dtype) -> dict[str, Any]:
    prepare, run = calls(
        case.ours, case.build(case.ours, size, dtype), case.given(size, dtype), mode
    )
    seconds = []
    for _ in range(2):
        prepare()
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return {"seconds": max(0.0, seconds[0] - seconds[1])}


def _risen(case: Case, who: int, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    contestant = (case.ours, *case.rivals)[who]
    layer = case.build(contestant, size, dtype)
    prepare, run = calls(contestant, layer, case.given(size, dtype), "training")
    # Load, compile and lay out everything, and then give back what our layers keep for a next step.
    for step in (prepare, run, prepare, run, prepare):
        step()
    POOL.clear()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts anew
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    except (OSError, AttributeError) as error:
        return {"why_not": f"the system does not tell: {error}"}
    before = _status("VmRSS")
    for _ in range(2):
        prepare()
        run()
    return {"bytes": _status("VmHWM") - before}


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, text
    return 1024 * int(found[1])


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
