# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# What Triton's interpreter is made of has no public names.
"""A detector of races between the programs of a kernel of the tier `grid`.

The kernel runs as on a card: all its steps in one launch, and programs that meet by the very text
of `arrive` and `wait`. Every program has a thread, of which one runs at a time, until it is over or
waits. Noted is what it reads and writes, where its threads meet at a barrier, where it arrives and
what it waits for. No program branches on what another one writes, so all this is the same in every
order of programs; and what it says of orders, `order.py` finds. Nothing depends on time.
"""

import ctypes
import inspect
import linecache
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from flexrnn.engine.cuda import kernels, runtime, tiers
from flexrnn.engine.cuda.calls import ROWS, Call
from flexrnn.engine.cuda.emit import WIDTHS, Source
from flexrnn.engine.cuda.written import Written

from .order import Access, Arrival, Order, Program, Wait

(GRID,) = (tier for tier in tiers.TIERS if tier.name == "grid")
MEETING = "\n\n".join(  # with which a kernel's own text is compiled on a card
    inspect.getsource(function.fn).replace("@triton.jit", "@jit").replace("not INTERPRETED", "True")
    for function in (runtime._arrived, runtime.wait, runtime.arrive)
)


class Stopped(BaseException):
    """Ends a program that would wait for ever."""


class Running(Program):
    """A program in a thread of its own."""

    def __init__(self, index: tuple[int, int]):
        super().__init__(index)
        self.wait: Wait | None = None  # in which it is
        self.heard = Counter[int]()  # of every counter
        self.turn = threading.Semaphore(0)
        self.is_over = self.is_stopped = False
        self.error: BaseException | None = None

    @property
    def is_ready(self) -> bool:
        """Whether what it waits for is there."""
        wait = self.wait
        return wait is None or ctypes.c_int64.from_address(wait.counter).value >= wait.number


class Launch:
    """A kernel's programs, of which one runs at a time, and all that they do to memory."""

    def __init__(self, rows: int, tiles: int):
        self.programs = [Running((row, tile)) for row in range(rows) for tile in range(tiles)]
        self.accesses: list[Access] = []
        self.stuck: list[Running] = []
        self.here = self.programs[0]
        self.handed_back = threading.Semaphore(0)

    def run(self, work: Callable[[], object]) -> None:
        """Let every program work until it is over, or until all that are left wait for ever."""
        for program in self.programs:
            threading.Thread(target=self._thread, args=(program, work), daemon=True).start()
        left = self.programs
        while ready := [p for p in left if p.is_ready]:
            for program in ready:
                self._hand_over(program)
            left = [program for program in left if not program.is_over]
        self.stuck = left
        for program in left:
            program.is_stopped = True
            self._hand_over(program)

    def _hand_over(self, program: Running) -> None:
        from triton.runtime.interpreter import interpreter_builder

        self.here, interpreter_builder.grid_idx = program, (*program.index, 0)
        program.turn.release()
        self.handed_back.acquire()
        if program.error is not None:
            raise program.error

    def _thread(self, program: Running, work: Callable[[], object]) -> None:
        program.turn.acquire()
        try:
            with np.errstate(all="ignore"):
                work()
        except Stopped:
            pass
        except BaseException as error:
            program.error = error
        program.is_over = True
        self.handed_back.release()

    @property
    def races(self) -> list[str]:
        """What no meeting puts in order, and who waits for ever."""
        stuck = [f"{program.index} waits for ever" for program in self.stuck]
        return stuck + Order(self.programs, self.accesses).races()

    def access(self, pointers: Any, mask: Any, written: Any = None) -> None:
        """The running program reads, or writes."""
        program, shape = self.here, pointers.data.shape
        program.wait, bits = None, None
        some = np.broadcast_to(mask.data, shape)
        if written is not None:
            values = np.broadcast_to(written.data, shape)[some]
            bits = values.view(f"u{values.itemsize}").astype(np.uint64)
        addresses = pointers.data[some].astype(np.uint64)
        self.accesses.append(Access(program, program.barriers, _line(), addresses, bits))

    def barrier(self) -> None:
        """All threads of the running program meet."""
        self.here.wait = None
        self.here.barriers += 1

    def arrive(self, counter: int, releases: bool) -> None:
        """The running program tells that it has come so far."""
        self.here.wait = None
        self.here.meetings.append(Arrival(counter, self.here.barriers, releases))

    def look(self, counter: int, acquires: bool) -> int:
        """What the running program is told of a counter: one more at each look, once that is true.

        So it goes on at the very number that it waits for, or that it has heard of before.
        """
        program = self.here
        if program.wait is not None:
            program.heard[counter] += 1
            program.meetings.pop()
        number = program.heard[counter]
        program.wait = Wait(counter, program.barriers, number, acquires)
        program.meetings.append(program.wait)
        if not program.is_ready:
            self.handed_back.release()
            program.turn.acquire()
            if program.is_stopped:
                raise Stopped
        return number


def _line() -> str:
    """The line of the generated source that runs."""
    frame = sys._getframe()
    while not frame.f_code.co_filename.startswith("<flexrnn"):
        assert frame.f_back
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{frame.f_code.co_name}: {line}"


class Ran(NamedTuple):
    """A loop that was launched."""

    loop: Written
    source: Source
    memory: Mapping[str, Any]
    call: Call
    launch: Launch

    @property
    def text(self) -> str:
        """What a card would compile."""
        return _compiled(self.source)


def _compiled(source: Source) -> str:
    return f"{MEETING}\n\n{source.grid.text}"


class Detector:
    """Launches loops by the tier `grid`, with the narrowest tiles, and listens.

    Attributes:
        even: whether wide stages have as many tiles as narrow ones.
        ran: what was launched.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        self.even, self.ran = False, list[Ran]()
        self.now: Launch | None = None
        monkeypatch.setattr(tiers, "choose", self._choose)
        self._listen()

    def _choose(self, loop: Written, call: Call) -> tiers.Choice:
        def launch(source: Source, memory: Mapping[str, Any], call: Call) -> None:
            launched = self.launch(source, memory, call)
            self.ran.append(Ran(loop, source, memory, call, launched))

        call = call._replace(tall=ROWS[0])
        return tiers.Choice(GRID._replace(launch=launch), WIDTHS[0], self.even, call)

    def races(self, ran: Ran, text: str) -> list[str]:
        """The races if something was launched with another text."""
        return self.launch(ran.source, ran.memory, ran.call, text).races

    def launch(
        self, source: Source, memory: Mapping[str, Any], call: Call, text: str = ""
    ) -> Launch:
        """Launch a source as on a card, or another text."""
        kernel = kernels.module(text or _compiled(source))["grid"]
        with self.monkeypatch.context() as patch:
            patch.setattr(kernels, "interpreted", lambda: False)
            patch.setattr(kernels, "module", lambda _: {"grid": _Launched(self._run, kernel)})
            GRID.launch(source, memory, call)
        return self.launched

    def _run(self, kernel: Any, grid: tuple[int, int], *given: Any, **options: Any) -> None:
        from triton.runtime import interpreter

        assert options["launch_cooperative_grid"]  # or not all programs need to run at once
        fixed = {name: value for name, value in options.items() if name in kernel.arg_names}
        arguments = [interpreter._implicit_cvt(argument) for argument in given]
        interpreter.interpreter_builder.set_grid_dim(*grid, 1)
        self.now = Launch(*grid)
        with self._changed_once():
            self.now.run(lambda: kernel(*arguments, **fixed))

    @contextmanager
    def _changed_once(self) -> Iterator[None]:
        """The interpreter changes Triton anew for every function called, most of its time."""
        from triton.runtime import interpreter

        change, scopes = interpreter._patch_lang, dict[int, Any]()

        def once(function: Any) -> None:
            space = function.__globals__
            if id(space) not in scopes:
                scopes[id(space)] = change(function)

        try:
            with self.monkeypatch.context() as patch:
                patch.setattr(interpreter, "_patch_lang", once)
                yield
        finally:
            for scope in reversed(scopes.values()):
                scope.restore()

    def _listen(self) -> None:
        """Note what the interpreter does while kernels run."""
        from triton.runtime import interpreter

        def replace(name: str, method: Callable[..., Any]) -> None:
            builder = interpreter.interpreter_builder
            self.monkeypatch.setattr(builder, name, partial(method, getattr(builder, name)))

        def load(real: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self.launched.access(pointers, mask)
            return real(pointers, mask, *rest)

        def store(real: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.launched.access(pointers, mask, value)
            return real(pointers, value, mask, *rest)

        def barrier(real: Any) -> Any:
            self.launched.barrier()
            return real()

        def add(real: Any, op: Any, at: Any, value: Any, mask: Any, order: Any, scope: Any) -> Any:
            counter, told = at.data.item(), scope.name != "CTA"
            if value.data.item() == 0:
                seen = self.launched.look(counter, told and order.name.startswith("ACQUIRE"))
                return interpreter.TensorHandle(np.full_like(value.data, seen), value.dtype)
            assert value.data.item() == 1
            self.launched.arrive(counter, told and order.name.endswith("RELEASE"))
            return real(op, at, value, mask, order, scope)

        def assembly(_: Any, text: str, constraints: str, given: Any, types: Any, pure: bool,
                     pack: int) -> Any:  # fmt: skip
            assert text.endswith(".global.s64 $0, [$1];")
            (at,) = given  # of what is pure, a compiler may take the first look for all
            seen = self.launched.look(at.data.item(), "ld.acquire.gpu" in text and not pure)
            handle = interpreter.TensorHandle(np.full(at.data.shape, seen), types[0])
            return SimpleNamespace(get_result=lambda _: handle)

        replace("create_masked_load", load)
        replace("create_masked_store", store)
        replace("create_barrier", barrier)
        replace("create_atomic_rmw", add)
        replace("create_inline_asm", assembly)

    @property
    def launched(self) -> Launch:
        """What runs, or ran last."""
        assert self.now
        return self.now


class _Launched:
    """Stands for a compiled kernel: `kernel[grid](...)`."""

    def __init__(self, run: Callable[..., None], kernel: Any):
        self.run, self.kernel = run, kernel

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        return partial(self.run, self.kernel, grid)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    """Every loop runs by the tier `grid`, and is looked at."""
    if not kernels.interpreted():
        pytest.skip("Triton's interpreter tells what programs do")
    return Detector(monkeypatch)
