"""`auto` takes torch's kernel where it is the faster one: on cards, for what cuDNN keeps there.

That there is a card is pretended: tensors say that they are on it, and torch which one it is. All
else is as ever, from the layer to torch's kernel, which is the one for the CPU here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.call import quick
from flexrnn.engine import native

HALF = torch.float16
T, B, WIDTH = 3, 16, 128
LSTM = partial(flexrnn.LSTM, WIDTH, WIDTH)
CARD = SimpleNamespace(major=9, minor=0, multi_processor_count=132)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One of the right kind, to be changed."""
    card = SimpleNamespace(**vars(CARD))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(quick, "call", lambda *_: None)  # which is for tensors on the CPU, as these
    return card


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engine `torch`, as often as it has run."""
    seen, run = list[str](), native.run

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append("torch")
        return run(*args, **kwargs)

    monkeypatch.setattr(native, "run", noted)
    return seen


class Kind(NamedTuple):
    """A call of a layer."""

    layer: Callable[..., flexrnn.FlexRNN]
    dtype: torch.dtype = HALF
    steps: int = T
    rows: int = B
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self) -> Any:
        torch.manual_seed(0)
        layer = self.layer(dtype=self.dtype)
        x = torch.randn(self.steps, self.rows, layer.input_size, dtype=self.dtype)
        with self.within():
            return layer(x)


def evaluated(**options: Any) -> flexrnn.FlexRNN:
    return LSTM(**options).eval()


def in_half() -> Any:
    return torch.autocast("cpu", dtype=HALF)


FASTER = {
    "LSTM": (Kind(LSTM), 1),
    "layers and directions": (Kind(partial(LSTM, num_layers=2, bidirectional=True)), 4),
    "other widths": (Kind(partial(flexrnn.LSTM, 256, 384), rows=128), 1),
    "autocast": (Kind(LSTM, torch.float32, within=in_half), 1),
    "evaluation": (Kind(evaluated, within=torch.no_grad), 1),
}
SLOWER = {
    "another cell": Kind(partial(flexrnn.GRU, WIDTH, WIDTH)),
    "a cell that torch has not": Kind(partial(flexrnn.PeepholeLSTM, WIDTH, WIDTH)),
    "another type": Kind(LSTM, torch.bfloat16),
    "another type than autocast's": Kind(LSTM, torch.float32),
    "rows by twelve": Kind(LSTM, rows=12),
    "many rows": Kind(LSTM, rows=136),
    "an odd width": Kind(partial(flexrnn.LSTM, WIDTH, 96)),
    "an odd input": Kind(partial(flexrnn.LSTM, 96, WIDTH)),
    "a projection": Kind(partial(flexrnn.LSTM, WIDTH, 256, proj_size=WIDTH)),
    "a single step": Kind(LSTM, steps=1),
    "evaluation with gradients": Kind(evaluated),
    "zoneout": Kind(partial(LSTM, zoneout=0.5)),
}


@pytest.mark.parametrize("kind", FASTER)
def test_it_runs(kind: str, card: SimpleNamespace, ran: list[str]) -> None:
    call, times = FASTER[kind]
    found = call()
    assert ran == ["torch"] * times
    with flexrnn.backend("torch"):
        assert_close(found, call(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", SLOWER)
def test_it_does_not(kind: str, card: SimpleNamespace, ran: list[str]) -> None:
    SLOWER[kind]()
    assert not ran


@pytest.mark.parametrize(
    "other",
    [{"major": 7, "minor": 5}, {"major": 8, "minor": 6}, {"multi_processor_count": 66}],
    ids=["an old card", "a small card", "a part of a card"],
)
def test_it_does_not_on(other: dict[str, int], card: SimpleNamespace, ran: list[str]) -> None:
    vars(card).update(other)
    Kind(LSTM)()
    assert not ran


def test_it_does_not_without_cudnn_or_cuda(
    card: SimpleNamespace, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
        Kind(LSTM)()
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "7.0")
        Kind(LSTM)()
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: False))
    Kind(LSTM)()
    assert not ran


def test_explain_names_it(card: SimpleNamespace) -> None:
    told = flexrnn.explain(LSTM(dtype=HALF), torch.randn(T, B, WIDTH, dtype=HALF))
    assert told.engine == "torch"
    assert told.steps[0].causes == ()
