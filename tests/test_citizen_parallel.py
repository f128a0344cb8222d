"""Two Python threads on one layer, and two processes under DistributedDataParallel.

Run as a module, this file is one of the two processes.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import HiddenState, PeepholeLSTMCell
from flexrnn.engine.cpu.build import compiler

from .quickly import OPTIONS

I, H, B, T = 3, 5, 4, 6
PROCESSES = 2


class HoldingCell(flexrnn.Cell):
    """A cell that holds modules and a buffer."""

    State = HiddenState
    scale: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, bias=bias, device=device, dtype=dtype)
        self.register_buffer("scale", torch.rand(hidden_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.norm(self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(torch.tanh(self.scale * z))


LAYERS: dict[str, Callable[..., FlexRNN]] = {
    "LSTM": flexrnn.LSTM,
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "peephole": partial(FlexRNN, PeepholeLSTMCell),
    "a cell that holds modules": partial(FlexRNN, HoldingCell),
}


class Model(nn.Module):
    """A layer, twice as deep as it is simple, and a head; packs its input where told to."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.layer = LAYERS[name](I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
        self.head = nn.Linear(2 * H, 1, dtype=torch.float64)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return self.head(self.layer(packed)[0].data)
        return self.head(self.layer(x)[0])


def batch() -> tuple[Tensor, list[Tensor | None]]:
    """An input `(T, B, I)`; and no lengths, or lengths of which each half of the batch sums up to
    the same, so that the mean over all is the mean of the halves' means."""
    torch.manual_seed(1)
    lengths = torch.tensor([T, 2, 3, 5])
    assert lengths[:2].sum() == lengths[2:].sum()
    return torch.randn(T, B, I, dtype=torch.float64), [None, lengths]


def trained(model: nn.Module, rows: slice, lengths: Tensor | None) -> dict[str, Tensor]:
    """Gradients of three steps of gradient descent, and the weights after them."""
    x, _ = batch()
    results: dict[str, Tensor] = {}
    for step in range(3):
        model.zero_grad()
        model(x[:, rows], None if lengths is None else lengths[rows]).square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            results[f"gradient {step} of {name}"] = p.grad.clone()
            p.data -= 0.1 * p.grad
    return results | {name: p.detach().clone() for name, p in model.named_parameters()}


def process(rank: int, folder: Path) -> None:
    """One of the processes: the results of every layer, for its half of the batch, to a file."""
    torch.set_num_threads(1)
    compiler.OPTIONS = OPTIONS  # as in every test
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    share = B // PROCESSES
    rows, results = slice(rank * share, (rank + 1) * share), {}
    for name in LAYERS:
        for lengths in batch()[1]:
            model = DistributedDataParallel(Model(name))
            results[name, lengths is not None] = trained(model, rows, lengths)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Tensor]]]:
    """What each of two processes got, over gloo on the loopback device."""
    folder = tmp_path_factory.mktemp("ddp")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_citizen_parallel", str(rank), str(folder)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        for one in running:
            said, _ = one.communicate(timeout=90)
            assert one.returncode == 0, said
    finally:
        for one in running:
            one.kill()
            one.communicate()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_get_the_gradients_of_one(
    of_processes: list[dict[Any, dict[str, Tensor]]], name: str, packed: bool
) -> None:
    alone = trained(Model(name), slice(None), batch()[1][packed])
    for results in of_processes:
        together = {k.replace("module.", ""): v for k, v in results[name, packed].items()}
        torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-13)


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of the jobs, each in a thread of its own that starts when all are ready."""
    results: list[Any] = [None] * len(jobs)
    ready = threading.Barrier(len(jobs))

    def run(k: int) -> None:
        ready.wait(timeout=30)
        try:
            results[k] = jobs[k]()
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(jobs))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the threads meet inside calls
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(interval)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def results_of(layer: FlexRNN, x: Tensor, gradients: bool) -> list[Tensor]:
    """Outputs, states, streamed outputs and, where asked for, gradients; ten times over."""
    every: list[Tensor] = []
    for _ in range(10):
        with torch.set_grad_enabled(gradients):
            output, state = layer(x)
            streamed, _ = layer.step(x[0], state)
        every += [output, streamed, *([state] if isinstance(state, Tensor) else state)]
        if gradients:
            every += torch.autograd.grad(output.square().sum(), list(layer.parameters()))
    return [tensor.detach() for tensor in every]


@pytest.mark.parametrize("gradients", [(False, False), (True, True), (True, False)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_two_threads_on_one_layer_get_what_each_gets_alone(
    name: str, gradients: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](I, H, num_layers=2, dtype=torch.float64)
    inputs = list(torch.randn(2, T, B, I, dtype=torch.float64))
    jobs = [partial(results_of, layer, x, g) for x, g in zip(inputs, gradients, strict=True)]
    alone = [job() for job in jobs]
    together = in_threads([*jobs, *jobs])
    for result, expected in zip(together, alone * 2, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_two_threads_on_one_parametrized_layer_get_what_each_gets_alone() -> None:
    torch.manual_seed(0)
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    inputs = list(torch.randn(2, T, B, I, dtype=torch.float64))
    jobs = [partial(results_of, layer, x, True) for x in inputs]
    for result, expected in zip(in_threads(jobs), [job() for job in jobs], strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_backward_in_two_threads_accumulates_both_gradients() -> None:
    torch.manual_seed(0)
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    inputs = list(torch.randn(2, T, B, I, dtype=torch.float64))
    weights = list(layer.parameters())
    parts = [torch.autograd.grad(layer(x)[0].sum(), weights) for x in inputs]
    in_threads([lambda x=x: layer(x)[0].sum().backward() for x in inputs])
    summed = [a + b for a, b in zip(*parts, strict=True)]
    torch.testing.assert_close([w.grad for w in weights], summed, rtol=1e-12, atol=1e-13)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
