"""What programs did that run at the same time, and which of it no meeting puts in order.

One access comes before another

  - of the same program, if there is a barrier between them: which of a card's threads has which
    number of a block may be another at every instruction;
  - of another program, if there is a barrier behind it, then an arrival that releases, which in
    every order of programs comes before a wait of the other one's that acquires, then a barrier.

Two accesses of one address, one of which writes, and none before the other, are a race, unless the
same instruction of both programs writes the same.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np


class Arrival(NamedTuple):
    """One more on a counter."""

    counter: int
    barriers: int  # of its program, before it
    releases: bool = True


class Wait(NamedTuple):
    """Until a counter has come to a number."""

    counter: int
    barriers: int
    number: int
    acquires: bool = True


class Program:
    """What one of several programs did."""

    def __init__(self, index: tuple[int, int]):
        self.index = index
        self.barriers = 0
        self.meetings: list[Arrival | Wait] = []


class Access(NamedTuple):
    """A block of numbers that an instruction reads or writes."""

    program: Program
    barriers: int
    line: str  # of the program
    addresses: Any
    bits: Any = None  # that are written there

    def __str__(self) -> str:
        return f"{self.program.index} {self.line}"


class Order:
    """Of accesses.

    Args:
        programs: those that ran.
        accesses: theirs, those of each program in their order.
    """

    def __init__(self, programs: Sequence[Program], accesses: Sequence[Access]):
        self.programs, self.accesses = programs, accesses
        self.arrivals = {p: [m for m in p.meetings if isinstance(m, Arrival)] for p in programs}
        self.waits = {p: [m for m in p.meetings if isinstance(m, Wait)] for p in programs}

    def races(self) -> list[str]:
        """Pairs of accesses."""
        found = []
        for group, bits in self._by_address().items():
            for i, k in combinations(range(len(group)), 2):
                a, b = self.accesses[group[i]], self.accesses[group[k]]
                if a.bits is None and b.bits is None:
                    continue
                if self._comes_before(a, b) or self._comes_before(b, a):
                    continue
                if a.line == b.line and all(written[i] == written[k] for written in bits):
                    continue
                found.append(f"{a} | {b}")
        return found

    def _by_address(self) -> dict[tuple[int, ...], list[Any]]:
        """The accesses of an address that is written, and what they write to each such."""
        sizes = [len(a.addresses) for a in self.accesses]
        which = np.repeat(np.arange(len(sizes)), sizes)
        where = np.concatenate([a.addresses for a in self.accesses])
        bits = np.concatenate([np.zeros(size, np.uint64) if a.bits is None else a.bits
                               for a, size in zip(self.accesses, sizes, strict=True)])  # fmt: skip
        order = np.lexsort((which, where))
        which, where, bits = which[order], where[order], bits[order]
        writes = np.array([a.bits is not None for a in self.accesses])[which]
        begins = np.flatnonzero(np.diff(where, prepend=0))
        ends = np.append(begins[1:], len(where))
        some = np.add.reduceat(writes, begins) > 0
        found: dict[tuple[int, ...], list[Any]] = defaultdict(list)
        for begin, end in zip(begins[some], ends[some], strict=True):
            found[tuple(which[begin:end].tolist())].append(bits[begin:end])
        return found

    def _comes_before(self, a: Access, b: Access) -> bool:
        if a.program is b.program:
            return a.barriers < b.barriers
        told = (k for k, m in enumerate(self.arrivals[a.program])
                if m.barriers > a.barriers and m.releases)  # fmt: skip
        heard = [k for k, m in enumerate(self.waits[b.program])
                 if m.barriers < b.barriers and m.acquires]  # fmt: skip
        first = next(told, None)
        if first is None or not heard:
            return False
        return heard[-1] >= self._waits_before[a.program, first][b.program]

    @cached_property
    def _waits_before(self) -> Mapping[tuple[Program, int], Mapping[Program, int]]:
        """Of every arrival, how many waits each program can be through before it."""
        return {
            (program, number): self._through(program, number)
            for program in self.programs
            for number in range(len(self.arrivals[program]))
        }

    def _through(self, held: Program, arrivals: int) -> Mapping[Program, int]:
        """How many waits each program gets through while one is held behind some arrivals.

        Counters only grow, so that nobody's going on keeps another one from it.
        """
        done, through, arrived = Counter[Program](), Counter[Program](), Counter[Program]()
        numbers = Counter[int]()

        def goes_on(program: Program) -> bool:
            if done[program] == len(program.meetings):
                return False
            meeting = program.meetings[done[program]]
            if isinstance(meeting, Wait):
                if numbers[meeting.counter] < meeting.number:
                    return False
                through[program] += 1
            elif program is held and arrived[program] == arrivals:
                return False
            else:
                arrived[program] += 1
                numbers[meeting.counter] += 1
            done[program] += 1
            return True

        while any(goes_on(program) for program in self.programs):
            pass
        return through
