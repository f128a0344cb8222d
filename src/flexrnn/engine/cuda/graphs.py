"""The tier `steps`: launches of one step, recorded as a CUDA graph of several and replayed.

A graph holds on to the arguments of its launches. So kernels are told by a table in the device's
memory where everything lies, and count steps from a number in it: one graph serves every T and
every tensor. Steps behind the last do nothing. Where the caller is recording a graph of its own,
kernels are launched directly and get their arguments by value, for a table could not be set anew.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.cuda import kernels
from flexrnn.engine.cuda.calls import Call
from flexrnn.engine.cuda.emit import Source
from flexrnn.engine.tables import trim

STEPS = 32  # of a graph
_KEPT = 64  # graphs


class _Graph(NamedTuple):
    replay: Callable[[], object]  # makes `STEPS` steps
    table: Tensor  # as the head of `source.py` lays it out


_graphs: dict[Any, _Graph] = {}
_one_at_a_time = threading.Lock()


def launch(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    """Make all steps."""
    device = next(iter(memory.values())).device
    (launch_by_value if is_recording(device) else launch_by_table)(source, memory, call)


def is_recording(device: torch.device) -> bool:
    """Whether the caller records a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def launch_by_value(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    """One launch after another."""
    module = kernels.module(source.steps.text)
    launches = [
        (module[kernel.name][(call.rows, kernel.tiles)], [memory[name] for name in kernel.used])
        for kernel in source.steps.kernels
    ]
    options = {**call.fixed, **kernels.of_step(call.itemsize)}
    for t in range(call.steps):
        for run, given in launches:
            run(t, call.steps, call.batch, call.layout, *given, **options)


def launch_by_table(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    """Recorded once, and replayed."""
    device = next(iter(memory.values())).device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (source.steps.text, device, stream, call.rows, *call.fixed.values())
    pointers = [memory[name].data_ptr() for name in source.steps.memory]
    layout = 0 if call.layout is None else call.layout.data_ptr()
    values = torch.tensor([call.steps, call.batch, 0, layout, *pointers])
    with _one_at_a_time:  # a stream's calls follow one another, so its table may be set again
        graph = _graphs.get(key)
        if graph is None:
            graph = _graphs[key] = _recorded(source, call, device, len(values))
            trim(_graphs, _KEPT)
        graph.table.copy_(values)
        for _ in range(0, call.steps, STEPS):
            graph.replay()


def _recorded(source: Source, call: Call, device: torch.device, size: int) -> _Graph:
    table = torch.zeros(size, dtype=torch.int64, device=device)  # of no steps, until it is set
    module = kernels.module(source.steps.text)
    launches = [module[f"replayed_{kernel.name}"][(call.rows, kernel.tiles)]
                for kernel in source.steps.kernels]  # fmt: skip
    options = {**call.fixed, **kernels.of_step(call.itemsize)}

    def steps(count: int) -> None:
        for ahead in range(count):
            for run in launches:
                run(table, ahead, **options)
        table[2] += count

    if device.type != "cuda":
        return _Graph(partial(steps, STEPS), table)
    steps(1)  # compiles, and does nothing else
    recording = torch.cuda.CUDAGraph()
    # Other threads may go on calling CUDA, as one does that pins a loader's memory.
    with torch.cuda.graph(recording, capture_error_mode="thread_local"):
        steps(STEPS)
    return _Graph(recording.replay, table)
