"""How long does it take? Interleaved medians, and the matrix products of one step, counted."""

import gc
import random
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import flexrnn
from flexrnn.lab.results import Speed
from flexrnn.lab.table import Entry

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul"}

ROUNDS = 40
FEWEST_ROUNDS = 5
SECONDS = 7.0  # for one size; fewer rounds where these are up


def sizes(batch: int, seq: int, hidden: int) -> list[dict[str, int]]:
    """The sizes to measure: as trained, one sequence alone, and a narrower and a wider layer.

    Example:
        >>> from flexrnn.lab.speed import sizes
        >>> sizes(32, 64, 128)[0]
        {'batch': 1, 'seq': 64, 'hidden': 128}
    """
    chosen = [(1, hidden), (batch, max(1, hidden // 4)), (batch, hidden), (batch, 2 * hidden)]
    # dict.fromkeys: with --batch 1 two of them are the same
    return [{"batch": B, "seq": seq, "hidden": H} for B, H in dict.fromkeys(chosen)]


class _Counter(TorchDispatchMode):
    """Counts the matrix products that reach torch's kernels."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in PRODUCTS
        return func(*args, **(kwargs or {}))


def count_products(layer: nn.Module, input_size: int) -> tuple[int, int]:
    """Matrix products of one more time step, and those done once whatever the length.

    Of a layer that runs compiled they are its program's. Of any other they are counted, not
    derived: a sequence of two steps against one of one. oneDNN, which runs `nn.LSTM` on the CPU,
    hides its products in one kernel; it is off while counting, so that `nn.LSTM` shows what torch
    does without it: one product a step, and one for the inputs of all steps together.

    Example:
        >>> import flexrnn
        >>> from flexrnn.fromscratch import NaiveCustomLSTM
        >>> from flexrnn.lab.speed import count_products
        >>> count_products(NaiveCustomLSTM(3, 4), 3)
        (8, 0)
    """
    dtype = next((parameter.dtype for parameter in layer.parameters()), torch.get_default_dtype())
    if isinstance(layer, flexrnn.FlexRNN):
        (found,) = flexrnn.explain(layer, torch.zeros(2, 2, input_size, dtype=dtype)).steps
        if found.program is not None and found.engine != "reference":
            graph, plan = found.program
            loop, once = (
                sum(graph.nodes[i].op == "product" for i in part)
                for part in (plan.loop, plan.hoisted)
            )
            return loop, once

    def products(T: int) -> int:
        with torch.no_grad(), _Counter() as counter:
            layer(torch.zeros(2, T, input_size, dtype=dtype))
        return counter.count

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: about Intel GPUs, when switching back
        with torch.backends.mkldnn.flags(enabled=False):
            one, two = products(1), products(2)
    return two - one, one - (two - one)


def measure(
    entries: list[Entry],
    size: dict[str, int],
    rows: list[Speed],
    seed: int = 0,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Iterator[int]:
    """Time all cells once a round, so that what disturbs one disturbs all.

    Their order is drawn anew for every round: what ran just before leaves caches and clock as it
    pleases, and in one order it would always please the same cell.

    A generator: it yields the number of every completed round. Whoever stops early keeps the
    rounds that are complete; they are in `rows`, to which one row a cell is added at once.

    Args:
        entries: the cells.
        size: `batch`, `seq` and `hidden`; the input is as wide as the hidden state.
        rows: where the times go.
        seed: of weights, input and order.
        rounds: how many; fewer, but at least five, where `seconds` are up.
        seconds: how long to go on at most.
    """
    B, T, H = size["batch"], size["seq"], size["hidden"]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, H, generator=generator)
    gradient = torch.randn(B, T, H, generator=generator)
    torch.manual_seed(seed)
    layers = [entry.build(H, H) for entry in entries]
    counts = [count_products(layer, H) for layer in layers]
    found = [
        Speed(entry.key, entry.label, size, *count)
        for entry, count in zip(entries, counts, strict=True)
    ]
    rows.extend(found)
    for layer in layers:  # warm-up: the first call builds what the later ones reuse
        for _ in range(2):
            _forward(layer, x)()
            _training(layer, x, gradient)()

    order, began = random.Random(seed), time.perf_counter()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for n in range(rounds):
            times: dict[int, tuple[float, float]] = {}
            for turn in order.sample(range(len(layers)), len(layers)):
                layer = layers[turn]
                times[turn] = (_time(_forward(layer, x)), _time(_training(layer, x, gradient)))
            for turn, (forward, training) in times.items():
                found[turn].forward.append(forward)
                found[turn].training.append(training)
            yield n + 1
            if n + 1 >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
                break
    finally:
        if enabled:
            gc.enable()


def _forward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """The call that only wants the output: no gradient is kept for."""

    def call() -> None:
        with torch.no_grad():
            layer(x)

    return call


def _training(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Forward and backward, with the gradient of x as any layer but the first must give it."""

    def call() -> None:
        layer.zero_grad()
        layer(x.detach().requires_grad_())[0].backward(gradient)

    return call


def _time(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3  # ms
