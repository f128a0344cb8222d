"""The layer owns the parameters; a copy of the cell borrows them for a call."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flexrnn import Cell, FlexRNN
from flexrnn.bind import bind, move_parameters
from flexrnn.cells import HiddenState


class Nested(Cell):
    """A cell with parameters at every place where a module can hold one."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        I, H = input_size, hidden_size
        kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scale = nn.Parameter(torch.rand(H, **kwargs))
        self.register_parameter("none", None)
        self.inner = nn.Sequential(nn.Linear(I + H, H, **kwargs), nn.LayerNorm(H, **kwargs))
        self.listed = nn.ParameterList([torch.rand(H, **kwargs), torch.rand(H, **kwargs)])
        self.named = nn.ParameterDict({"gain": nn.Parameter(torch.rand(H, **kwargs))})
        self.once = self.again = nn.Linear(H, H, bias=False, **kwargs)  # one module, two names
        self.tied = nn.Linear(H, H, bias=False, **kwargs)
        self.tied.weight = self.once.weight  # two modules, one parameter
        self.register_buffer("steps", torch.zeros((), device=device))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.steps += 1
        h = self.inner(torch.cat([x, state.h], -1)) * self.scale + self.listed[0] - self.listed[1]
        return HiddenState(self.tied(self.again(self.once(h * self.named["gain"]))).tanh())


NAMES = ["scale", "inner.0.weight", "inner.0.bias", "inner.1.weight", "inner.1.bias"]
NAMES += ["listed.0", "listed.1", "named.gain", "once.weight"]


def test_parameters_move_in_order_under_flat_names() -> None:
    cell, layer = Nested(3, 5), nn.Module()
    before = dict(cell.named_parameters())
    assert list(before) == NAMES
    move_parameters(cell, layer, "_l1_reverse")
    moved = dict(layer.named_parameters())
    assert list(moved) == [name.replace(".", "_") + "_l1_reverse" for name in NAMES]
    assert all(a is b for a, b in zip(moved.values(), before.values(), strict=True))
    assert not list(cell.parameters())


def test_a_bound_copy_has_the_parameters_at_every_place() -> None:
    cell, layer = Nested(3, 5), nn.Module()
    before = dict(cell.named_parameters(remove_duplicate=False))
    slots = move_parameters(cell, layer, "_l0")
    bound = bind(cell, slots, layer)
    after = dict(bound.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert bound.again is bound.once
    assert not list(cell.parameters())  # the cell itself is as it was


def test_a_bound_copy_has_what_the_layer_has_at_this_moment() -> None:
    cell, layer = Nested(3, 5), nn.Module()
    slots = move_parameters(cell, layer, "_l0")
    first = bind(cell, slots, layer)
    layer.scale_l0 = nn.Parameter(torch.ones(5))
    second = bind(cell, slots, layer)
    assert second.scale is layer.scale_l0
    assert first.scale is not layer.scale_l0
    assert second.inner is not first.inner
    assert second.inner[0].weight is first.inner[0].weight


@pytest.mark.usefixtures("by_reference")
def test_a_layer_computes_what_the_cell_did_before_it_gave_its_parameters_up() -> None:
    torch.manual_seed(3)
    cell = Nested(3, 5, dtype=torch.float64)
    torch.manual_seed(3)
    layer: Any = FlexRNN(Nested, 3, 5, dtype=torch.float64)
    x, h = torch.randn(2, 4, 3).double().unbind(0), torch.zeros(4, 5).double()
    for row in x:
        h = cell(row, h)
    output, h_n = layer(torch.stack(x))
    assert_close((output[-1], h_n[0]), (h, h), rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(output[-1].square().sum(), list(layer.parameters()))
    theirs = torch.autograd.grad(h.square().sum(), list(cell.parameters()))
    assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("by_reference")
def test_buffers_stay_with_the_cell_and_keep_what_a_step_writes() -> None:
    layer: Any = FlexRNN(Nested, 3, 5, num_layers=2)
    assert [name for name in layer.state_dict() if "steps" in name] == [
        "cells.0.steps",
        "cells.1.steps",
    ]
    layer(torch.randn(7, 2, 3))
    layer.step(torch.randn(2, 3))
    assert [cell.steps.item() for cell in layer.cells] == [8, 8]


class Noting(Cell):
    """A cell whose step keeps what it was last given, in an attribute or a buffer."""

    State = HiddenState
    last: Any

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, buffer=False):
        super().__init__(input_size, hidden_size)
        if buffer:
            self.register_buffer("last", torch.zeros(()))
        else:
            self.last = None

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        self.last = x.detach().mean()
        return HiddenState(self.drop_recurrent(state.h) + x.sum(-1, keepdim=True))


NOTED = inspect.getsourcelines(Noting.step)[1] + 1


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_an_attribute_that_a_step_sets_is_lost_with_a_warning(dropped: float) -> None:
    layer: Any = FlexRNN(Noting, 3, 5, recurrent_dropout=dropped)
    with pytest.warns(UserWarning, match="sets the attribute") as caught:
        layer(torch.ones(1, 2, 3))
    assert layer.cells[0].last is None
    (told,) = caught
    assert str(told.message).startswith("Noting sets the attribute last of a copy of itself that")
    assert (told.filename, told.lineno) == (__file__, NOTED)


@pytest.mark.usefixtures("by_reference")
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_a_buffer_that_a_step_sets_stays_without_a_word(dropped: float) -> None:
    layer: Any = FlexRNN(Noting, 3, 5, buffer=True, recurrent_dropout=dropped)
    layer(torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
    assert layer.cells[0].last == 1


def test_a_cell_that_is_called_itself_keeps_its_attributes() -> None:
    cell = Noting(3, 5)
    cell(torch.ones(2, 3))
    assert cell.last == 1


@pytest.mark.usefixtures("by_reference")
def test_a_call_leaves_the_registered_cells_without_parameters() -> None:
    layer = FlexRNN(Nested, 3, 5, bidirectional=True)
    modules = list(layer.modules())
    with torch.no_grad():
        layer(torch.randn(7, 2, 3))
    with pytest.raises(TypeError):
        layer(torch.randn(7, 2, 3), "no state")
    assert all(a is b for a, b in zip(layer.modules(), modules, strict=True))
    assert not list(layer.cells.parameters())


def test_mode_reaches_the_modules_inside_a_cell() -> None:
    layer: Any = FlexRNN(Nested, 3, 5)
    layer.eval()
    assert not any(module.training for module in layer.modules())
    slots = layer._slots[0]
    assert not bind(layer.cells[0], slots, layer).inner.training


def test_repr_shows_the_parameters_where_the_cell_has_them() -> None:
    layer = FlexRNN(Nested, 3, 5, num_layers=2)
    text = repr(layer)
    assert text.startswith("FlexRNN(\n  Nested, 3, 5, num_layers=2\n")
    assert text.count("(0): Linear(in_features=8, out_features=5, bias=True)") == 1
    assert text.count("(0): Linear(in_features=10, out_features=5, bias=True)") == 1
    assert text.count("(0): Parameter containing: [torch.float32 of size 5]") == 2
    assert not list(layer.cells.parameters())


def test_apply_reaches_the_modules_inside_with_their_parameters_in_place() -> None:
    layer: Any = FlexRNN(Nested, 3, 5, num_layers=2)
    seen: list[nn.Module] = []

    def init(module: nn.Module) -> None:
        seen.append(module)
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)

    assert layer.apply(init) is layer
    assert seen[-1] is layer
    assert sum(isinstance(module, nn.LayerNorm) for module in seen) == 2
    for name, parameter in layer.named_parameters():
        filled = "weight" in name and "inner_1" not in name
        assert bool((parameter == 0.25).all()) == filled, name


def test_a_name_that_is_taken_is_refused() -> None:
    class Collides(Nested):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.inner_0_bias = nn.Parameter(torch.zeros(1))

    with pytest.raises(ValueError, match=r"^Collides: parameter .* would be the layer's inner_0_b"):
        move_parameters(Collides(3, 5), nn.Module(), "_l0")
    layer: Any = nn.Module()
    layer.scale_l0 = "something else"
    with pytest.raises(ValueError, match="would be the layer's scale_l0, a name that is taken"):
        move_parameters(Nested(3, 5), layer, "_l0")


class Told(Cell):
    """A cell that is told by which module to squash, in a list if so wanted."""

    State = HiddenState

    def __init__(
        self, input_size, hidden_size, bias=True, device=None, dtype=None, *, squash, listed=False
    ):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.squash = squash
        self.listed = [squash] if listed else None

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        squash = self.listed[0] if self.listed else self.squash
        return HiddenState(squash(self.inner(torch.cat([x, state.h], -1))).tanh())


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_a_module_that_all_cells_are_given_is_registered_once_and_learns_from_all(
    options: dict[str, Any], listed: bool
) -> None:
    kind: dict[str, Any] = {"dtype": torch.float64}
    squash = nn.Linear(5, 5, **kind)
    weights = copy.deepcopy(squash.state_dict())
    layer = FlexRNN(Told, 3, 5, squash=squash, listed=listed, **options, **kind)
    named = dict(layer.named_parameters())
    second = "l1" if "num_layers" in options else "l0_reverse"
    assert [name for name in named if "squash" in name] == ["squash_weight_l0", "squash_bias_l0"]
    assert f"inner_weight_{second}" in named

    x, own = torch.randn(7, 2, 3, **kind), [nn.Linear(5, 5, **kind) for _ in range(2)]
    for module in own:
        module.load_state_dict(weights)

    class Apart(Told):
        def __init__(self, *args: Any, squash: Any, **kwargs: Any):
            super().__init__(*args, squash=squash.pop(), **kwargs)

    alone = FlexRNN(Apart, 3, 5, squash=own, **options, **kind)
    alone.load_state_dict(layer.state_dict(), strict=False)
    for ran in (layer, copy.deepcopy(layer)):
        ran.zero_grad()
        output, _ = ran(x)
        assert_close(output, alone(x)[0])
        output.square().sum().backward()
        alone.zero_grad()
        alone(x)[0].square().sum().backward()
        for name, parameter in ran.named_parameters():
            expected = alone.get_parameter(name).grad
            if "squash" in name:
                other = alone.get_parameter(name.replace("l0", second)).grad
                assert expected is not None
                assert other is not None
                expected = expected + other
            assert_close(parameter.grad, expected)


def test_a_module_that_another_layer_has_been_given_is_refused() -> None:
    squash = nn.Linear(5, 5)
    first = FlexRNN(Told, 3, 5, squash=squash)
    with pytest.raises(ValueError, match=r"^Told: squash has given its weight to another layer; "):
        FlexRNN(Told, 3, 5, squash=squash)
    squash = nn.Sequential(nn.Linear(5, 5))
    second = FlexRNN(Told, 3, 5, squash=copy.deepcopy(squash))
    third = FlexRNN(Told, 3, 5, squash=squash)
    for layer in (first, second, third):
        layer(torch.randn(7, 2, 3))


def test_so_is_a_copy_of_one_for_it_has_no_parameters() -> None:
    layer = FlexRNN(Told, 3, 5, squash=nn.Sequential(nn.Linear(5, 5)))
    whole: Any = copy.deepcopy(layer)
    for squash in (whole.cells[0].squash, copy.deepcopy(whole.cells[0].squash)):
        with pytest.raises(ValueError, match=r"^Told: squash.0 is a copy .* given its weight to a"):
            FlexRNN(Told, 3, 5, squash=squash)
        squash[0].weight, squash[0].bias = nn.Parameter(torch.eye(5)), nn.Parameter(torch.ones(5))
        FlexRNN(Told, 3, 5, squash=squash)(torch.randn(7, 2, 3))
