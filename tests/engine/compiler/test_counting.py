"""Steps that count up what they can read: left to the reference, which counts every step."""

import itertools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import HiddenState, RNNCell
from flexrnn.engine.compiler import passes


class Held:
    """What a person may count with."""

    total = 0

    def __init__(self) -> None:
        self.number, self.numbers, self.table = 0, [0], {"n": 0}
        self.places, self.seen, self.log = {1: 0}, set[str](), list[int]()
        self.queue = deque([0])


def nonlocal_count() -> Callable[[], int]:
    number = 0

    def count() -> int:
        nonlocal number
        number += 1
        return number

    return count


def _of_class(held: Any) -> int:
    type(held).total += 1
    return type(held).total


def _logged(held: Any) -> int:
    held.log.append(1)
    held.seen.add(str(len(held.log)))
    return len(held.log)


COUNTS: dict[str, Callable[[Any], int]] = {
    "an attribute": lambda held: setattr(held, "number", held.number + 1) or held.number,
    "a list": lambda held: held.numbers.append(held.numbers.pop() + 1) or held.numbers[0],
    "a dict": lambda held: held.table.update(n=held.table["n"] + 1) or held.table["n"],
    "a dict of places": lambda held: held.places.update({1: held.places[1] + 1}) or held.places[1],
    "a deque": lambda held: held.queue.append(held.queue.pop() + 1) or held.queue[0],
    "a class": _of_class,
    "a log": _logged,
    "a variable": lambda held: held.count(),
}


class Counting(RNNCell):
    """Its output grows with the number of steps that have been."""

    def __init__(self, *args: Any, count: Any, held: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held = held if isinstance(held, Held) else None
        self.count: Any = lambda: count(held)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        (h,) = super().step(x, state)
        return HiddenState(h + self.count())


def made(name: str, *, inside: bool) -> flexrnn.FlexRNN:
    class Own(Held):
        pass

    held: Any = Own() if inside else SimpleNamespace(**vars(Own()), total=0)
    held.count = nonlocal_count()
    torch.manual_seed(0)
    return flexrnn.FlexRNN(Counting, 3, 4, count=COUNTS[name], held=held)


@pytest.mark.filterwarnings("ignore:.*changes, whenever it runs", "ignore:.*reads the attribute")
@pytest.mark.parametrize(
    ("name", "inside"),
    [*((n, True) for n in COUNTS), *((n, False) for n in COUNTS if n != "a class")],
)
def test_every_step_is_counted(name: str, inside: bool) -> None:
    layer = made(name, inside=inside)
    count: Any = layer.cells[0].count
    layer(torch.randn(5, 2, 3))  # by the reference, behind a trial or two
    for steps in (5, 2):
        before = count()
        layer(torch.randn(steps, 2, 3))
        assert count() == before + steps + 1


@pytest.mark.parametrize("name", COUNTS)
def test_an_engine_refuses_to_count(name: str) -> None:
    layer = made(name, inside=True)
    with (
        flexrnn.backend("cpu"),
        pytest.raises(RuntimeError, match=r"changes, whenever it runs|reads the attribute"),
    ):
        layer(torch.randn(5, 2, 3))


def test_an_iterator_that_is_closed_over_is_refused() -> None:
    numbers = itertools.count()
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="a count, a list, an iterator"):
        flexrnn.scan(
            lambda x, h: h * 0.5 + x + next(numbers), torch.zeros(2, 4), torch.ones(5, 2, 4)
        )


@pytest.mark.filterwarnings("ignore:.*changes, whenever it runs")
def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries, trace = [0], passes.trace

    def counted(*args: Any) -> Any:
        tries[0] += 1
        return trace(*args)

    monkeypatch.setattr(passes, "trace", counted)
    layer = made("a dict", inside=False)
    for _ in range(4):
        layer(torch.randn(5, 2, 3))
    assert tries == [1]


def test_what_is_kept_once_is_no_count() -> None:
    kept: dict[str, Tensor] = {}

    class Keeps(RNNCell):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            if "decay" not in kept:
                kept["decay"] = torch.linspace(0, 1, 4, dtype=torch.float64)
            (h,) = super().step(x, state)
            return HiddenState(h * kept["decay"])

    layer = flexrnn.FlexRNN(Keeps, 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with flexrnn.backend("cpu"):
        output = layer(x)[0]
    with flexrnn.backend("reference"):
        assert_close(output, layer(x)[0])
