"""How fast layers are on this CPU, as ratios to torch's: `python benchmarks/cpu.py [--only lstm]`.

Each pair takes turns in one process, on as many threads as torch has; numbers are medians. What is
not right is not timed: every layer's output and gradients are compared with the reference first.
Prints a table and writes `benchmarks/results/cpu.json`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import flexrnn

SIZES = [  # B, T, I, H
    (1, 100, 32, 64),
    (1, 100, 128, 256),
    (8, 100, 128, 256),
    (32, 100, 128, 256),
    (64, 50, 256, 512),
    (16, 200, 512, 1024),
    (128, 28, 28, 128),
    (1, 1000, 64, 512),
]
PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "lstm": (flexrnn.LSTM, nn.LSTM),
    "naive": (flexrnn.NaiveLSTM, nn.LSTM),
    "peephole": (flexrnn.PeepholeLSTM, nn.LSTM),
    "layer-norm": (flexrnn.LayerNormLSTM, nn.LSTM),
    "gru": (flexrnn.GRU, nn.GRU),
    "rnn": (flexrnn.RNN, nn.RNN),
    "projection": (
        lambda wide, hidden: flexrnn.LSTM(wide, hidden, proj_size=hidden // 2),
        lambda wide, hidden: nn.LSTM(wide, hidden, proj_size=hidden // 2),
    ),
    "packed": (flexrnn.LSTM, nn.LSTM),
}
SECONDS = 3.0  # of one pair in one mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PAIRS, nargs="*", default=list(PAIRS))
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu.json")
    options = parser.parse_args()
    machine = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "flexrnn": flexrnn.__version__,
    }
    print(*machine.values(), sep=", ")
    rows = []
    for name in options.only:
        for k in options.sizes:
            rows.append(row := {"layer": name, "size": SIZES[k], **measured(name, *SIZES[k])})
            (i, x), (j, y) = row["inference"], row["training"]
            print(
                f"{name:11} B T I H {SIZES[k]!s:20} inference {i:8.2f} ms, {x:4.2f} of torch's; "
                f"training {j:8.2f} ms, {y:4.2f}",
                flush=True,
            )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())


def measured(
    name: str, batch: int, steps: int, wide: int, hidden: int
) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    ours, theirs = (make(wide, hidden) for make in PAIRS[name])
    x = torch.randn(steps, batch, wide)
    lengths = torch.linspace(steps, steps // 2, batch).long()

    def given(x: Tensor) -> Any:
        return pack_padded_sequence(x, lengths) if name == "packed" else x

    check(ours, given(x))

    def inference(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(given(x))

    learned = x.clone().requires_grad_()

    def training(layer: nn.Module) -> None:
        output = layer(given(learned))[0]
        (output.data if name == "packed" else output).sum().backward()

    return {run.__name__: pair(run, ours, theirs) for run in (inference, training)}


def check(layer: nn.Module, x: Any) -> None:
    """Refuse to time what is not right."""
    found = []
    for backend in ("cpu", "reference"):
        with flexrnn.backend(backend):
            output = layer(x)[0]
        output = output if isinstance(output, Tensor) else output.data
        found.append([output, *torch.autograd.grad(output.square().mean(), [*layer.parameters()])])
    for ours, right in zip(*found, strict=True):
        error = (ours - right).norm() / right.norm()
        if not error < 1e-4:
            raise SystemExit(f"wrong by {error:.1e}: nothing is timed")


def pair(run: Callable[[nn.Module], None], ours: nn.Module, theirs: nn.Module) -> Any:
    """Milliseconds of ours, and the ratio to theirs: medians."""
    for layer in (ours, theirs, ours, theirs):
        run(layer)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    while len(times[0]) < 7 or (time.perf_counter() < end and len(times[0]) < 400):
        for layer, found in ((ours, times[0]), (theirs, times[1])):
            start = time.perf_counter()
            run(layer)
            found.append(time.perf_counter() - start)
    mine, torchs = map(statistics.median, times)
    return 1e3 * mine, mine / torchs


if __name__ == "__main__":
    main()
