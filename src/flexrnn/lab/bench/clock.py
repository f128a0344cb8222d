"""Times of several layers that take turns in one process, and the page faults of every run."""

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from flexrnn.lab.bench.cases import Contestant, Given

try:
    import resource
except ImportError:  # not a Unix
    resource = None

WARM_UP = 3
FEWEST = 5
MOST = 1000


@dataclass
class Times:
    """Of one layer: seconds and minor page faults of every run."""

    label: str
    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)

    def summary(self, steps: int = 1) -> dict[str, Any]:
        """Medians; of one step, where a run has several of them.

        Example:
            >>> from flexrnn.lab.bench.clock import Times
            >>> Times("a", [0.001, 0.003, 0.002], [4, 0, 0]).summary()["median_ms"]
            2.0
        """
        ms = [1e3 * seconds / steps for seconds in self.seconds]
        low, _, high = quantiles(ms, n=4)
        return {
            "label": self.label,
            "median_ms": median(ms),
            "quartiles_ms": [low, high],
            "runs": len(ms),
            "page_faults": median(self.faults) / steps if self.faults else None,
        }


def race(
    contestants: list[tuple[Contestant, nn.Module]], given: Given, mode: str, seconds: float
) -> list[Times]:
    """Time all layers once a round, so that what disturbs one disturbs all.

    Their order is drawn anew for every round: what ran just before leaves caches and clock as it
    pleases, and in one order it would always please the same layer.

    Args:
        contestants: each with its layer.
        given: what they read.
        mode: "inference", without gradients; or "training", forward and backward with the
            gradients of x and of all weights, from a random gradient of the output.
        seconds: how long to go on at most; every layer has at least `FEWEST` runs.
    """
    turns = [calls(who, layer, given, mode) for who, layer in contestants]
    found = [Times(who.label) for who, _ in contestants]
    for _ in range(WARM_UP):
        for prepare, call in turns:
            prepare()
            call()
    order, end = random.Random(0), time.perf_counter() + seconds
    enabled = gc.isenabled()
    gc.disable()
    try:
        for n in range(MOST):
            for turn in order.sample(range(len(turns)), len(turns)):
                prepare, call = turns[turn]
                prepare()
                faults = _faults()
                began = time.perf_counter()
                call()
                found[turn].seconds.append(time.perf_counter() - began)
                if faults is not None:
                    found[turn].faults.append((_faults() or 0) - faults)
            if n + 1 >= FEWEST and time.perf_counter() > end:
                break
    finally:
        if enabled:
            gc.enable()
    return found


def calls(
    who: Contestant, layer: nn.Module, given: Given, mode: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """What is done before a run, and the run. No whole run is done yet."""
    if mode == "inference":
        layer.eval()

        def infer() -> None:
            with torch.no_grad():
                who.run(layer, given)

        return _nothing, infer

    layer.train()
    x = given.x.detach().clone().requires_grad_()
    learned = given._replace(x=x)
    with torch.no_grad():
        width = layer(x.new_zeros(1, 1, x.shape[-1]))[0].shape[-1]
    gradient = torch.randn(*x.shape[:-1], width).to(x.dtype)

    def forget() -> None:
        layer.zero_grad()
        x.grad = None

    def train() -> None:
        outputs: list[Tensor] = who.run(layer, learned)[0]
        outputs[0].backward(gradient)

    return forget, train


def _nothing() -> None:
    pass


def _faults() -> int | None:
    """Minor ones of this process until now: pages that the kernel had to provide."""
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
