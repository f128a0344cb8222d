"""How many threads a call of a loop has, and whether they share its rows or its units."""

from flexrnn.engine.cpu.build.isa import second_cache
from flexrnn.engine.cpu.emit import Shape
from flexrnn.engine.cpu.kernel import Kernel
from flexrnn.engine.cpu.plan import MANY_ROWS, Sizes, is_far

# Bytes of weights, times steps and rows, for which a second thread comes too late.
_LITTLE = 256 << 10
# Bytes of weights a stage, for which threads wait longer than they work.
_BRIEF = 48 << 10
# Bytes of weights above which threads of few rows share units instead of rows; those of many do so
# where weights are far away.
_CACHED = 4 << 20
_FULL = 4  # rows that take a core as long as one of them, for it waits for weights
_WORTH = 0.8  # of the time for rows of one's own: it makes up for meeting


def shares(kernel: Kernel, sizes: Sizes) -> tuple[int, bool]:
    """How many threads run a loop, and whether they share the units of all rows, not the rows.

    Args:
        kernel: the loop.
        sizes: of the call, with the threads that there are.
    """
    steps, batch, threads = sizes.steps, sizes.batch, sizes.threads
    there, read = kernel.weight_bytes, kernel.read_bytes
    if kernel.shape is Shape.FEW and steps * batch * read < _LITTLE:
        threads = 1
    brief = read < _BRIEF * len(kernel.loop.waits)
    if batch == 1 and brief:
        threads = 1
    few = batch < MANY_ROWS * threads
    far = (few and there > _CACHED) or is_far(there)
    thin = not brief and is_thin(batch, threads, kernel.tiles)
    spilt = not brief and is_spilt(batch, threads, kernel.tiles, there, len(kernel.loop.waits))
    return threads, threads > 1 and (batch < threads or far or thin or spilt)


def is_spilt(batch: int, threads: int, tiles: int, weights: int, meetings: int) -> bool:
    """Whether threads of few rows read weights that their own cache does not hold, at every step.

    Their shares of the weights may fit it, or are less to read. That pays where they meet once a
    step: where they meet twice, as on the way back, it took longer than it saved.

    Args:
        batch, threads, tiles: as in `is_thin`.
        weights: bytes.
        meetings: how often threads that share units wait for one another at a step.
    """
    few = -(-batch // threads) <= _FULL and _of_units(batch, threads, tiles) <= 1
    return few and meetings == 1 and 0 < second_cache() < weights


def is_thin(batch: int, threads: int, tiles: int) -> bool:
    """Whether threads with rows of their own have so few that they are sooner done sharing units.

    Args:
        batch: rows.
        threads: how many.
        tiles: of units, which threads share as a whole.
    """
    return _of_units(batch, threads, tiles) <= _WORTH


def _of_units(batch: int, threads: int, tiles: int) -> float:
    """The work of a thread that shares units, as part of its work with rows of its own."""
    rows = max(_FULL, -(-batch // threads))  # as it takes for all units
    units = max(_FULL, batch) * -(-tiles // threads) / tiles
    return units / rows
