# pyright: reportPrivateUsage=false
# What a call hands to a loop is nobody else's business.
"""Generated loops in a program of their own, under sanitizers: memory, undefined behaviour, races.

The program has every call's memory in pieces of just the size that the loop is told, so that a
number before or behind one is seen, and runs the threads' function by `std::thread`, which the
sanitizer of threads knows, unlike GCC's OpenMP runtime.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import chunks, cpp, kernel, plan
from flexrnn.engine.cpu.build.isa import has_bfloat16, machine, runnable
from flexrnn.engine.cpu.kernel import SCRATCH, STARTS, Area, Kernel, Launch

from ..summed import DeltaCell
from . import sanitized
from .sanitized import CLEAN, MEMORY, extent, skip_without

CELLS = [cells.LSTMCell, cells.GRUCell, cells.LayerNormLSTMCell, DeltaCell]
SIZES = [(9, 1, 2, 5), (3, 7, 3, 19), (1, 7, 1, 5)]  # T, B, I, H
EXTRA = 3  # chunks beyond the first, of the loops back of the first size, and two of the second
ENDS = torch.tensor([2, 5, 5, 0, 1, 4, 5]), torch.randn(5, 7, 3)  # lengths, and an input
TOGETHER = """
typedef void Work(void**, const long*, const double*, Share*, long, long, int);

static void together(Work* work, void** p, const long* s, const double* c, long count) {
    std::vector<Share> all(count);
    Share* shares = all.data();
    std::vector<std::thread> threads;
    for (long id = 1; id < count; id++)
        threads.emplace_back([=] { work(p, s, c, shares, id, count, PATIENCE); });
    work(p, s, c, shares, 0, count, PATIENCE);
    for (std::thread& thread : threads) thread.join();
}
"""


# A thread that is late to leave a meeting may hear there of the next one, too, and with it of all
# that the other did in between: then there was no race, and on a busy machine this is the rule. So
# here they leave together, by accesses that tell of nothing else: a race is one in every run.
MEETINGS = [
    ("    unsigned rounds = 0,", "    unsigned left = 0, rounds = 0,"),
    (
        "        round++;\n",
        """        meet(work, down);
        __atomic_store_n(&shares[id].left, round, __ATOMIC_RELAXED);
        for (long other = 0; count > 1 && other < count; other++)
            while (int(__atomic_load_n(&shares[other].left, __ATOMIC_RELAXED) - round) < 0)
                sched_yield();
    }

    template <class Work> void meet(Work work, bool down) {
        round++;
""",
    ),
]


class Call(NamedTuple):
    """One run of a loop: its source, and what `Launch.__call__` hands it."""

    source: str
    launch: Launch
    memory: dict[str, Tensor]
    steps: tuple[int, ...]  # from the first to before the last
    areas: dict[str, dict[int, int]]  # where the pieces of an area begin, and their sizes

    def text(self) -> str:
        """The same run in C++, on memory of its own."""
        launch, memory = self.launch, dict[tuple[str, int], int]()
        pointers: list[str] = []
        for name, offset in zip(launch._memories, launch._offsets, strict=True):
            at, area = offset // memory_size(self.memory), self.areas.get(name, {0: 0})
            piece = (name, max(first for first in area if first <= at))
            if name == STARTS:
                pointers.append("starts")
            elif name:
                whole = name not in self.areas
                memory[piece] = extent(self.memory[name]) if whole else area[piece[1]]
                number = list(memory).index(piece)
                pointers.append(f"m{number} + {at - piece[1]}")
            else:
                pointers.append("nullptr")
        starts = self.memory.get(STARTS, torch.zeros(1)).tolist()
        made = "\n".join(
            f"        REAL* m{k} = m.piece({n});" for k, n in enumerate(memory.values())
        )
        return f"""    {{
        Memory m;
{made}
        long starts[] = {{{", ".join(str(int(n)) for n in starts)}}};
        void* p[] = {{{", ".join(pointers)}}};
        const long s[] = {{{", ".join(map(str, launch._of(*self.steps)))}}};
        const double c[] = {{{", ".join([*map(repr, launch._constants), "0"])}}};
        together(%s, p, s, c, {launch._threads});
    }}"""


def memory_size(memory: dict[str, Tensor]) -> int:
    """Bytes of a number."""
    return memory[SCRATCH].element_size()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of loops that layers make; here they are noted only, and nothing is compiled."""
    noted: list[Call] = []
    taken: list[tuple[Area, dict[int, int]]] = []  # of every area, in the order in which they came
    sources: dict[Launch, tuple[str, dict[str, dict[int, int]]]] = {}
    init, take, lay_out = Area.__init__, Area.take, Kernel.launch

    def new_area(self: Area, itemsize: int) -> None:
        init(self, itemsize)
        taken.append((self, {}))

    def take_noted(self: Area, numbers: int) -> int:
        at = take(self, numbers)
        found = next(pieces for area, pieces in taken if area is self)
        found[at] = max(numbers, found.get(at, 0))
        return at

    def launch(self: Kernel, rows: Any, weights: Any, area: Area, **sizes: Any) -> Launch:
        made = lay_out(self, rows, weights, area, **sizes)
        own = next(k for k, (other, _) in enumerate(taken) if other is area)
        areas = {SCRATCH: taken[own][1]}
        text = "\n".join((*self.source.functions, self.source.text))
        sources[made] = text, areas
        taken.clear()
        return made

    def note(self: Launch, memory: dict[str, Tensor], *steps: int) -> None:
        source, areas = sources[self]
        noted.append(Call(source, self, dict(memory), steps, areas))

    class Nothing:
        def __init__(self, *_: str, **__: Any):
            self.run = self

    monkeypatch.setattr(Area, "__init__", new_area)
    monkeypatch.setattr(Area, "take", take_noted)
    monkeypatch.setattr(Kernel, "launch", launch)
    monkeypatch.setattr(Launch, "__call__", note)
    monkeypatch.setattr(kernel, "library", Nothing)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    monkeypatch.setattr(chunks, "ROWS", 4)
    monkeypatch.setattr(chunks, "BYTES", 1)
    return noted


def program(
    calls: list[Call], change: Callable[[str], str], patience: str, *, narrow: bool
) -> tuple[list[str], list[str]]:
    """C++ of every loop once, in a namespace of its own, and of all calls."""
    runtime = cpp.prologue("float", machine(), narrow=narrow) + cpp.definitions()
    if narrow:
        runtime += cpp.definitions(narrow=True)
    for right, wrong in () if patience == "0" else MEETINGS:
        assert right in runtime
        runtime = runtime.replace(right, wrong)
    texts = {call.source: f"loop{k}" for k, call in enumerate(calls)}
    parts = [runtime, MEMORY, TOGETHER.replace("PATIENCE", patience)]
    for text, name in texts.items():
        named = change(text).replace("void run(", f"void run_{name}(")
        parts.append(f"namespace {name} {{\n{named}\n}}\n")
    return parts, [call.text() % f"{texts[call.source]}::work" for call in calls]


def every_call(cells: list[Any], threads: Any, dtype: torch.dtype) -> None:
    """Forward and backward passes of the cells, at every size."""
    options: dict[str, Any] = {"bidirectional": True, "backend": "cpu", "dtype": dtype}
    # Of rounded rows, some vectors are whole then: the sanitizers look into no store by a mask.
    more = 32 if dtype == torch.bfloat16 else 0
    for cell in cells:
        for T, B, I, H in SIZES:
            layer = flexrnn.FlexRNN(cell, I, H + more, **options)
            x = torch.randn(T, B, I).to(dtype).requires_grad_()
            for count in (2, 3):  # share rows, and units
                with threads(count):
                    output, state = layer(x)
                    loss = output.sum() + sum(s.sum() for s in state)
                    torch.autograd.grad(loss, [x, *layer.parameters()])
        layer, x = flexrnn.FlexRNN(cell, 3, 19 + more, **options), ENDS[1].to(dtype)
        for count in (2, 3):  # steps have fewer and fewer rows, or more and more
            with threads(count):
                output, _ = layer(x.requires_grad_(), lengths=ENDS[0])
                torch.autograd.grad(output.sum(), [x, *layer.parameters()])


@pytest.fixture
def ran(
    calls: list[Call], threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run calls of layers as a program under a sanitizer."""

    def run(
        sanitizer: str,
        isa: str = "plain",
        cells: list[Any] = CELLS,
        change: Callable[[str], str] = str,
        patience: str = "Team::LONG",
        dtype: torch.dtype = torch.float32,
    ) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setenv("FLEXRNN_ISA", isa)
        skip_without(sanitizer, machine(), tmp_path)
        every_call(cells, threads, dtype)
        runs = 2 * len([*SIZES, ENDS]) + EXTRA  # forward and backward
        assert len(calls) == len(cells) * runs * 4  # two numbers of threads, two directions
        assert sum(STARTS in call.memory for call in calls) == len(cells) * 8
        made = program(calls, change, patience, narrow=dtype == torch.bfloat16)
        return sanitized.run(*made, sanitizer, machine(), tmp_path)

    return run


def test_memory_and_defined_behaviour(ran: Any) -> None:
    done = ran("both")
    assert (done.stderr, done.stdout, done.returncode) == CLEAN


@pytest.mark.skipif(runnable()[0].name == "plain", reason="this machine has no other")
def test_memory_by_wide_vectors(ran: Any) -> None:
    """Less than it seems: the sanitizer looks into no load and store of a masked instruction."""
    done = ran("address", runnable()[0].name)
    assert (done.stderr, done.stdout, done.returncode) == CLEAN


@pytest.mark.parametrize("patience", ["Team::LONG", "0"])
def test_no_races(ran: Any, patience: str) -> None:
    """Also where threads wait for nobody, and do whatever share has not been begun."""
    done = ran("thread", patience=patience)
    assert (done.stderr, done.stdout, done.returncode) == CLEAN


@pytest.mark.skipif(not has_bfloat16(), reason="this machine does not multiply bfloat16")
@pytest.mark.parametrize(
    ("sanitizer", "patience"),
    [("address", "Team::LONG"), ("thread", "Team::LONG"), ("thread", "0")],
)
def test_products_of_bfloat16(ran: Any, sanitizer: str, patience: str) -> None:
    some = [cells.GRUCell, cells.LayerNormLSTMCell]
    done = ran(sanitizer, "avx512", some, patience=patience, dtype=torch.bfloat16)
    assert (done.stderr, done.stdout, done.returncode) == CLEAN


@pytest.mark.skipif(not has_bfloat16(), reason="this machine does not multiply bfloat16")
def test_a_race_of_rows_that_are_rounded_is_noticed(ran: Any) -> None:
    def change(text: str) -> str:
        return text.replace("(f.id * f.B + r) * f.pairs", "r * f.pairs")

    done = ran("thread", "avx512", [cells.RNNCell], change, dtype=torch.bfloat16)
    assert done.returncode
    assert "data race" in done.stderr


NOBODY = "if (Team nobody{shares, id, 1, 0}; true)"

FAULTS = [
    ("address", r"(point\d)<true>", r"\1<false>", "heap-buffer-overflow"),
    ("address", r"share\(B, id,", "share(B + 1, id,", "heap-buffer-overflow"),
    # Who waits for nobody.
    ("thread", r"together<Frame>\(team", f"{NOBODY} together<Frame>(nobody", "data race"),
    # What each thread has of its own, in one place for all.
    ("thread", r"\(f\.id \* f\.B \+ r\) \* f\.temporary", "r * f.temporary", "data race"),
]


@pytest.mark.parametrize(("sanitizer", "right", "wrong", "told"), FAULTS)
def test_a_fault_is_noticed(ran: Any, sanitizer: str, right: str, wrong: str, told: str) -> None:
    def change(text: str) -> str:
        changed, count = re.subn(right, wrong, text)
        assert count
        return changed

    cell = cells.LayerNormLSTMCell if "temporary" in right else cells.RNNCell
    done = ran(sanitizer, "plain", [cell], change)
    assert done.returncode
    assert told in done.stderr
