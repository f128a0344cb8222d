"""Whether threads have a core each, without which times of several threads say little.

Some systems, guests above all, leave the threads of a new process on one core until they have
worked for a while, and put them there again when they have rested.
"""

import time

import torch

_WIDTH, _TIMES = 256, 8  # products of so wide matrices, as many at a time: less than a millisecond
_IN_A_ROW = 20  # times that they have to be quick


def side_by_side(seconds: float = 3.0) -> bool:
    """Work until every thread has a core.

    Args:
        seconds: how long to go on at most.

    Returns:
        Whether they have come to that; with one thread, they have.

    Example:
        >>> from flexrnn.lab.bench.cores import side_by_side
        >>> side_by_side(seconds=0.0) in (True, False)
        True
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return True
    matrix = torch.ones(_WIDTH, _WIDTH)
    torch.set_num_threads(1)
    try:
        alone = min(_seconds(matrix) for _ in range(_IN_A_ROW))
    finally:
        torch.set_num_threads(threads)
    enough = alone * (1 + 1 / threads) / 2  # half of what they could save
    quick, end = 0, time.perf_counter() + seconds
    while quick < _IN_A_ROW and time.perf_counter() < end:
        quick = quick + 1 if _seconds(matrix) < enough else 0
    return quick == _IN_A_ROW


def _seconds(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in range(_TIMES):
        torch.mm(matrix, matrix)
    return time.perf_counter() - began
