"""Products for the gradients of weights, ours beside torch's: python benchmarks/products.py.

It prints what `engine/cpu/outer.py` goes by, which leaves these products to torch on Intel's
processors.
"""

import random
import time
from itertools import product
from statistics import median

import torch

from flexrnn.engine.cpu import after, outer
from flexrnn.engine.cpu.outer import Outer
from flexrnn.lab.bench.results import machine

# Rows of a chunk, columns of the gates' gradients, of the input and of the state.
SIZES = [
    (100, 256, 32, 64),
    (100, 1024, 128, 256),
    (400, 1024, 128, 256),
    (533, 1024, 128, 256),
    (896, 512, 28, 128),
    (533, 2048, 256, 512),
    (533, 4096, 512, 1024),
]
TURNS = 60


def seconds(rows: int, gates: int, *columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Medians of each way, in turn. Torch gets narrow products turned over, as from the engine."""
    gradient, threads = torch.randn(rows, gates, dtype=dtype), torch.get_num_threads()
    others = [torch.randn(rows, n, dtype=dtype) for n in columns]
    totals = [gradient.new_empty(gates, n) for n in columns]
    ours = [Outer([[gradient]], [[other] for other in others], [totals], adds=False)]
    torchs: list[Outer] = []
    for other in others:
        turned = other.shape[1] < after._NARROW <= gates and rows >= after._LONG
        left, right = (other, gradient) if turned else (gradient, other)
        total = gradient.new_empty(left.shape[1], right.shape[1])
        torchs.append(Outer([[left]], [[right]], [[total]], adds=False))
    taken: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(TURNS):
        for way in random.sample([*taken], len(taken)):
            outer.is_faster = lambda way=way: way == "ours"
            products = ours if way == "ours" else torchs
            outer.multiply(products, threads)  # so that what was done before does not matter
            begin = time.perf_counter()
            outer.multiply(products, threads)
            taken[way].append(time.perf_counter() - begin)
    for total, other in zip(totals, torchs, strict=True):
        theirs = other.totals[0][0]
        theirs = theirs if theirs.shape == total.shape else theirs.T
        torch.testing.assert_close(total, theirs, rtol=1e-3, atol=1e-3)
    return {way: median(times) for way, times in taken.items()}


def main() -> None:
    """Print a line for each size."""
    about = machine()
    print(*(about[key] for key in ("processor", "isa", "threads", "torch", "date")), sep=", ")
    for (rows, gates, *columns), dtype in product(SIZES, (torch.float32, torch.float64)):
        found = seconds(rows, gates, *columns, dtype=dtype)
        work = 2e-9 * rows * gates * sum(columns)
        rates = ", ".join(f"{way} {work / time:.0f}" for way, time in found.items())
        ratio = found["ours"] / found["torch's"]
        shape = f"{dtype} {rows} x {gates} x {'+'.join(map(str, columns))}"
        print(f"{shape:36} GFLOP/s: {rates}; of the time {ratio:.2f}")


if __name__ == "__main__":
    main()
