"""LSTMs that multiply bfloat16 on a CPU, beside torch.nn.LSTM: python benchmarks/narrow.py.

In float32, where torch's switch lets ours multiply bfloat16, and in bfloat16. It prints the tables
of docs/performance.md: medians in turn, as ratios to `torch.nn.LSTM` in the same type; then
milliseconds of a training step in half types and under autocast, and of the reference engine's.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.lab.bench.cases import Contestant, Given
from flexrnn.lab.bench.clock import race
from flexrnn.lab.bench.results import machine
from flexrnn.lab.bench.run import SIZES

MODES = ("inference", "training")
ONE = (16, 100, 64, 128)  # the size of the second table
FARTHEST = 1e-2  # from the numbers in float64, in norm; rounding what is multiplied makes 1e-3


def contestant(label: str, build: Callable[[int, int], nn.Module], switch: str) -> Contestant:
    """A layer that runs with torch's switch set so."""

    def run(layer: Any, given: Given) -> tuple[list[Tensor], Any]:
        mkldnn: Any = torch.backends.mkldnn
        mkldnn.rnn.fp32_precision = switch
        output, state = layer(given.x)
        return [output], state

    return Contestant(label, build, run)


def ratios(dtype: torch.dtype, size: tuple[int, int, int, int], seconds: float) -> list[float]:
    """Of each mode, those of our layers; the first time is `torch.nn.LSTM`'s."""
    batch, steps, inputs, hidden = size
    contestants = [contestant("torch", nn.LSTM, "none"), contestant("ours", flexrnn.LSTM, "none")]
    if dtype == torch.float32:
        contestants.append(contestant("bf16", flexrnn.LSTM, "bf16"))
    torch.manual_seed(0)
    exact = nn.LSTM(inputs, hidden, dtype=torch.float64)
    given = Given(torch.randn(steps, batch, inputs).to(dtype))
    layers: list[tuple[Contestant, nn.Module]] = []
    with torch.no_grad():
        right = exact(given.x.double())[0]
        for who in contestants:
            layer = who.build(inputs, hidden)
            layer.load_state_dict(exact.state_dict())
            layer.to(dtype)
            far = (who.run(layer, given)[0][0] - right).norm() / right.norm()
            if far > FARTHEST:
                raise SystemExit(f"{who.label}: an error of {far:.2g} at {size} in {dtype}")
            layers.append((who, layer))
    found: list[float] = []
    for mode in MODES:
        theirs, *ours = (median(each.seconds) for each in race(layers, given, mode, seconds))
        found += [each / theirs for each in ours]
    return found


def by_type(kind: str, seconds: float) -> list[float]:
    """Milliseconds of a training step: ours, `torch.nn.LSTM`'s, and our reference's."""
    batch, steps, inputs, hidden = ONE
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)

    def run(layer: Any, given: Given) -> tuple[list[Tensor], Any]:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            output, state = layer(given.x)
        return [output.to(dtype)], state

    torch.manual_seed(0)
    layers: list[tuple[Contestant, nn.Module]] = []
    for label, layer in (
        ("ours", flexrnn.LSTM(inputs, hidden, dtype=dtype)),
        ("torch", nn.LSTM(inputs, hidden, dtype=dtype)),
        ("reference", flexrnn.LSTM(inputs, hidden, dtype=dtype, backend="reference")),
    ):
        layers.append((Contestant(label, nn.LSTM, run), layer))
    given = Given(torch.randn(steps, batch, inputs).to(dtype))
    return [1e3 * median(each.seconds) for each in race(layers, given, "training", seconds)]


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=1.0, help="for a row, type and mode")
    seconds = options.parse_args().seconds
    about = machine()
    print(about["processor"], about["isa"], torch.get_num_threads(), torch.__version__)
    print("| B × T × I × H | float32 | by bfloat16 | bfloat16 |")
    print("| --- | --- | --- | --- |")
    for size in SIZES:
        wide, narrow, wide_back, narrow_back = ratios(torch.float32, size, seconds)
        half, half_back = ratios(torch.bfloat16, size, seconds)
        pairs = ((wide, wide_back), (narrow, narrow_back), (half, half_back))
        cells = " | ".join(f"{there:.2f} / {back:.2f}" for there, back in pairs)
        print(f"| {' × '.join(map(str, size))} | {cells} |", flush=True)
    print("\n| | FlexRNN | torch.nn.LSTM | our reference |")
    print("| --- | --- | --- | --- |")
    mkldnn: Any = torch.backends.mkldnn
    mkldnn.rnn.fp32_precision = "none"
    for kind in ("bfloat16", "float16", "autocast"):
        times = " | ".join(f"{each:.1f}" for each in by_type(kind, 4 * seconds))
        print(f"| {kind} | {times} |", flush=True)


if __name__ == "__main__":
    main()
