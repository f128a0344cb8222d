"""Tiers: the ways to launch a loop's kernels, and the table that says which one a call takes.

    sequence   all steps in one launch. A program owns rows of the batch, and no two programs wait
               for one another; weights come from the registers where they fit, else from the cache
    steps      one launch a stage and step, replayed as a CUDA graph. Programs share rows and units,
               so that many processors read the weights

Everything above sees `Tier` alone. A tier that keeps weights in a cluster of blocks, or in the
whole grid behind a barrier, is one more row.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from flexrnn.engine.cuda import graphs, kernels
from flexrnn.engine.cuda.calls import Call
from flexrnn.engine.cuda.emit import Source

# What a step costs, in microseconds. Estimates for an H100, from its data sheet and the literature:
# `benchmarks/gpu.py` measures each of them. Replace them by what it finds, here and nowhere else.
STAGE = 1.0  # a stage of `sequence`: loads that wait for one another, and a barrier
LAUNCH = 2.5  # a kernel of a replayed graph
PROCESSOR = 60e3  # bytes that one processor reads from the second cache in a microsecond
# What cuDNN's kernels cost, the engine `torch`, is not measured either. Until all of this is,
# `auto` takes neither of the two (`AUTO` in `engine/engines.py`): they run where they are named.


class Tier(NamedTuple):
    """A way to launch a loop."""

    name: str
    launch: Callable[[Source, Mapping[str, Tensor], Call], None]
    cost: Callable[[Source, Call], float]  # of a step, in microseconds


def choose(source: Source, call: Call) -> Tier:
    """The tier that costs the least."""
    return min(TIERS, key=lambda tier: tier.cost(source, call))


def _sequence(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    (kernel,) = source.sequence.kernels
    launch = kernels.module(source.sequence.text)[kernel.name][(call.rows,)]
    options = kernels.WHOLE if source.narrow else kernels.TILED
    given = (memory[name] for name in kernel.used)
    launch(call.steps, call.batch, call.layout, *given, **call.fixed, **options)


def _sequence_cost(source: Source, call: Call) -> float:
    waves = math.ceil(call.rows / call.processors)
    read = 0 if source.narrow else sum(source.weights) * call.itemsize
    return waves * (STAGE * len(source.parts) + read / PROCESSOR)


def _steps_cost(source: Source, call: Call) -> float:
    total = 0.0
    for kernel, weights in zip(source.steps.kernels, source.weights, strict=True):
        waves = math.ceil(call.rows * kernel.tiles / call.processors)
        total += LAUNCH + waves * weights * call.itemsize / kernel.tiles / PROCESSOR
    return total


TIERS = (
    Tier("sequence", _sequence, _sequence_cost),
    Tier("steps", graphs.launch, _steps_cost),
)
