# pyright: basic, reportIndexIssue=false, reportGeneralTypeIssues=false
# Triton reads the kernels.
"""What the parts of a design cost on a card, and what the card can do at most."""

import statistics
from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from clock import TURNS, milliseconds


@triton.jit
def nothing(p):
    """Cost what a launch costs."""
    tl.store(p, 0)


@triton.jit
def meet(p, STEPS: tl.constexpr):
    """Let each program wait until all have come, STEPS times."""
    for k in range(STEPS):
        tl.debug_barrier()
        tl.atomic_add(p, 1)
        while tl.atomic_add(p, 0) < (k + 1) * tl.num_programs(0):
            pass
        tl.debug_barrier()


def _median(run: Callable[[], object]) -> float:
    run()
    device = torch.device("cuda")
    return statistics.median(milliseconds(run, device) for _ in range(TURNS))  # pyright: ignore


def microseconds() -> dict[str, float]:
    """Of each part. A barrier of a cluster of blocks, which Triton does not have, is not there."""
    p = torch.zeros(1, dtype=torch.int32, device="cuda")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    nothing[(1,)](p)
    several, one = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(several):
        for _ in range(100):
            nothing[(processors,)](p)
    with torch.cuda.graph(one):
        nothing[(1,)](p)

    def barriers() -> None:
        p.zero_()
        meet[(processors,)](p, STEPS=100)

    return {
        "a kernel of a replayed graph": 10 * _median(several.replay),
        "a replay of a graph of one kernel": 1e3 * _median(one.replay),
        "a barrier of all processors": 10 * _median(barriers),
    }


def peaks(dtypes: Mapping[str, torch.dtype]) -> dict[str, float]:
    """Multiplications and additions a second of large products; bytes a second of a copy."""
    found, n = {}, 8192
    for name, dtype in dtypes.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a = torch.randn(n, n, device="cuda", dtype=dtype)
        found[name] = 2.0 * n**3 / (_median(lambda: a @ a) / 1e3)  # noqa: B023
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    found["bandwidth"] = 2 * source.numel() / (_median(lambda: target.copy_(source)) / 1e3)
    return found
