"""For every test: a seed, one thread, NaN where nobody wrote, quick compiling; pairs with torch."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

import flexrnn
from flexrnn.engine import fallback

from .quickly import compile_quickly

DROP_INS = {
    "lstm": (flexrnn.LSTM, nn.LSTM),
    "gru": (flexrnn.GRU, nn.GRU),
    "rnn": (flexrnn.RNN, nn.RNN),
    "lstm cell": (flexrnn.LSTMCell, nn.LSTMCell),
    "gru cell": (flexrnn.GRUCell, nn.GRUCell),
    "rnn cell": (flexrnn.RNNCell, nn.RNNCell),
}
LAYERS, CELLS = list(DROP_INS)[:3], list(DROP_INS)[3:]


@pytest.fixture(scope="session", autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # switches torch's fill_uninitialized_memory on
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def every_cause_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fall-back warns in every test, whatever ran before."""
    monkeypatch.setattr(fallback, "_warned", set())


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer means does not depend on how fast its loop is."""
    compile_quickly(monkeypatch)


@pytest.fixture
def by_reference() -> Iterator[None]:
    """Layers run by the reference: for steps that no program can say, and exact comparisons."""
    with flexrnn.backend("reference"):
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """At these sizes several threads only wait for one another, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def only_what_is_there_is_seeded() -> Iterator[None]:
    """For a card that there is not, torch notes the whole stack at every seed, once a kind."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.cuda, torch.xpu, torch.mtia):
            if not kind.is_available():
                patch.setattr(kind, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=LAYERS)
def layers(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our class and torch's, of each of the three layers."""
    return DROP_INS[request.param]


@pytest.fixture(scope="module", params=CELLS)
def cells(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our class and torch's, of each of the three cells."""
    return DROP_INS[request.param]


@pytest.fixture(scope="module", params=DROP_INS)
def classes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our class and torch's, of all six."""
    return DROP_INS[request.param]


@pytest.fixture
def twins() -> Callable[..., tuple[Any, Any]]:
    """From a pair of classes and arguments, a module of each in float64 with the same weights."""

    def make(classes: tuple[Any, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        ours, theirs = (cls(*args, **{"dtype": torch.float64, **kwargs}) for cls in classes)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        return ours, theirs

    return make


@pytest.fixture
def refused() -> Callable[[Callable[[], object], type[Exception], str], None]:
    """Assert that a call raises exactly this; three dots in the message stand for anything."""

    def check(call: Callable[[], object], error: type[Exception], message: str) -> None:
        pattern = re.escape(message).replace(re.escape("..."), ".*")
        with pytest.raises(error, match=f"(?s)^{pattern}$") as caught:
            call()
        assert type(caught.value) is error

    return check


def fresh(value: Any) -> Any:
    """The same arguments with gradients of their own; floating-point tensors only."""
    if isinstance(value, PackedSequence):
        return PackedSequence(fresh(value.data), *value[1:])
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_()
    return value if value is None else tuple(map(fresh, value))


def floats(value: Any) -> list[Tensor]:
    """The tensors inside nested tuples, in order; of a packed sequence the data alone."""
    if isinstance(value, (Tensor, PackedSequence)):
        return [value.data if isinstance(value, PackedSequence) else value]
    return [] if value is None else [tensor for part in value for tensor in floats(part)]


def results(module: nn.Module, *args: Any, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """What a module returns, and the gradients of all its arguments and parameters."""
    args = fresh(args)
    torch.manual_seed(seed)
    returned = module(*args)
    # Weights of its own for every number, so that no two gradients can be mistaken.
    outs = floats(returned)
    loss = sum((o * torch.linspace(-1, 2, o.numel()).view_as(o).to(o)).sum() for o in outs)
    assert isinstance(loss, Tensor)
    return returned, list(torch.autograd.grad(loss, [*floats(args), *module.parameters()]))


@pytest.fixture
def assert_same() -> Callable[..., Any]:
    """Assert that two modules return the same from the same seed, and have the same gradients."""

    def same(
        ours: nn.Module, theirs: nn.Module, *args: Any, rtol: float = 1e-12, atol: float = 1e-12
    ) -> Any:
        got, got_gradients = results(ours, *args)
        expected, expected_gradients = results(theirs, *args)
        assert_close(got, expected, rtol=rtol, atol=atol)
        assert_close(got_gradients, expected_gradients, rtol=rtol, atol=atol)
        return got

    return same
