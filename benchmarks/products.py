"""Products for the gradients of weights, ours beside torch's: python benchmarks/products.py.

It prints what `engine/cpu/outer.py` goes by, which leaves these products to torch on Intel's
processors: nobody has run this on one yet.
"""

import random
import time
from statistics import median

import torch

from flexrnn.engine.cpu import outer
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
WAYS = {"ours": True, "torch's": False}
TURNS = 60


def seconds(rows: int, gates: int, *columns: int) -> dict[str, float]:
    """Medians of each way, in turn."""
    left, threads = torch.randn(rows, gates), torch.get_num_threads()
    rights = [[torch.randn(rows, n)] for n in columns]
    totals = {way: [torch.empty(gates, n) for n in columns] for way in WAYS}
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way in random.sample([*WAYS], len(WAYS)):
            outer.is_faster = lambda way=way: WAYS[way]
            product = outer.Outer([[left]], rights, [totals[way]], adds=False)
            outer.multiply([product], threads)  # so that what was done before does not matter
            begin = time.perf_counter()
            outer.multiply([product], threads)
            taken[way].append(time.perf_counter() - begin)
    torch.testing.assert_close(*totals.values(), rtol=1e-3, atol=1e-3)
    return {way: median(times) for way, times in taken.items()}


def main() -> None:
    """Print a line for each size."""
    about = machine()
    print(*(about[key] for key in ("processor", "isa", "threads", "torch", "date")), sep=", ")
    for rows, gates, *columns in SIZES:
        found = seconds(rows, gates, *columns)
        work = 2e-9 * rows * gates * sum(columns)
        rates = ", ".join(f"{way} {work / time:.0f}" for way, time in found.items())
        ratio = found["ours"] / found["torch's"]
        shape = f"{rows} x {gates} x {'+'.join(map(str, columns))}"
        print(f"{shape:22} GFLOP/s: {rates}; of the time {ratio:.2f}")


if __name__ == "__main__":
    main()
