"""Programs of `grid` have no race, and without any of their meetings they have one."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import flexrnn
from flexrnn import cells
from flexrnn.engine.cuda.emit import WIDTHS, resident

from .order import Access, Arrival, Order, Program, Wait

DOUBLE = torch.float64
T, B = 3, 2  # from the third step on, everything has come back: a state's ring has two slots


def loss(outs: list[Tensor]) -> Tensor:
    parts = [(o * torch.linspace(-1, 2, o.numel()).view_as(o).to(o)).sum() for o in outs]
    return torch.stack(parts).sum()


def layer(cell: Any, hidden_size: int, batch: int = B, **options: Any) -> list[Tensor]:
    """What a layer returns, and all gradients."""
    torch.manual_seed(0)
    marks = {"lengths": options.pop("lengths")} if "lengths" in options else {}
    made = flexrnn.FlexRNN(cell, 3, hidden_size, dtype=DOUBLE, **options)
    x = torch.randn(T, batch, 3, dtype=DOUBLE, requires_grad=True)
    output, state = made(x, **marks)
    outs = [output, *(state if isinstance(state, tuple) else (state,))]
    return [*outs, *torch.autograd.grad(loss(outs), [x, *made.parameters()])]


def scan(step: Callable[..., Any], state: list[int], inputs: int, *shapes: Any) -> list[Tensor]:
    """What a function's loop returns, and all gradients; of sizes of its arguments."""
    torch.manual_seed(0)
    drawn = [torch.randn(*shape, dtype=DOUBLE).mul(0.3).requires_grad_()
             for shape in (*((B, width) for width in state), (T, B, inputs), *shapes)]  # fmt: skip
    fields, x, params = drawn[: len(state)], drawn[len(state)], drawn[len(state) + 1 :]
    states, final = flexrnn.scan(step, tuple(fields), x, params)
    outs = [*states, *final]
    return [*outs, *torch.autograd.grad(loss(outs), drawn)]


def two_products(x: Tensor, state: Any, w: Tensor, u: Tensor, v: Tensor) -> Any:
    (h,) = state
    f = torch.sigmoid(linear(x, w) + linear(h, u))
    return ((1 - f) * h + f * torch.softmax(linear(f * h, v), -1),)


def no_product(x: Tensor, state: Any, a: Tensor) -> Any:
    h, c = state
    c = torch.sigmoid(a) * c + x
    return h * a + torch.tanh(c), c


def heads(x: Tensor, state: Any, w: Tensor) -> Any:
    (h,) = state
    return (torch.tanh(torch.matmul(h.view(-1, 3, 1, 17), w).flatten(1) + x),)


def several_states(x: Tensor, state: Any, w: Tensor, a: Tensor) -> Any:
    """The last is one number a row."""
    h, c, m = state
    m = torch.maximum(m, c.amax(-1, keepdim=True)) * 0.5
    c = c * a + torch.tanh(linear(h, w)) * torch.sigmoid(m)
    return torch.tanh(c) + x, c, m


class Case(NamedTuple):
    call: Callable[[], list[Tensor]]
    meetings: tuple[int, ...]  # in a step, of every loop that runs, there and back
    programs: int  # that share rows, at most
    even: bool = False


LENGTHS = torch.tensor([2, 3, 1] * 6)  # two tiles of rows, the last one with two
CASES = {
    "one product": Case(lambda: layer(cells.LSTMCell, 17), (1, 1), 2),
    "columns that warps share out": Case(lambda: layer(cells.LSTMCell, 60), (1, 1), 4),
    "read by parts": Case(lambda: layer(cells.GRUCell, 37), (1, 1), 3),
    "of one program": Case(lambda: layer(cells.LSTMCell, 9), (0, 0), 1),
    "reductions": Case(lambda: layer(cells.LayerNormLSTMCell, 17), (3, 3), 5),
    "reductions, even": Case(lambda: layer(cells.LayerNormLSTMCell, 17), (3, 3), 2, True),
    "projection": Case(lambda: layer(cells.LSTMCell, 37, proj_size=5), (2, 2), 3),
    "two products": Case(
        lambda: scan(two_products, [21], 4, (21, 4), (21, 21), (21, 21)), (4, 3), 2
    ),
    "no product": Case(lambda: scan(no_product, [21, 21], 21, (21,)), (0, 0), 2),
    "heads": Case(lambda: scan(heads, [51], 51, (3, 17, 17)), (2, 2), 6),
    "several states": Case(
        lambda: scan(several_states, [21, 21, 1], 21, (21, 21), (21,)), (3, 3), 2
    ),
    "lengths": Case(
        lambda: layer(cells.LSTMCell, 17, 18, bidirectional=True, lengths=LENGTHS), (1,) * 4, 2
    ),
    "lengths and reductions": Case(
        lambda: layer(cells.LayerNormLSTMCell, 5, 18, lengths=LENGTHS), (3, 3), 2
    ),
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[Any]]:
    """Of every case, what has been launched."""
    return {}


def launched(case: str, detector: Any, found: dict[str, list[Any]]) -> list[Any]:
    if case not in found:
        detector.even, before = CASES[case].even, len(detector.ran)
        with flexrnn.backend("cuda"):
            CASES[case].call()
        found[case] = detector.ran[before:]  # a test may launch several cases
    return found[case]


@pytest.mark.parametrize("case", CASES)
def test_programs_have_no_race(case: str, detector: Any) -> None:
    call, meetings, programs, detector.even = CASES[case]
    results = []
    for engine in ("cuda", "reference"):
        with flexrnn.backend(engine):
            results.append(call())
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)
    assert [ran.launch.races for ran in detector.ran] == [[]] * len(meetings)
    steps = 2 * T  # of arrivals and waits
    firsts = [ran.launch.programs[0] for ran in detector.ran]
    assert [len(program.meetings) / steps for program in firsts] == list(meetings)
    assert max(ran.source.grid.programs for ran in detector.ran) == programs


@pytest.mark.parametrize(
    "case",
    ["one product", "read by parts", "reductions", "projection", "two products", "heads",
     "several states", "lengths"],
)  # fmt: skip
def test_every_meeting_is_needed(
    case: str, detector: Any, found: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    meetings = resident.meetings
    for ran in launched(case, detector, found):
        for forgotten in range(ran.source.grid.meetings):

            def others(*given: Any, forgotten: int = forgotten) -> tuple[bool, ...]:
                all_of_them = list(meetings(*given))
                places = [k for k, meet in enumerate(all_of_them) if meet]
                all_of_them[places[forgotten]] = False
                return tuple(all_of_them)

            loop = copy.copy(ran.loop)
            loop._sources = {}
            with monkeypatch.context() as patch:
                patch.setattr(resident, "meetings", others)
                source = loop.source(WIDTHS[0], even=CASES[case].even)
            assert source.grid.meetings == ran.source.grid.meetings - 1
            assert detector.launch(source, ran.memory, ran.call).races, forgotten


def test_rounded_states_have_no_race(detector: Any) -> None:
    """And programs exchange nothing else: what is not rounded stays in its program."""
    made = flexrnn.GRU(3, 37, dtype=torch.bfloat16, backend="cuda")
    made(torch.randn(T, B, 3, dtype=torch.bfloat16))[0].sum().backward()
    forward, backward = detector.ran
    assert forward.launch.races == backward.launch.races == []
    assert "before.h.rounded" in forward.source.buffers
    text = forward.text
    early, _, _ = text[text.index("def stage0") :].partition("    wait(meeting, met)\n")
    assert "tl.load(before_h + row * 37 + unit" in early
    others = text.replace("before_h_rounded + row", "before_h + row")  # are read by products
    assert others != text
    assert detector.races(forward, others)


@pytest.mark.parametrize("case", ["one product", "read by parts", "reductions", "two products"])
def test_what_others_read_is_not_a_programs_own(
    case: str, detector: Any, found: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be read before the wait, or written behind the arrival."""
    for ran in launched(case, detector, found):
        loop = copy.copy(ran.loop)
        loop._sources = {}
        with monkeypatch.context() as patch:
            patch.setattr(resident, "own", lambda traces, kinds: frozenset(kinds))
            source = loop.source(WIDTHS[0], even=CASES[case].even)
        assert source.grid.meetings == ran.source.grid.meetings
        assert detector.launch(source, ran.memory, ran.call).races


class Fault(NamedTuple):
    """What a text says wrongly, at one place after another, or everywhere at once."""

    right: str  # a pattern
    wrong: str
    cases: tuple[str, ...] = ("one product",)
    everywhere: bool = False


MANY = ("one product", "projection", "two products")
WAIT, ARRIVE = r"    wait\(meeting, met\)\n", r"    arrive\(meeting\)\n"
ABSENT = " " * 12  # how much deeper those meet who have no units
FAULTS = {
    # Of those who arrive.
    "nobody arrives": Fault(r'tl.atomic_add\(meeting, 1, sem="release"\)', "pass"),
    "threads have not met when one arrives": Fault(
        r"tl.debug_barrier\(\)(\n    if True:.*\n        tl.atomic_add)", r"pass\1"
    ),
    "one arrives before threads meet": Fault(
        r"(    tl.debug_barrier\(\)\n)(    if True:.*\n        tl.atomic_add.*\n)", r"\2\1"
    ),
    "arrivals release nothing": Fault('"release"', '"relaxed"'),
    "arrivals tell their own block": Fault('"release"', '"release", scope="cta"'),
    "a stage does not arrive": Fault(rf"^{ARRIVE}", "", MANY),
    "a stage arrives first of all": Fault(
        rf"^({WAIT}|    live = .*\n)((?:(?!{WAIT}|{ARRIVE})    .*\n)+)({ARRIVE})", r"\1\3\2", MANY
    ),
    "who has no units does not arrive": Fault(
        rf"^{ABSENT}{ARRIVE}", f"{ABSENT}    pass\n", ("projection", "heads")
    ),
    # Of those who wait.
    "nobody waits": Fault(r"while _arrived\(meeting\) < met:\n +pass", "pass"),
    "waits are for all but one": Fault("< met:", "< met - 1:"),
    "threads go on before one has heard": Fault(
        r"(            pass\n    )tl.debug_barrier\(\)", r"\1pass"
    ),
    "waits acquire nothing": Fault("ld.acquire.gpu", "ld.relaxed.gpu"),
    "waits hear of their own block": Fault("ld.acquire.gpu", "ld.acquire.cta"),
    "waits may look once": Fault("tl.int64, False", "tl.int64, True"),
    "a stage does not wait": Fault(rf"^{WAIT}", "", MANY),
    "a stage waits last of all": Fault(rf"^({WAIT})((?:(?!{ARRIVE})    .*\n)+)", r"\2\1", MANY),
    "who has no units does not wait": Fault(
        rf"^{ABSENT}{WAIT}", f"{ABSENT}    pass\n", ("projection",)
    ),
    # Of what they wait for.
    "a meeting is not counted": Fault(r"met \+= tl.num_programs\(1\)", "pass", MANY),
    "tiles of rows are counted": Fault(r"num_programs\(1\)", "num_programs(0)", MANY),
    "all rows have one counter": Fault(r"tl.program_id\(0\) \* 16", "0", ("lengths",)),
    # Of what takes no meeting.
    "threads do not meet between stages": Fault(
        rf"^{ABSENT}tl.debug_barrier\(\)",
        f"{ABSENT}pass",
        ("of one program", "two products", "no product"),
        everywhere=True,
    ),
    "all programs have one copy": Fault(
        r" \+ tile \* B.to\(tl.int64\) \* \d+", "", ("two products",), everywhere=True
    ),
}


def planted(fault: Fault, text: str) -> Iterator[str]:
    if fault.everywhere:
        yield re.sub(fault.right, fault.wrong, text, flags=re.M)
    else:
        for found in re.finditer(fault.right, text, re.M):
            yield text[: found.start()] + found.expand(fault.wrong) + text[found.end() :]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, detector: Any, found: dict[str, list[Any]]) -> None:
    noticed = [
        bool(detector.races(ran, text))
        for case in FAULTS[fault].cases
        for ran in launched(case, detector, found)
        for text in planted(FAULTS[fault], ran.text)
    ]
    assert noticed
    assert all(noticed)


def test_waiting_by_additions(detector: Any, found: dict[str, list[Any]]) -> None:
    """As AMD's cards do."""
    for ran in launched("one product", detector, found):
        text = ran.text.replace("if HIP:", "if True:")
        assert not detector.races(ran, text)
        assert detector.races(ran, text.replace('"acquire"', '"relaxed"'))


@pytest.mark.parametrize(
    ("programs", "ordered"),
    [
        (["w | r"], True),
        (["w r"], False),
        (["w | +0", "?0.1 | r"], True),
        (["r | +0", "?0.1 | w"], True),
        (["w +0 |", "?0.1 | r"], False),  # threads have not met
        (["w | +0", "| ?0.1 r"], False),
        (["+0 w |", "?0.1 | r"], False),
        (["w | +0", "?0.0 | r"], False),
        (["w | +0", "?1.0 | r"], False),
        (["w | +0", "?0.1 | r", "+0"], False),  # it may be another one's arrival
        (["w | +0", "?0.2 | r", "+0"], True),
        (["w | +0", "?0.2 | r", "+0 +0"], False),
        (["w | +0", "?0.2 | r", "+0 ?0.2 | +0"], True),
        (["w | +0", "?1.1 | r", "?0.1 | +1"], True),  # heard of a third
    ],
)
def test_what_comes_before_what(programs: list[str], ordered: bool) -> None:
    """`w` and `r` are accesses of one address, `|` a barrier; `+` arrives, `?` waits."""
    ran, accesses = [Program((0, k)) for k, _ in enumerate(programs)], list[Access]()
    for program, text in zip(ran, programs, strict=True):
        for word in text.split():
            counter, _, number = word[1:].partition(".")
            if word == "|":
                program.barriers += 1
            elif word[0] == "+":
                program.meetings.append(Arrival(int(counter), program.barriers))
            elif word[0] == "?":
                program.meetings.append(Wait(int(counter), program.barriers, int(number)))
            else:
                bits = np.zeros(1, np.uint64) if word == "w" else None
                accesses.append(Access(program, program.barriers, word, np.array([8]), bits))
    assert bool(Order(ran, accesses).races()) != ordered
