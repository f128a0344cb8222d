"""How long a device is busy."""

import time
from collections.abc import Callable

import torch

TURNS = 15


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """How long the device is busy with it."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)
