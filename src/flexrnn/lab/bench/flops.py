"""How much of the machine is used: the arithmetic of products, counted; the peak, measured."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flexrnn
from flexrnn.engine.cpu.engine import DTYPES
from flexrnn.engine.cpu.outer import Outer, is_faster, multiply
from flexrnn.engine.step import CannotRunError
from flexrnn.lab.bench.cases import Case, Size

EDGES = (256, 512, 1024, 2048)  # of square matrices; the peak is the product of the largest ones
PEAK_SECONDS = 1.0


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of the best product of two large square matrices, on the threads that torch has.

    By torch or by our own library: on an AMD EPYC (Zen 5) torch's gets less than half of what the
    processor can do. Where torch has no fast product of a dtype, as of bfloat16 on older
    processors, smaller ones serve: as large as there is time for several.
    """
    edge, best = 0, float("inf")
    for edge in EDGES:
        best = _product(dtype, edge, 0)
        if 16 * best > PEAK_SECONDS:  # the next one takes eight times as long
            break
    return 2e-9 * edge**3 / min(best, _product(dtype, edge, PEAK_SECONDS))


def _product(dtype: torch.dtype, edge: int, seconds: float) -> float:
    """The seconds of the fastest of several products, one each way at least after a first one."""
    a, b, out = (torch.randn(edge, edge).to(dtype) for _ in range(3))
    ways: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
    if dtype in DTYPES and is_faster():
        product = Outer([[a.T]], [[b]], [[out]], adds=False)
        ways.append(lambda: multiply([product], torch.get_num_threads()))
    return min(_fastest(way, seconds / len(ways)) for way in ways)


def _fastest(run: Callable[[], object], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    with suppress(CannotRunError):  # our own library's: there is no compiler
        run()
        while True:
            start = time.perf_counter()
            run()
            now = time.perf_counter()
            best = min(best, now - start)
            if now > end:
                break
    return best


def count(case: Case, layer: nn.Module, size: Size, dtype: torch.dtype) -> dict[str, float]:
    """The operations of one run's matrix products, for each mode: a multiplication and an addition.

    Counted, not derived, as the reference does them: a sequence of two steps against one of one.
    What a cell computes element by element is not among them. Of one step, where runs are steps.

    Example:
        >>> import torch
        >>> from flexrnn.lab.bench.cases import Size, find
        >>> from flexrnn.lab.bench.flops import count
        >>> case, size = find("lstm"), Size(5, 7, 3, 4)
        >>> count(case, case.build(case.ours, size, torch.float32), size, torch.float32)
        {'inference': 7840.0, 'training': 22880.0}
    """
    found = {}
    for mode in case.modes:
        one, two = (_counted(case, layer, size._replace(steps=T), dtype, mode) for T in (1, 2))
        steps = 1 if case.stepwise else size.steps
        every = (two - one) / size.batch  # of a row and step
        rows = len(case.given(size, dtype).x) if case.packed else steps * size.batch
        found[mode] = one - every * size.batch + every * rows
    return found


def _counted(case: Case, layer: nn.Module, size: Size, dtype: torch.dtype, mode: str) -> int:
    """Of whole sequences: of packed ones of so few steps half of the rows may be gone."""
    x = torch.zeros(size.steps, size.batch, size.input, dtype=dtype, requires_grad=True)
    with (
        flexrnn.backend("reference"),
        torch.set_grad_enabled(mode == "training"),
        FlopCounterMode(display=False) as counter,
    ):
        output = layer(x)[0]
        if mode == "training":
            output.sum().backward()
    layer.zero_grad()
    return counter.get_total_flops()
