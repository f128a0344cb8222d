"""Products outside of loops, ours beside torch's: python benchmarks/products.py.

It prints what `engine/cpu/outer.py` goes by, which leaves these products to torch on Intel's
processors: those for the gradients of weights, and those of the input before a loop and for its
gradient behind one.
"""

import random
import time
from collections.abc import Sequence
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
    gradient = torch.randn(rows, gates, dtype=dtype)
    others = [torch.randn(rows, n, dtype=dtype) for n in columns]
    totals = [gradient.new_empty(gates, n) for n in columns]
    ours = [Outer([[gradient]], [[other] for other in others], [totals], adds=False)]
    torchs: list[Outer] = []
    for other in others:
        turned = other.shape[1] < after._THIN <= gates and rows >= after._LONG
        left, right = (other, gradient) if turned else (gradient, other)
        total = gradient.new_empty(left.shape[1], right.shape[1])
        torchs.append(Outer([[left]], [[right]], [[total]], adds=False))
    found = in_turn(ours, torchs)
    for total, other in zip(totals, torchs, strict=True):
        theirs = other.totals[0][0]
        theirs = theirs if theirs.shape == total.shape else theirs.T
        torch.testing.assert_close(total, theirs, rtol=1e-3, atol=1e-3)
    return found


def in_turn(ours: Sequence[Outer], torchs: Sequence[Outer]) -> dict[str, float]:
    """Medians of each way."""
    threads = torch.get_num_threads()
    taken: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(TURNS):
        for way in random.sample([*taken], len(taken)):
            outer.is_faster = lambda way=way: way == "ours"
            products = ours if way == "ours" else torchs
            outer.multiply(products, threads)  # so that what was done before does not matter
            begin = time.perf_counter()
            outer.multiply(products, threads)
            taken[way].append(time.perf_counter() - begin)
    return {way: median(times) for way, times in taken.items()}


def rows_seconds(rows: int, inner: int, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Medians of each way of a product of rows with a weight."""
    x, weight = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    if inner > columns:  # a gradient by the gates: the weight lies as it does in the way forward
        weight = torch.randn(inner, columns, dtype=dtype).T
    outs = [x.new_empty(rows, columns) for _ in range(2)]
    ours, torchs = ([Outer([[x.T]], [[weight.T]], [[out]], adds=False)] for out in outs)
    found = in_turn(ours, torchs)
    torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-3)
    return found


def main() -> None:
    """Print a line for each size."""
    about = machine()
    print(*(about[key] for key in ("processor", "isa", "threads", "torch", "date")), sep=", ")
    print("Gradients of weights: rows x gates x columns")
    for (rows, gates, *columns), dtype in product(SIZES, (torch.float32, torch.float64)):
        shape = f"{rows} x {gates} x {'+'.join(map(str, columns))}"
        told(shape, dtype, rows * gates * sum(columns), seconds(rows, gates, *columns, dtype=dtype))
    print("Of the input, and for its gradient: rows x inner x columns")
    for (rows, gates, columns, *_), dtype in product(SIZES, (torch.float32, torch.float64)):
        for inner, wide in ((columns, gates), (gates, columns)):
            found = rows_seconds(rows, inner, wide, dtype)
            told(f"{rows} x {inner} x {wide}", dtype, rows * inner * wide, found)


def told(shape: str, dtype: torch.dtype, multiplications: int, found: dict[str, float]) -> None:
    """Print a line."""
    rates = ", ".join(f"{way} {2e-9 * multiplications / time:.0f}" for way, time in found.items())
    ratio = found["ours"] / found["torch's"]
    print(
        f"{str(dtype).removeprefix('torch.')} {shape:22} GFLOP/s: {rates}; of the time {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
