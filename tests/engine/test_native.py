# pyright: reportPrivateUsage=false
# Torch's kernels have no public name.
"""The engine `torch`: right where it runs, refused where it would be another function."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine import native
from flexrnn.engine.step import CannotRunError

T, B, I, H = 6, 3, 4, 5
DOUBLE = torch.float64
LAYERS: dict[str, Callable[..., flexrnn.FlexRNN]] = {
    "LSTM": flexrnn.LSTM,
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "relu": partial(flexrnn.RNN, nonlinearity="relu"),
    "projected": partial(flexrnn.LSTM, proj_size=3),
    "no bias": partial(flexrnn.LSTM, bias=False),
    "two layers, both directions": partial(flexrnn.GRU, num_layers=2, bidirectional=True),
    "projected, both directions": partial(
        flexrnn.LSTM, num_layers=2, bidirectional=True, proj_size=3
    ),
    "batch first": partial(flexrnn.LSTM, batch_first=True, bidirectional=True),
    "in segments": partial(flexrnn.LSTM, checkpoint_every=4),
    "a learned state": partial(flexrnn.LSTM, learn_initial_state=True),
    "dropped weights": partial(flexrnn.LSTM, weight_drop=0.5),
    "dropout": partial(flexrnn.RNN, num_layers=2, dropout=0.5),
    "dropout that is nowhere": partial(flexrnn.LSTM, recurrent_dropout=0.0, zoneout=0.0),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels of torch's own that have run."""
    seen: list[str] = []

    def noting(kernel: str) -> Callable[..., Any]:
        run = getattr(torch, kernel)

        def noted(*args: Any) -> Any:
            seen.append(kernel)
            return run(*args)

        return noted

    for kernel in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        monkeypatch.setattr(torch, kernel, noting(kernel))
    return seen


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from a state"])
def test_it_is_the_reference(kind: str, given: bool, results: Any, ran: list[str]) -> None:
    layer = LAYERS[kind](I, H, dtype=DOUBLE)
    x, hx = torch.randn(T, B, I, dtype=DOUBLE), None
    if given:
        with torch.no_grad(), flexrnn.backend("reference"):
            state = layer(x.transpose(0, 1) if layer.batch_first else x)[1]
        state = state if isinstance(state, tuple) else (state,)
        hx = tuple(torch.randn_like(s).requires_grad_() for s in state)
        hx = hx[0] if len(hx) == 1 else hx
    x = (x.transpose(0, 1) if layer.batch_first else x).requires_grad_()
    right = results(layer, "reference", x, hx)
    assert not ran
    found = results(layer, "torch", x, hx)
    assert ran
    for name, expected in right.items():
        assert_close(found[name], expected, rtol=1e-12, atol=1e-12, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_in_evaluation_mode_it_runs_without_gradients(kind: str, ran: list[str]) -> None:
    layer = LAYERS[kind](I, H, dtype=DOUBLE).eval()
    x = torch.randn(T, B, I, dtype=DOUBLE)
    with flexrnn.backend("reference"):
        right = layer(x)[0]
    with flexrnn.backend("torch"):
        with torch.no_grad():
            assert_close(layer(x)[0], right, rtol=1e-12, atol=1e-12)
        assert len(ran) == 1
        with pytest.raises(CannotRunError, match="no gradients in evaluation mode"):
            layer(x)
        layer.requires_grad_(False)
        layer(x)
        with pytest.raises(CannotRunError, match="no gradients in evaluation mode"):
            layer(x.requires_grad_())


class Louder(flexrnn.cells.LSTMCell):
    """Another function."""

    def step(self, x: Tensor, state: Any) -> Any:
        return super().step(2 * x, state)


class Dropping(flexrnn.cells.GRUCell):
    """Another function by way of a method that its step calls."""

    def drop_recurrent(self, h: Tensor) -> Tensor:
        return 0.5 * h


class Renamed(flexrnn.cells.LSTMCell):
    """The same function."""


class Halving:
    """No cell, but in front of one its step goes first."""

    def step(self, x: Tensor, state: Any) -> Any:
        return type(state)(*(0.5 * field for field in state))


class Mixed(Halving, flexrnn.cells.LSTMCell):
    """Another function by way of a second base."""


class Scaled(flexrnn.cells.GRUCell):
    """A tensor more than torch's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", torch.ones(()))


class Replaced(flexrnn.cells.RNNCell):
    """Its step is replaced below."""


Replaced.step = lambda self, x, state: flexrnn.cells.RNNCell.step(self, -x, state)


LENGTHS = {"lengths": torch.tensor([6, 2, 4])}
REFUSED: dict[str, tuple[Callable[..., flexrnn.FlexRNN], dict[str, Any], str]] = {
    "lengths": (flexrnn.LSTM, LENGTHS, "have no lengths"),
    "reset": (flexrnn.GRU, {"reset": torch.rand(T, B) < 0.5}, "have no resets"),
    "zoneout": (partial(flexrnn.LSTM, zoneout=0.5), {}, "have no zoneout"),
    "recurrent dropout": (
        partial(flexrnn.LSTM, recurrent_dropout=0.5),
        {},
        "have no recurrent dropout",
    ),
    "another cell": (flexrnn.PeepholeLSTM, {}, "PeepholeLSTMCell is none of torch's"),
    "another step": (partial(flexrnn.FlexRNN, Louder), {}, "Louder is none of torch's"),
    "another method": (partial(flexrnn.FlexRNN, Dropping), {}, "has a drop_recurrent of its own"),
    "another base": (partial(flexrnn.FlexRNN, Mixed), {}, "Mixed .* has a step of its own"),
    "a replaced step": (partial(flexrnn.FlexRNN, Replaced), {}, "has a step of its own"),
    "a tensor more": (partial(flexrnn.FlexRNN, Scaled), {}, "other tensors than torch's.* scale"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_another_function_is_refused_by_name(what: str, ran: list[str]) -> None:
    make, marks, why = REFUSED[what]
    layer = make(I, H, backend="torch")
    with pytest.raises(CannotRunError, match=why):
        layer(torch.randn(T, B, I), **marks)
    assert not ran
    if not marks:
        assert re.search(
            why, "; ".join(flexrnn.explain(layer, torch.randn(T, B, I)).steps[0].causes)
        )


def test_zoneout_in_evaluation_mode_is_refused() -> None:
    layer = flexrnn.GRU(I, H, zoneout=0.5, backend="torch").eval()
    with torch.no_grad(), pytest.raises(CannotRunError, match="have no zoneout"):
        layer(torch.randn(T, B, I))


def test_recurrent_dropout_in_evaluation_mode_is_nothing(ran: list[str]) -> None:
    layer = flexrnn.LSTM(I, H, recurrent_dropout=0.5, backend="torch").eval()
    with torch.no_grad():
        layer(torch.randn(T, B, I))
    assert ran


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "relu", "projected, both directions"])
def test_float32_is_as_exact_as_the_reference(
    kind: str, results: Any, norms: Callable[..., Tensor], ran: list[str]
) -> None:
    layer = LAYERS[kind](I, H)
    golden, few = copy.deepcopy(layer).double(), 4 * torch.finfo(torch.float32).eps
    found: dict[str, list[Tensor]] = {}
    for _ in range(5):
        x = torch.randn(T, B, I)
        exact = results(golden, "reference", x.double().requires_grad_(), None)
        theirs = results(layer, "reference", x.clone().requires_grad_(), None)
        ours = results(layer, "torch", x.clone().requires_grad_(), None)
        for name in exact:
            found.setdefault(name, []).append(norms(name, ours[name], theirs[name], exact[name]))
    assert ran
    for name, every in found.items():
        error, own, norm = torch.stack(every).unbind(1)
        ratio = (error / (2 * own + few * norm)).median()
        assert ratio <= 1, f"{name}: {ratio:.3g} of what is allowed"


def test_on_the_cpu_it_has_second_derivatives(ran: list[str]) -> None:
    layer, x = flexrnn.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    found = []
    for engine in ("torch", "reference"):
        with flexrnn.backend(engine):
            (first,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
            found += torch.autograd.grad(first.square().sum(), x)
    assert ran
    assert_close(*found)


def test_a_state_of_every_step_is_there_where_it_is_the_output() -> None:
    x = torch.randn(T, B, I)
    with flexrnn.backend("torch"):
        output, _, states = flexrnn.GRU(I, H)(x, return_states=True)
        assert_close(states[0], output, rtol=0, atol=0)
        with pytest.raises(CannotRunError, match="no state of every step but the output"):
            flexrnn.LSTM(I, H)(x, return_states=True)


def test_what_is_packed_and_what_is_a_function_is_refused() -> None:
    packed = pack_sequence([torch.randn(3, I), torch.randn(2, I)])
    with flexrnn.backend("torch"):
        with pytest.raises(CannotRunError, match="no lengths of sequences"):
            flexrnn.LSTM(I, H)(packed)
        with pytest.raises(CannotRunError, match="a function of `scan`"):
            flexrnn.scan(lambda x, h: torch.tanh(x + h), torch.zeros(B, I), torch.randn(T, B, I))


def test_a_cell_that_is_changed_in_place_is_refused(ran: list[str]) -> None:
    layer, x = flexrnn.FlexRNN(Renamed, I, H, backend="torch"), torch.randn(T, B, I)
    layer(x)
    assert len(ran) == 1
    cell: Any = layer.cells[0]
    cell.step = partial(cells.LSTMCell.step, cell)
    with pytest.raises(CannotRunError, match="has a step of its own"):
        layer(x)


def test_auto_does_not_take_it_and_explain_names_it(ran: list[str]) -> None:
    layer, x = flexrnn.LSTM(I, H, num_layers=2), torch.randn(T, B, I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert not ran
    with flexrnn.backend("torch"):
        told = flexrnn.explain(layer, x)
        assert told.engine == "torch"
        assert not told.steps[0].causes
        assert "layer 1: a kernel of torch's own" in str(told)
        told = flexrnn.explain(flexrnn.PeepholeLSTM(I, H), x)
    assert told.engine == "none"
    assert "not by torch: PeepholeLSTMCell is none of torch's LSTM, GRU and RNN" in str(told)


def test_torch_compile_is_refused() -> None:
    layer = flexrnn.LSTM(I, H, backend="torch")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=re.escape("do not run under torch.compile")):
        compiled(torch.randn(T, B, I))
    torch.compiler.reset()


def test_being_written_down_is_refused() -> None:
    layer = flexrnn.GRU(I, H, backend="torch")
    with pytest.raises(CannotRunError, match="not written down"):
        make_fx(lambda x: layer(x)[0], tracing_mode="fake")(torch.randn(T, B, I))


def test_transforms_take_the_reference(ran: list[str]) -> None:
    layer = flexrnn.GRU(I, H, dtype=DOUBLE, backend="torch")
    x = torch.randn(T, B, I, dtype=DOUBLE)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=1, out_dims=1)(x)
    assert not ran
    assert_close(per_sample, torch.func.grad(loss)(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", ["LSTM", "GRU", "RNN"])
def test_under_autocast_it_is_a_layer_in_the_half_type(cls: str, ran: list[str]) -> None:
    layer = getattr(flexrnn, cls)(I, H, backend="torch")
    theirs = getattr(nn, cls)(I, H)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = layer(x)
    assert ran
    right, _ = theirs.bfloat16()(x.bfloat16())
    assert_close(output, right, rtol=0, atol=0)
    output.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}
    assert {s.dtype for s in (state if isinstance(state, tuple) else (state,))} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 768, 768, "lstm"), True),
        ((16, 768, 768, "gru"), False),
        ((16, 768, 1152, "lstm"), False),
        ((16, 32, 768, "lstm"), False),
        ((12, 768, 768, "lstm"), False),
        ((256, 768, 768, "lstm"), False),
    ],
)
def test_where_cudnn_keeps_its_weights(sizes: tuple[Any, ...], expected: bool) -> None:
    assert native.is_persistent(*sizes) == expected
