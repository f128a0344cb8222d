"""Tiers: the ways to launch a loop's kernels, and the table that says which one a call takes.

    sequence   all steps in one launch. A program owns rows of the batch, and no two programs wait
               for one another; weights stay on its processor where they fit, else they come from
               the cache
    grid       all steps in one launch. Programs share rows and units; each keeps the weights of its
               units on its processor, and they meet where one reads what others wrote
    steps      one launch a stage and step, replayed as a CUDA graph. Programs share rows and units,
               so that many processors read the weights

Everything above sees `Tier` alone. One that keeps weights in a cluster of blocks is one more row.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.cuda import graphs, kernels
from flexrnn.engine.cuda.calls import ROWS, Call
from flexrnn.engine.cuda.emit import WIDTHS, Source, on_their_way
from flexrnn.engine.cuda.written import Written
from flexrnn.engine.step import CannotRunError
from flexrnn.engine.tables import trim

# What a step costs, in microseconds, fitted by hand to what was measured on an H200: see
# `benchmarks/results`. What bytes of weights cost includes their products with 16 rows. `PROGRAM`
# and `PART` are small beside all else: they are set so that what was quicker is taken at a tie. Of
# `grid`, it was measured before warps shared out columns that all of them had multiplied.
STAGE = 1.0  # a tile of `sequence`: loads that wait for one another, and a barrier
SEQUENCE = 25e3  # bytes of weights in a microsecond, of one program of `sequence`
LAUNCH = 4.5  # a kernel of a replayed graph, with everything that it waits for
PROGRAM = 0.3  # of `steps`, each time that the processors are full
STEP = 16e3  # bytes of weights in a microsecond, of one program of `steps`
CACHE = 1.6e6  # and of all programs together
MEETING = 1.8  # a meeting of all programs of `grid`, with what they wait for around it
GRID = 38e3  # bytes of weights in a microsecond, of `grid`, with the matrix units
EXACT = 15e3  # and without them: float32 and float64
PART = 0.3  # a stage of `grid` beside that
MORE = 0.25  # of the cost of 16 rows, what 16 more cost with the matrix units

_KEPT = 256  # choices of a loop
_BESIDE = 4 << 10  # bytes of shared memory that a program of `grid` wants for this and that
_MUCH = 64 << 10  # of weights that it keeps: beyond, 32 rows, or products without matrix units,
# want more registers than there are. With half types this was measured while h was float32 in
# memory and changed in registers, of which 4 KB were spilled; an LSTM's of 1024 units no longer are
_TILE = 2048  # rows times units of a tile of `steps`, beyond which it is the same


class Tier(NamedTuple):
    """A way to launch a loop."""

    name: str
    launch: Callable[[Source, Mapping[str, Tensor], Call], None]
    cost: Callable[[Source, Call], float]  # of a step, in microseconds; infinite: it cannot


class Choice(NamedTuple):
    """How a loop is launched."""

    tier: Tier
    widest: int  # units of a tile
    even: bool
    call: Call  # with the rows of a tile

    @property
    def name(self) -> Hashable:
        """What tells it from others."""
        return self.tier.name, self.widest, self.even, self.call.tall, self.call.precision


def choose(loop: Written, call: Call) -> Choice:
    """The tier, the units and the rows of tiles that cost the least.

    Raises:
        CannotRunError: a card has room for none.
    """
    rows = (min(call.batch, ROWS[-1] * call.processors), call.processors, call.shared)
    key = (TIERS, *rows, call.precision)
    if key not in loop.chosen:
        found = [
            Choice(tier, widest, even, call._replace(tall=tall, layout=None))
            for tier in TIERS
            for widest in WIDTHS
            for even in (False, True)
            for tall in ROWS
        ]
        fits = [choice for choice in found if choice.name not in loop.refused]
        if not fits:
            raise CannotRunError("this card has room for no kernel of the cuda engine's")
        loop.chosen[key] = min(fits, key=lambda c: c.tier.cost(_source(loop, c), c.call))
        trim(loop.chosen, _KEPT)
    chosen: Choice = loop.chosen[key]
    return chosen._replace(call=call._replace(tall=chosen.call.tall))


def _source(loop: Written, choice: Choice) -> Source:
    return loop.source(choice.widest, even=choice.even)


def run(loop: Written, call: Call, memory: Callable[[Source], Mapping[str, Tensor]]) -> None:
    """Launch a loop; where a card has no room for a kernel, the next best one.

    Args:
        loop: the loop.
        call: of it.
        memory: makes what the kernels of a source are given.

    Raises:
        CannotRunError: a card has room for none.
    """
    while True:
        choice = choose(loop, call)
        source = _source(loop, choice)
        given = memory(source)
        if not call.batch:
            return
        try:
            choice.tier.launch(source, given, choice.call)
        except Exception as error:
            if not kernels.does_not_fit(error):
                raise
            loop.refused.add(choice.name)
            loop.chosen.clear()
        else:
            return


def _taller(call: Call) -> float:
    """What a product costs with the rows of the call's tiles, beside one with the fewest.

    Matrix units multiply while weights are read; without them, products are all that counts.
    """
    times = call.tall / ROWS[0]
    return 1 + (times - 1) * MORE if _is_quick(call) else times


def _is_quick(call: Call) -> bool:
    return call.itemsize == 2 or call.precision == "tf32"


def _sequence(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    (kernel,) = source.sequence.kernels
    launch = kernels.module(source.sequence.text)[kernel.name][(call.rows,)]
    options = kernels.WHOLE if source.narrow else kernels.TILED
    given = (memory[name] for name in kernel.used)
    launch(call.steps, call.batch, call.layout, *given, **call.fixed, **options)


def _sequence_cost(source: Source, call: Call) -> float:
    if source.narrow and call.tall > ROWS[0]:
        return math.inf  # a program's registers hold no more rows
    waves = math.ceil(call.rows / call.processors)
    weights = sum(source.weights) * call.itemsize
    read = max(
        weights / SEQUENCE * _taller(call), min(call.rows, call.processors) * weights / CACHE
    )
    return waves * (STAGE * sum(source.parts) + read)


def _grid(source: Source, memory: Mapping[str, Tensor], call: Call) -> None:
    grid = source.grid
    launch = kernels.module(grid.text)["grid"][(call.rows, grid.programs)]
    device = next(iter(memory.values())).device
    meeting = torch.zeros(16 * call.rows, dtype=torch.int64, device=device)
    given = (call.steps, call.batch, call.layout, meeting, *(memory[n] for n in grid.used))
    how = kernels.resident(call, len(source.parts))
    options = {**call.fixed, **how, "WARPS": how["num_warps"]}
    if not kernels.interpreted():
        launch(0, call.steps, *given, **options, STAGE=-1, launch_cooperative_grid=True)
        return
    for t in range(call.steps):  # programs run one after another, and cannot meet
        for stage in range(len(source.parts)):
            launch(t, t + 1, *given, **options, STAGE=stage)


def _grid_cost(source: Source, call: Call) -> float:
    held = source.grid.held * call.itemsize
    most = call.shared - _BESIDE - on_their_way(call.itemsize) * call.tall
    if call.tall > ROWS[0] or (call.itemsize == 4 and not _is_quick(call)):
        most = min(most, _MUCH)
    if call.rows * source.grid.programs > call.processors or held > most:
        return math.inf
    read = held / (GRID if _is_quick(call) else EXACT) * _taller(call)
    # One program meets nobody; but how much sooner it is done has not been measured.
    return MEETING * max(1, source.grid.meetings) + PART * len(source.parts) + read


def _steps_cost(source: Source, call: Call) -> float:
    total = 0.0
    for kernel, tile, weights in zip(
        source.steps.kernels, source.tiles, source.weights, strict=True
    ):
        if call.tall > ROWS[0] and call.tall * tile.units > _TILE:
            return math.inf
        waves = max(1, call.rows * kernel.tiles / call.processors)
        read = waves * weights * call.itemsize / kernel.tiles / STEP * _taller(call)
        read = max(read, call.rows * weights * call.itemsize / CACHE)
        total += LAUNCH + PROGRAM * waves + read
    return total


TIERS = (
    Tier("sequence", _sequence, _sequence_cost),
    Tier("grid", _grid, _grid_cost),
    Tier("steps", graphs.launch, _steps_cost),
)
