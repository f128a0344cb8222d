# pyright: reportPrivateUsage=false
# Caches and settings of Dynamo have no public names.
"""`torch.compile(fullgraph=True)`: one node a direction, right numbers, and guards that notice."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine import scan

from ..graphs import compiled
from ..lru import LRUCell
from .gated import GatedCell, GatesCell
from .rotated import RotatedCell

T, B, I, H = 5, 3, 2, 4
pytestmark = pytest.mark.usefixtures("by_program")


def sequence(steps: int = T, batch: int = B) -> Tensor:
    return torch.randn(steps, batch, I, dtype=torch.float64, requires_grad=True)


LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": flexrnn.LSTM,
    "two layers, two directions": partial(flexrnn.LSTM, num_layers=2, bidirectional=True),
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "projected": partial(flexrnn.LSTM, proj_size=3),
    "batch first": partial(flexrnn.GRU, batch_first=True),
    "peephole": flexrnn.PeepholeLSTM,
    "naive": flexrnn.NaiveLSTM,
    "article": flexrnn.ArticlePeepholeLSTM,
    "layer norm": flexrnn.LayerNormLSTM,
    "made ahead": partial(flexrnn.FlexRNN, RotatedCell),
    "a complex state": partial(flexrnn.FlexRNN, LRUCell),
    "a module `gates`": partial(flexrnn.FlexRNN, GatedCell),
    "a parameter `gates`": partial(flexrnn.FlexRNN, GatesCell),
    "zoneout": partial(flexrnn.LSTM, zoneout=0.3),
    "recurrent dropout": partial(flexrnn.LSTM, recurrent_dropout=0.3),
    "weight drop": partial(flexrnn.LSTM, weight_drop=0.3),
    "dropout": partial(flexrnn.LSTM, num_layers=2, dropout=0.3),
    "learned initial state": partial(flexrnn.LSTM, learn_initial_state=True),
    "checkpointed": partial(flexrnn.GRU, checkpoint_every=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_and_gradients(name: str, same_as_reference: Callable[..., None]) -> None:
    layer = LAYERS[name](I, H, dtype=torch.float64)
    call, graphs = compiled(layer)
    same_as_reference(lambda x: (call if graphs_wanted() else layer)(x), layer, sequence())
    assert graphs.scans == [layer.num_layers * layer.num_directions]


def graphs_wanted() -> bool:
    """Whether the call is not the reference's, which needs no compiler."""
    return scan.in_force("auto") != "reference"


EXTRAS: dict[str, Callable[[], dict[str, Any]]] = {
    "lengths": lambda: {"lengths": torch.tensor([2, 5, 3])},
    "reset": lambda: {"reset": torch.rand(T, B) < 0.3},
    "states": lambda: {"return_states": True},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_a_call_may_ask_for(name: str, same_as_reference: Callable[..., None]) -> None:
    layer, extra = flexrnn.LSTM(I, H, bidirectional=True, dtype=torch.float64), EXTRAS[name]()
    call, graphs = compiled(layer)
    same_as_reference(lambda x: (call if graphs_wanted() else layer)(x, **extra), layer, sequence())
    assert graphs.scans == [2]


def test_the_number_of_nodes_does_not_depend_on_the_length() -> None:
    sizes = []
    for steps in (2, 50):
        torch._dynamo.reset()
        call, graphs = compiled(flexrnn.LSTM(I, H, num_layers=2, dtype=torch.float64))
        call(sequence(steps))
        sizes += graphs.sizes
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_lengths_and_batches_need_no_other_graph(
    dynamic: bool | None, same_as_reference: Callable[..., None]
) -> None:
    layer = flexrnn.LSTM(I, H, bidirectional=True, dtype=torch.float64)
    call, graphs = compiled(layer, dynamic=dynamic)
    counts = []
    for steps, batch in ((5, 3), (7, 4), (2, 9), (11, 2)):
        run = lambda x: (call if graphs_wanted() else layer)(x)  # noqa: E731
        same_as_reference(run, layer, sequence(steps, batch))
        counts.append(len(graphs.sizes))
    assert counts[-1] == counts[0 if dynamic else 1]  # torch finds out at the second call


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
def test_inductor(same_as_reference: Callable[..., None]) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    call = torch.compile(layer, fullgraph=True)
    same_as_reference(lambda x: (call if graphs_wanted() else layer)(x), layer, sequence())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of Dynamo's looking
def test_a_packed_sequence_with_a_break_of_the_graph(
    same_as_reference: Callable[..., None],
) -> None:  # torch follows neither pack_padded_sequence nor pad_packed_sequence
    layer = flexrnn.GRU(I, H, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
        return layer(packed)[0].data

    broken = torch.compile(call, backend="aot_eager")
    same_as_reference(lambda x: (broken if graphs_wanted() else call)(x), layer, sequence())


def test_streaming_and_a_function_without_a_layer() -> None:
    layer, x = flexrnn.GRU(I, H, dtype=torch.float64), sequence().detach()
    call, graphs = compiled(layer.step)
    with torch.no_grad():
        _, state = call(x[0])
        assert_close(call(x[1], state), layer.step(x[1], state), rtol=1e-12, atol=1e-12)
    assert graphs.scans == [1, 1]

    rate = [0.5]

    def leak(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return rate[0] * h + torch.tanh(x @ w)

    w, h = torch.randn(I, H).double(), torch.zeros(B, H).double()
    call, graphs = compiled(lambda x: flexrnn.scan(leak, h, x, w))
    for value in (0.5, 0.25):
        rate[0] = value
        assert_close(call(x), flexrnn.scan(leak, h, x, w), rtol=1e-12, atol=1e-12)
    assert set(graphs.scans) == {1}


class Leak(nn.Module):
    """A module that is a step, and has a method that is one."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.5

    def forward(self, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return self.rate * h + torch.tanh(x @ w)

    def method(self, x: Tensor, h: Tensor, w: Tensor) -> Tensor:
        return self.rate * h + torch.tanh(x @ w)


STEPS: dict[str, Callable[[Leak], Callable[..., Tensor]]] = {
    "a module": lambda leak: leak,
    "a method": lambda leak: leak.method,
}


@pytest.mark.parametrize("kind", STEPS)
def test_what_a_step_without_a_layer_may_be(kind: str) -> None:
    leak, w, h = Leak(), torch.randn(I, H).double(), torch.zeros(B, H).double()
    call, graphs = compiled(lambda x: flexrnn.scan(STEPS[kind](leak), h, x, w))
    x = sequence().detach()
    for rate in (0.5, 0.25):
        leak.rate = rate
        with flexrnn.backend("reference"):
            right = flexrnn.scan(STEPS[kind](leak), h, x, w)
        assert_close(call(x), right, rtol=1e-12, atol=1e-12)
    assert set(graphs.scans) == {1}


class OptionsCell(flexrnn.Cell):
    """Its result depends on an attribute, an inner module's, a mode, and a list."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, device=device, dtype=dtype)
        self.leak, self.nested = 0.5, [2.0]

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        new = self.norm(self.inner(x)) * self.nested[0] * (0.5 if self.training else 1.0)
        return cells.HiddenState(self.leak * state.h + new)


NUMBERS: dict[str, Callable[[Any, int], object]] = {
    "a fraction": lambda cell, k: setattr(cell, "leak", 0.15 + k / 5),
    "a count": lambda cell, k: setattr(cell, "leak", k + 2),
    "inside a list": lambda cell, k: cell.nested.__setitem__(0, 0.3 + k),
    "of a module inside": lambda cell, k: setattr(cell.norm, "eps", 0.1 + k),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_number_that_changes_again_and_again_is_seen(backend: str, number: str) -> None:
    layer, x = flexrnn.FlexRNN(OptionsCell, I, H, dtype=torch.float64), sequence()
    call = torch.compile(layer, fullgraph=True, backend=backend)
    for k in range(4):  # after two values torch would take a number for a variable
        NUMBERS[number](layer.cells[0], k)
        with flexrnn.backend("reference"):
            right = layer(x)[0]
        assert_close(call(x)[0], right, rtol=1e-12, atol=1e-12)
    config = torch._dynamo.config
    assert (config.specialize_float, config.specialize_int) == (False, False)  # as it was


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute": lambda layer: setattr(layer.cells[0], "leak", 0.1),
    "inside a list": lambda layer: layer.cells[0].nested.__setitem__(0, 3.0),
    "an option of a module inside": lambda layer: setattr(layer.cells[0].norm, "eps", 0.3),
    "eval": lambda layer: layer.eval(),
    "a weight in place": lambda layer: layer.get_parameter("inner_weight_l0").data.mul_(2),
    "another weight": lambda layer: setattr(
        layer, "inner_weight_l0", nn.Parameter(torch.randn(H, I).double())
    ),
    "a frozen weight": lambda layer: layer.get_parameter("inner_weight_l0").requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_calls_is_seen(change: str) -> None:
    layer = flexrnn.FlexRNN(OptionsCell, I, H, dtype=torch.float64)
    call, graphs = compiled(layer)
    x = sequence()
    before = call(x)[0].detach()
    CHANGES[change](layer)
    after = call(x)[0]
    with flexrnn.backend("reference"):
        right = layer(x)[0]
    assert_close(after, right, rtol=1e-12, atol=1e-12)
    assert (change == "a frozen weight") == torch.equal(after.detach(), before)
    leaves = [p for p in layer.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in (after, right)]
    assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert set(graphs.scans) == {1}


def test_the_backend_in_force_is_seen() -> None:
    layer, x = flexrnn.GRU(I, H, dtype=torch.float64), sequence()
    call, graphs = compiled(layer)
    call(x)
    with flexrnn.backend("reference"):
        call(x)
    call(x)
    assert graphs.scans == [1, 0]
    with torch.no_grad():
        assert not call(x)[0].requires_grad


def test_a_step_that_is_no_program_is_unrolled_with_a_warning() -> None:
    def sort(x: Tensor, h: Tensor) -> Tensor:
        return ((x.sum(-1, True) + h).tanh() / 2).erfinv()

    call, graphs = compiled(lambda x: flexrnn.scan(sort, torch.zeros(B, H).double(), x)[0])
    x = sequence()
    with pytest.warns(flexrnn.FallbackWarning, match="erfinv"):
        got = call(x)
    assert graphs.scans == [0]
    with flexrnn.backend("reference"):
        assert_close(got, flexrnn.scan(sort, torch.zeros(B, H).double(), x)[0])


class Unseen:
    """A descriptor that leaves an attribute to `Module.__getattr__`, which Dynamo does not see."""

    def __get__(self, cell: object, owner: type) -> Any:
        raise AttributeError


class BrokenCell(cells.RNNCell):
    """Its step is one that Dynamo does not follow to the end."""

    scale = Unseen()

    def __init__(self, input_size: int, hidden_size: int, *, breaks: str, **options: Any):
        super().__init__(input_size, hidden_size, **options)
        self.breaks = breaks
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        if self.breaks == "a branch" and state.h.sum() > 1e9:
            raise ValueError
        if self.breaks == "a call":
            torch._dynamo.graph_break()
        if self.breaks == "a descriptor":
            x = x * self.scale
        return super().step(x, state)


@pytest.mark.filterwarnings("ignore:__bool__ cannot be compiled")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of Dynamo's looking
@pytest.mark.parametrize("breaks", ["a branch", "a call", "a descriptor"])
def test_a_step_that_breaks_the_graph(breaks: str) -> None:
    broken = flexrnn.FlexRNN(BrokenCell, I, H, dtype=torch.float64, breaks=breaks)
    for layer in (broken, flexrnn.GRU(I, H, dtype=torch.float64)):  # and one that follows
        x = sequence()
        assert_close(torch.compile(layer, backend="aot_eager")(x)[0], layer(x)[0])


def test_a_transform_inside_a_compiled_function() -> None:
    layer, x = flexrnn.GRU(I, H, dtype=torch.float64), sequence().detach()

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: layer(x)[0].square().sum())(x)

    call, _ = compiled(gradient)
    assert_close(call(x), gradient(x), rtol=1e-10, atol=1e-12)
