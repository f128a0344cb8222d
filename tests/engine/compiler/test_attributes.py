"""Attributes that a step sets: no part of its result, as long as it does not read them first."""

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.cells import HiddenState


class Membrane(nn.Module):
    """As spiking neurons are written: what they were given and what comes out are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = None
        self.decay = 0.9

    def forward(self, current: Tensor, potential: Tensor) -> Tensor:
        self.potential = potential
        self.drive = torch.tanh(current)
        self.potential = self.decay * self.potential + self.drive
        return self.potential


class Spiking(flexrnn.Cell):
    """Sets attributes of its own, of a module, and by a hook."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.outer = nn.Linear(hidden_size, hidden_size, False, device, dtype)
        self.gain = nn.Parameter(torch.ones(hidden_size, 1, device=device, dtype=dtype))
        self.membrane = Membrane()

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.scaled = self.gain * self.outer.weight
        for _ in range(2):
            self.z = self.inner(x) + nn.functional.linear(state.h, self.scaled)
        self.count = 0
        self.count += 1
        return HiddenState(self.membrane(self.z, state.h) * self.count)


ONE_CALL = pytest.mark.filterwarnings("ignore:Spiking sets the attribute .* lasts for one call")


@ONE_CALL
def test_what_is_set_before_it_is_read_is_no_part_of_the_result(
    same_by_program: Callable[..., None],
) -> None:
    layer = flexrnn.FlexRNN(Spiking, 3, 5, dtype=torch.float64)
    same_by_program(layer, torch.randn(4, 3, 3, dtype=torch.float64))
    cell: Any = layer.cells[0]
    assert cell.membrane.potential is None
    assert not hasattr(cell, "z")


def test_that_nobody_sees_it_afterwards_is_told_also_where_it_is_compiled() -> None:
    layer = flexrnn.FlexRNN(Spiking, 3, 5)
    with flexrnn.backend("cpu"), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        layer(torch.randn(4, 3, 3))
    names = [str(warning.message).split()[4] for warning in told]
    assert sorted(names) == ["count", "scaled", "z"]


@ONE_CALL
def test_a_hook_may_compute_a_weight(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(Spiking, 3, 5, dtype=torch.float64)
    inner: Any = layer.cells[0].inner

    def doubled(module: Any, given: Any) -> None:
        module.twice = 2 * module.weight

    inner.register_forward_pre_hook(doubled)
    inner.register_forward_hook(lambda module, given, z: z + given[0] @ module.twice.t())
    same_by_program(layer, torch.randn(4, 3, 3, dtype=torch.float64))


def once(module: Any, z: Tensor) -> Tensor:
    if module.kept is None:
        module.kept = z
    return z


def once_by_has(module: Any, z: Tensor) -> Tensor:
    if not hasattr(module, "other"):
        module.other = z
    return z


def once_by_get(module: Any, z: Tensor) -> Tensor:
    module.other = z if getattr(module, "other", None) is None else module.other
    return z


def kind_decides(module: Any, z: Tensor) -> Tensor:
    module.kept = 2 * z if isinstance(module.kept, Tensor) else z
    return z + module.kept


def by_its_dictionary(module: Any, z: Tensor) -> Tensor:
    module.kept, before = z, module.__dict__.get("kept")
    return z if before is None else z + before


def one_of_two(module: Any, z: Tensor) -> Tensor:
    module.other = z
    module.kept, z = z, z if module.kept is None else z + module.kept
    return z


def in_spite(module: Any, z: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        z = z + module.other
    module.other = z
    return z


def by_its_names(module: Any, z: Tensor) -> Tensor:
    first = "other" not in dir(module)
    module.other = z
    return z if first else 2 * z


def by_a_copy(module: Any, z: Tensor) -> Tensor:
    before = copy.copy(module).kept
    module.kept = z
    return z if before is None else z + before


class Keeps(flexrnn.Cell):
    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how=once):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.inside: Any = nn.Module()
        self.how, self.kept = how, None
        self.inside.kept = None

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(state.h + self.how(self.inside, self.inner(x)))


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (once, "kept"),
        (once_by_has, "other"),
        (once_by_get, "other"),
        (kind_decides, "kept"),
        (by_its_dictionary, "kept"),
        (one_of_two, "kept"),
        (in_spite, "other"),
        (by_its_names, "other"),
    ],
)
def test_what_is_read_before_it_is_set_is_refused_at_that_line(how: Any, name: str) -> None:
    layer = flexrnn.FlexRNN(Keeps, 3, 5, dtype=torch.float64, how=how)
    at = f"{__file__}:{how.__code__.co_firstlineno + 1 + (how in (one_of_two, in_spite))}"
    told = f"Keeps.step reads the attribute inside.{name} before it sets it; .* at {at}$"
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


def test_a_copy_does_not_help() -> None:
    layer = flexrnn.FlexRNN(Keeps, 3, 5, dtype=torch.float64, how=by_a_copy)
    told = r"Keeps\.step reads the attribute inside\.kept before it sets it"
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


def swapped(module: Any, z: Tensor) -> Tensor:
    module.first, module.second = module.second, module.first
    return module.first(z)


def made(module: Any, z: Tensor) -> Tensor:
    if not hasattr(module, "new"):
        module.new = nn.Tanh()
        return z
    return module.new(z)


def deleted(module: Any, z: Tensor) -> Tensor:
    if not hasattr(module, "kept"):
        return z
    del module.kept
    return 2 * z


def registered(module: Any, z: Tensor) -> Tensor:
    module.register_buffer("noted", z)
    return z


@pytest.mark.parametrize("how", [swapped, made, deleted, registered])
def test_modules_and_what_goes_are_not_to_change(how: Any) -> None:
    layer = flexrnn.FlexRNN(Keeps, 3, 5, dtype=torch.float64, how=how)
    inside: Any = layer.cells[0].inside
    inside.first, inside.second = nn.Tanh(), nn.ReLU()
    told = r"Keeps\.step changes the attribute inside\."
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


def test_a_step_may_ask_for_the_class_of_what_it_changes(
    same_by_program: Callable[..., None],
) -> None:
    def asked(module: Any, z: Tensor) -> Tensor:
        module.other = z
        return z.tanh() if type(module) is nn.Module else z

    layer = flexrnn.FlexRNN(Keeps, 3, 5, dtype=torch.float64, how=asked)
    same_by_program(layer, torch.randn(4, 3, 3, dtype=torch.float64))


def test_a_buffer_of_a_module_is_not_to_be_set() -> None:
    def counted(module: Any, z: Tensor) -> Tensor:
        module.count = module.count + 1
        return z

    layer = flexrnn.FlexRNN(Keeps, 3, 5, dtype=torch.float64, how=counted)
    cell: Any = layer.cells[0]
    cell.inside.register_buffer("count", torch.zeros((), dtype=torch.float64))
    told = r"Keeps\.step changes the attribute inside\.count, at "
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(2, 3, 3, dtype=torch.float64))


class Remembers(flexrnn.Cell):
    """Tells the next step by an attribute what only the state may tell."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how="tensor"):
        super().__init__(input_size, hidden_size)
        self.how, self.count, self.seen = how, 0, {"count": 0}
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.register_buffer("last", torch.zeros((), device=device, dtype=dtype))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(x)
        if self.how == "tensor":
            self.last, z = z, z + self.last
        elif self.how == "number":
            self.count += 1
            z = z * self.count
        elif self.how == "inside":
            self.seen["count"] += 1
            z = z * self.seen["count"]
        else:
            held = vars(self.inner)
            held["gain"] = held.get("gain", 1) + 1
            z = z * held["gain"]
        return HiddenState(state.h + z)


@pytest.mark.parametrize(
    ("how", "attribute"),
    [("tensor", "last"), ("number", "count"), ("inside", "seen"), ("module", "inner.gain")],
)
def test_a_step_that_changes_an_attribute_is_refused(how: str, attribute: str) -> None:
    layer = flexrnn.FlexRNN(Remembers, 3, 5, dtype=torch.float64, how=how)
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError) as caught:
        layer(torch.randn(2, 3, 3, dtype=torch.float64))
    told, _, place = str(caught.value).rpartition(", at ")
    assert told == {
        "tensor": "Remembers.step changes the attribute last",  # a buffer, which stays
    }.get(
        how,
        f"Remembers.step reads the attribute {attribute} before it sets it; what the next step is "
        "to know belongs into State",
    )
    lines, first = inspect.getsourcelines(Remembers.step)
    at = {
        "tensor": "self.last, z = z",
        "number": "self.count += 1",
        "inside": 'self.seen["count"] += 1',
        "module": "vars(self.inner)",
    }[how]
    assert place == f"{__file__}:{first + next(k for k, row in enumerate(lines) if at in row)}"


class Triangle(nn.Module):
    """Keeps what it computes of its parameter at the first use."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, **options))

    @cached_property
    def lower(self) -> Tensor:
        return self.weight.tril()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.lower


class Cached(flexrnn.Cell):
    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.triangle = Triangle(hidden_size, device=device, dtype=dtype)

    @cached_property
    def scale(self) -> float:
        return self.hidden_size**-0.5

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(torch.tanh(self.inner(x) + self.triangle(state.h) * self.scale))


class CachedOfTheStep(Cached):
    """The first step decides what is kept."""

    @cached_property
    def doubled(self) -> Tensor:
        return 2 * self.z

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.z = self.inner(x)
        return HiddenState(state.h + self.doubled)


def test_a_property_may_keep_what_it_has_computed(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(Cached, 3, 5, dtype=torch.float64)
    same_by_program(layer, torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.filterwarnings("ignore:CachedOfTheStep sets the attribute")
def test_a_property_that_keeps_what_a_step_has_set_is_refused() -> None:
    layer = flexrnn.FlexRNN(CachedOfTheStep, 3, 5, dtype=torch.float64)
    told = r"CachedOfTheStep\.step reads the attribute doubled before it sets it"
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError, match=told):
        layer(torch.randn(4, 3, 3, dtype=torch.float64))
