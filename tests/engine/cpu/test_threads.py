"""Threads: how many, the same bits from as many, several callers at once, and what fork leaves."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import kernel, plan, shares
from flexrnn.engine.cpu.build.isa import machine
from flexrnn.engine.cpu.emit import Shape
from flexrnn.engine.cpu.shares import is_spilt, is_thin

Threads = Callable[[int], Any]
Results = Callable[..., dict[str, Tensor]]

# Determinism

SHARED: dict[str, tuple[Any, tuple[int, int, int, int]]] = {  # T, B, I, H
    "units, one row": (cells.LSTMCell, (10, 1, 5, 37)),
    "rows": (cells.LSTMCell, (10, 13, 5, 37)),
    "sums over all units": (cells.LayerNormLSTMCell, (10, 1, 5, 37)),
    "sums over the rows' units": (cells.LayerNormLSTMCell, (10, 7, 5, 37)),
    "units, weights above 4 MiB": (cells.LSTMCell, (3, 9, 40, 530)),
    "units, few rows": (cells.LSTMCell, (10, 3, 40, 53)),
    "units, weights read in place": (cells.LSTMCell, (2, 3, 40, 530)),
    "units and sums, weights above 4 MiB": (cells.LayerNormLSTMCell, (3, 9, 40, 530)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_of_rows_have_no_copies_of_them(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Only those that share units write the same rows, each for itself."""
    found: dict[int, int] = {}
    launch = kernel.Kernel.launch

    def noted(self: kernel.Kernel, rows: Any, weights: Any, area: kernel.Area, **sizes: Any) -> Any:
        made = launch(self, rows, weights, area, **sizes)
        found[torch.get_num_threads()] = area.size
        return made

    monkeypatch.setattr(kernel.Kernel, "launch", noted)
    layer, x = flexrnn.LayerNormLSTM(5, 37, dtype=dtype), torch.randn(10, 13, 5, dtype=dtype)
    for count in (1, 2, 3):  # these share units
        with threads(count), torch.no_grad():
            layer(x)
    assert found[1] == found[2] < found[3]


@pytest.mark.parametrize("name", SHARED)
def test_the_same_input_gives_the_same_bits(threads: Threads, results: Results, name: str) -> None:
    cell, (T, B, I, H) = SHARED[name]
    layer, x = flexrnn.FlexRNN(cell, I, H), torch.randn(T, B, I, requires_grad=True)
    reference = results(layer, "reference", x)
    for count in (1, 2, 3):
        with threads(count):
            first, *others = (results(layer, "cpu", x) for _ in range(4))
        for other in others:
            for tensor in first:
                assert torch.equal(first[tensor], other[tensor]), tensor
        for tensor, right in reference.items():  # another number of threads: other rounding alone
            error = (first[tensor] - right).norm() / right.norm()
            assert error < 1e-5, f"{tensor}, {count} threads: {error:.3g}"


LATE = {
    "threads wait for nobody": ("Team::LONG);", "0);"),
    "one thread does it all": ("alone->now(begun)", "true"),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("name", SHARED)
def test_who_does_a_share_changes_no_bit(
    threads: Threads,
    results: Results,
    changed: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    late: str,
) -> None:
    cell, (T, B, I, H) = SHARED[name]
    layer, x = flexrnn.FlexRNN(cell, I, H), torch.randn(T, B, I, requires_grad=True)
    lengths = torch.arange(B) % T + 1  # where one thread puts aside the last states
    library, planted = changed(*LATE[late])
    for count in (2, 3):
        with threads(count):
            for given in ({}, {"lengths": lengths}):
                expected = results(layer, "cpu", x, **given)
                with monkeypatch.context() as patch:
                    patch.setattr(plan, "_known", WeakKeyDictionary())
                    patch.setattr(kernel, "library", library)
                    for _ in range(3):
                        found = results(layer, "cpu", x, **given)
                        for tensor in expected:
                            assert torch.equal(expected[tensor], found[tensor]), tensor
    assert planted
    assert all(planted)


# What they share


@pytest.mark.parametrize(
    ("batch", "threads", "tiles", "expected"),
    [
        (6, 2, 32, True),  # three rows each take as long as four
        (7, 2, 32, False),  # seven take nearly as long as twice four
        (64, 2, 32, False),
        (48, 16, 32, True),
        (48, 16, 20, False),  # most of them would wait for those with two tiles
        (2, 2, 1, False),  # nothing can be shared
        (5, 1, 8, False),
    ],
)
def test_threads_of_few_rows_share_units(
    batch: int, threads: int, tiles: int, expected: bool
) -> None:
    assert is_thin(batch, threads, tiles) is expected


@pytest.mark.parametrize(
    ("batch", "count", "weights", "meetings", "cache", "expected"),
    [
        (8, 2, 1001, 1, 1000, True),
        (8, 2, 1000, 1, 1000, False),
        (9, 2, 1001, 1, 1000, False),  # five rows take a thread longer than waiting for weights
        (8, 2, 1001, 2, 1000, False),
        (8, 2, 1001, 1, 0, False),  # nobody knows
        (64, 16, 1001, 1, 1000, True),
        (128, 32, 1001, 1, 1000, False),  # half of the threads would have no unit
        (24, 6, 1001, 1, 1000, False),  # some of six would have three tiles of sixteen
    ],
)
def test_threads_of_few_rows_share_units_of_weights_that_their_caches_do_not_hold(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    count: int,
    weights: int,
    meetings: int,
    cache: int,
    expected: bool,
) -> None:
    monkeypatch.setattr(shares, "second_cache", lambda: cache)
    assert is_spilt(batch, count, 16, weights, meetings) is expected


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every loop that is laid out, whether threads share units."""
    found: list[bool] = []
    launch = kernel.Kernel.launch

    def noted(self: kernel.Kernel, *args: Any, **options: Any) -> Any:
        found.append(options["across"])
        return launch(self, *args, **options)

    monkeypatch.setattr(kernel.Kernel, "launch", noted)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    return found


@pytest.mark.parametrize(
    ("batch", "missing", "expected"), [(8, 1, True), (8, 0, False), (9, 1, False)]
)
def test_the_way_forward_alone_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
    threads: Threads,
    told: list[bool],
    batch: int,
    missing: int,
    expected: bool,
) -> None:
    """`missing` is how many bytes a cache is too small."""
    monkeypatch.setattr(shares, "second_cache", lambda: 4 * 64 * 67 * 4 - missing)
    layer = flexrnn.LSTM(3, 64, backend="cpu")
    with threads(2):
        layer(torch.randn(9, batch, 3))[0].sum().backward()
    assert told == [expected, False]


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("shape", [Shape.ROWS, Shape.FEW])
def test_what_a_loop_is_told(
    monkeypatch: pytest.MonkeyPatch, threads: Threads, told: list[bool], thin: bool, shape: Shape
) -> None:
    asked: list[tuple[int, ...]] = []

    def asked_for(*args: int) -> bool:
        asked.append(args)
        return thin

    monkeypatch.setattr(shares, "is_thin", asked_for)
    layer, lanes = flexrnn.LSTM(3, 40, backend="cpu"), machine().vector_bytes // 4
    with threads(3), torch.no_grad():
        layer(torch.randn(*((9, 4) if shape is Shape.ROWS else (1, 4)), 3))
        assert asked == [(4, 3, -(-40 // lanes))]
        assert told == [thin]
        monkeypatch.setattr(shares, "_BRIEF", 4 * 40 * 43 * 4 + 1)  # bytes: too little to share
        layer(torch.randn(*((9, 5) if shape is Shape.ROWS else (1, 5)), 3))
    assert told == [thin, False]


# How many

USED = """
import os, torch, flexrnn
from flexrnn.engine.cpu.build import openmp

def tasks():
    return len(os.listdir("/proc/self/task"))

layer, x = flexrnn.LSTM(3, 64, backend="cpu"), torch.randn(5, 8, 3)
with torch.no_grad():
    torch.set_num_threads(1)
    layer(x)
    before = tasks()
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        layer(x)
        print(tasks() - before + 1)
assert openmp.mapped() == {openmp.runtime()}, openmp.mapped()
"""


def run(program: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout


def test_as_many_threads_run_as_torch_has_and_by_its_runtime() -> None:
    assert run(USED).split() == ["1", "2", "3", "5"]


# Several callers


def test_python_threads_at_once_get_the_numbers_that_each_would_get_alone(
    threads: Threads, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())  # they also make them at once
    layers = [
        flexrnn.FlexRNN(cell, 5, 19, bidirectional=True, dtype=torch.float64)
        for cell in (cells.LSTMCell, cells.GRUCell, cells.LSTMCell)
    ]
    xs = [torch.randn(40, batch, 5, dtype=torch.float64) for batch in (1, 3, 6)]
    calls = [(layer, x.requires_grad_()) for layer in layers for x in xs] * 3
    alone = [results(layer, "reference", x) for layer, x in calls]

    def call(k: int) -> dict[str, Tensor]:
        layer, x = calls[k]
        with threads(1 + k % 2):
            return results(layer, "cpu", x)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, range(len(calls))))
    for ours, right in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-11)


def test_a_call_lets_other_python_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread counts while the loop runs, and nothing else does."""
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    compiled, counted, seen = kernel.library, [0], list[int]()

    class Watched:
        """A library whose `run` notes how far the other thread has come meanwhile."""

        def __init__(self, text: str, **rest: Any):
            self._run: Any = compiled(text, **rest).run

        @property
        def run(self) -> Any:
            return self

        def __call__(self, *args: Any) -> None:
            self._run.argtypes = self.argtypes
            before = counted[0]
            self._run(*args)
            seen.append(counted[0] - before)

        argtypes: Any = None
        restype: Any = None

    monkeypatch.setattr(kernel, "library", Watched)
    layer, x = flexrnn.RNN(3, 33, backend="cpu"), torch.randn(100_000, 2, 3)
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0)  # lets go by itself; the other never does

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    other = threading.Thread(target=count)
    try:
        other.start()
        with torch.no_grad():
            for _ in range(5):
                layer(x)
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)
    assert len(seen) == 5
    assert max(seen) > 0


# Fork


def expected(layer: flexrnn.FlexRNN, x: Tensor) -> Tensor:
    with flexrnn.backend("reference"):
        return layer(x)[0].detach()


class Encoded(Dataset[Tensor]):
    """Items that a layer makes, in a worker."""

    def __init__(self, layer: flexrnn.FlexRNN, xs: Tensor):
        self.layer, self.xs = layer, xs

    def __len__(self) -> int:
        return len(self.xs)

    def __getitem__(self, index: int) -> Tensor:
        return self.layer(self.xs[index])[0].detach()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")  # of one CPU
def test_workers_of_a_data_loader(threads: Threads) -> None:
    layer = flexrnn.LSTM(3, 17, backend="cpu")
    xs = torch.randn(6, 20, 2, 3)
    with threads(2):
        right = torch.stack([layer(x)[0].detach() for x in xs])  # threads have run
        loader = DataLoader(Encoded(layer, xs), batch_size=1, num_workers=2,
                            multiprocessing_context="fork", timeout=60)  # fmt: skip
        found = torch.cat(list(loader))
    torch.testing.assert_close(found, right)


FORKED = """
import os, signal, torch, flexrnn

torch.set_num_threads(2)
layer, x = flexrnn.LSTM(3, 17, backend="cpu"), torch.randn(20, 4, 3, requires_grad=True)

def call():
    output, _ = layer(x)
    if torch.backends.cuda.is_built():  # there autograd itself refuses to run in the child
        return [output]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]

first = call()
child = os.fork()
if child == 0:
    signal.alarm(30)  # instead of waiting for threads that are not there
    try:
        assert torch.get_num_threads() == 1
        for again, right in zip(call(), first):
            torch.testing.assert_close(again, right)
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
torch.testing.assert_close(call(), first)  # the parent goes on
"""


def test_a_fork_after_threads_have_run() -> None:
    run("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORKED)
