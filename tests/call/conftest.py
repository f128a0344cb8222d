"""Layers of several cells, both engines, and the same result by hand, sequence by sequence."""

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.call import quick

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (cells.LSTMCell, {}),
    "lstm projected": (cells.LSTMCell, {"proj_size": 2}),
    "gru": (cells.GRUCell, {}),
    "rnn": (cells.RNNCell, {}),
    "peephole": (cells.PeepholeLSTMCell, {}),
    "article peephole": (cells.ArticlePeepholeLSTMCell, {}),
    "layer norm": (cells.LayerNormLSTMCell, {}),
    "naive": (cells.NaiveLSTMCell, {}),
}


class OwnCell(flexrnn.Cell):
    """A cell of nobody's, with an option and a module inside."""

    State = cells.LSTMState
    scale = 1.0

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None):  # fmt: skip
        super().__init__(input_size, hidden_size)
        options: Any = {"bias": bias, "device": device, "dtype": dtype}
        self.inner = nn.Linear(input_size + hidden_size, 2 * hidden_size, **options)
        self.decay = nn.Parameter(torch.rand(hidden_size, dtype=dtype))

    def kept(self) -> Tensor:
        """How much of its memory stays."""
        return torch.sigmoid(self.decay)

    def step(self, x: Any, state: Any) -> Any:
        h, c = state
        a, b = self.inner(torch.cat([x, h], -1)).chunk(2, -1)
        c = self.kept() * c + torch.sin(a) * self.scale
        return cells.LSTMState(torch.tanh(b) * c, c)


class Result(NamedTuple):
    """What a layer returns, with the state's fields as a tuple."""

    output: Tensor  # (T, B, D·width)
    state: tuple[Tensor, ...]
    states: tuple[Tensor, ...]


@pytest.fixture(params=[*KINDS, "relu", "own"])
def kind(request: pytest.FixtureRequest, own_cell: Any) -> tuple[Any, dict[str, Any]]:
    """Each cell in turn with its options; another activation too, and a cell that nobody knows."""
    more = {"relu": (cells.RNNCell, {"nonlinearity": "relu"}), "own": (own_cell, {})}
    return (KINDS | more)[request.param]


@pytest.fixture(scope="module", params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., FlexRNN]:
    """A layer of each cell in turn in float64, I = 3, H = 5."""
    cell, own = KINDS[request.param]

    def made(**options: Any) -> FlexRNN:
        return FlexRNN(cell, 3, 5, **{"dtype": torch.float64, **own, **options})

    return made


@pytest.fixture(params=["reference", "interpreter", "cpu"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each engine that runs here, in force."""
    with flexrnn.backend(request.param):
        yield request.param


@pytest.fixture
def by_the_engine() -> Iterator[None]:
    """The engine that a plain call is for, in force."""
    with flexrnn.backend("cpu"):
        yield


@pytest.fixture
def own_cell() -> type[OwnCell]:
    """A cell that the package does not know."""
    return OwnCell


@pytest.fixture
def on_four_threads() -> Callable[[Callable[[int], None]], None]:
    """Run a function on as many threads at once, each of which is told its number."""

    def run(work: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A call on the long way."""

    def run(call: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(quick, "call", lambda *_: None)
            return call()

    return run


def fields(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def given(state: tuple[Tensor, ...]) -> Any:
    return state[0] if len(state) == 1 else state


def run(layer: FlexRNN, x: Tensor, hx: tuple[Tensor, ...] | None, **options: Any) -> Result:
    """The layer's own result."""
    result = layer(x, None if hx is None else given(hx), return_states=True, **options)
    return Result(result[0], fields(result[1]), fields(result[2]))


def own_state(layer: FlexRNN) -> tuple[Tensor, ...]:
    """The initial state of every layer and direction, `(L·D, width)`: learned, or zeros."""
    names = fields(layer(torch.zeros(1, layer.input_size, dtype=torch.float64))[1])
    if not layer.learn_initial_state:
        return tuple(torch.zeros_like(f) for f in names)
    ways = ("", "_reverse")[: layer.num_directions]
    suffixes = [f"_l{k}{way}" for k in range(layer.num_layers) for way in ways]
    kinds = ("h", "c")[: len(names)]
    return tuple(
        torch.stack([layer.get_parameter(f"initial_{kind}{suffix}") for suffix in suffixes])
        for kind in kinds
    )


def by_hand(
    layer: FlexRNN,
    x: Tensor,
    hx: tuple[Tensor, ...] | None,
    lengths: Sequence[int] | None = None,
    reset: Tensor | None = None,
) -> Result:
    """Each row cut into pieces, each piece a call of its own of the plain layer."""
    T, B, _ = x.shape
    start, rows = own_state(layer), []
    for b in range(B):
        end = T if lengths is None else lengths[b]
        cuts = [] if reset is None else [t for t in range(1, end) if reset[t, b]]
        edges = [0, *cuts, end]
        carried = start if hx is None else tuple(f[:, b] for f in hx)
        rows.append(
            _row(layer, x[:, b], edges, carried, start, reset is not None and bool(reset[0, b]))
        )
    outputs, finals, histories = zip(*rows, strict=True)
    return Result(
        torch.stack(outputs, 1),
        tuple(torch.stack(f, 1) for f in zip(*finals, strict=True)),
        tuple(torch.stack(f, 2) for f in zip(*histories, strict=True)),
    )


def _row(
    layer: FlexRNN,
    x: Tensor,
    edges: list[int],
    hx: tuple[Tensor, ...],
    start: tuple[Tensor, ...],
    afresh: bool,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One row. The first piece takes hx forward, unless it is reset; the last takes it backward."""
    T, D = x.shape[0], layer.num_directions
    forward = torch.arange(layer.num_layers * D) % D == 0
    if edges[-1] == 0:
        width = D * next(f.shape[-1] for f in hx)
        none = tuple(x.new_zeros(len(f), T, f.shape[-1]) for f in hx)
        return x.new_zeros(T, width), hx, none
    pieces, firsts, lasts = list(pairwise(edges)), [], []
    results = []
    for k, (first, last) in enumerate(pieces):
        takes = (forward & (k == 0) & (not afresh)) | (~forward & (k == len(pieces) - 1))
        state = tuple(torch.where(takes[:, None], h, s) for h, s in zip(hx, start, strict=True))
        output, final, states = layer(x[first:last], given(state), return_states=True)
        results.append((output, fields(states)))
        firsts, lasts = firsts or list(fields(final)), list(fields(final))
    rest = T - edges[-1]
    output = torch.cat([*(r[0] for r in results), x.new_zeros(rest, results[0][0].shape[-1])])
    histories = []
    for field in zip(*(r[1] for r in results), strict=True):
        shape = (field[0].shape[0], rest, field[0].shape[-1])
        histories.append(torch.cat([*field, x.new_zeros(shape)], 1))
    final = [torch.where(forward[:, None], b, a) for a, b in zip(firsts, lasts, strict=True)]
    return output, tuple(final), tuple(histories)


def assert_alike(
    layer: FlexRNN,
    ours: Callable[..., Result],
    theirs: Callable[..., Result],
    x: Tensor,
    hx: tuple[Tensor, ...] | None,
    rtol: float = 1e-11,
) -> None:
    """Both give the same numbers and the same gradient by input, state and every parameter."""
    leaves = [x, *(hx or ()), *layer.parameters()]
    found = []
    for call in (ours, theirs):
        result = call()
        tensors = [result.output, *result.state, *result.states]
        loss = torch.zeros((), dtype=torch.float64)
        for tensor in tensors:
            weights = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)
            loss = loss + (tensor * weights.view_as(tensor)).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        found.append([*tensors, *gradients])
    assert_close(found[0], found[1], rtol=rtol, atol=1e-12)


@pytest.fixture(scope="module")
def hand() -> Any:
    """The functions of this file, for tests."""

    class Hand:
        run, by_hand = staticmethod(run), staticmethod(by_hand)
        assert_alike = staticmethod(assert_alike)
        fields, given = staticmethod(fields), staticmethod(given)

    return Hand
