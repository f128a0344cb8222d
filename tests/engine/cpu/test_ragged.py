"""Sequences that end at different steps: what is not there is neither computed nor read."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.engine.cpu import engine, kernel, plan
from flexrnn.engine.cpu.kernel import STARTS, Launch
from flexrnn.engine.step import CannotRunError

T, B, I, H = 9, 11, 3, 21
LENGTHS = torch.tensor([3, 9, 1, 9, 8, 2, 5, 5, 9, 7, 4])
CELLS = [cells.LSTMCell, cells.GRUCell, cells.RNNCell, cells.LayerNormLSTMCell,
         cells.PeepholeLSTMCell]  # fmt: skip


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in tensors(part)]


def packed_results(layer: flexrnn.FlexRNN, x: Tensor, hx: Any, backend: str) -> list[Tensor]:
    """Results, and the gradients of a weighted sum of them, of a packed sequence."""
    x, *state = (t.detach().clone().requires_grad_() for t in (x, *hx))
    given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    with flexrnn.backend(backend):
        output, final = layer(given, state[0] if len(state) == 1 else tuple(state))
    assert isinstance(output, PackedSequence)
    found = [output.data, *tensors(final)]
    loss = torch.zeros((), dtype=x.dtype)
    for tensor in found:
        loss = loss + (tensor * torch.linspace(-1, 2, tensor.numel()).view_as(tensor)).sum()
    return [*found, *torch.autograd.grad(loss, [x, *state, *layer.parameters()])]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_packed_sequence(cell: Any, bidirectional: bool, threads: Callable[[int], Any]) -> None:
    layer = flexrnn.FlexRNN(
        cell, I, H, num_layers=2, bidirectional=bidirectional, dtype=torch.float64
    )
    x = torch.randn(T, B, I, dtype=torch.float64)
    fields = len(cell.State._fields)
    hx = [torch.randn(len(layer.cells), B, H, dtype=torch.float64) for _ in range(fields)]
    right = packed_results(layer, x, hx, "reference")
    for count in (1, 2, 3):
        with threads(count):
            found = packed_results(layer, x, hx, "cpu")
        for ours, theirs in zip(found, right, strict=True):
            assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.usefixtures("products")
def test_threads_that_share_units(threads: Callable[[int], Any]) -> None:
    """Weights above 4 MiB, so that all go through all rows."""
    layer = flexrnn.LSTM(8, 380, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(T, B, 8, dtype=torch.float64), torch.zeros(2, B, 380, dtype=torch.float64)
    right = packed_results(layer, x, (hx, hx), "reference")
    with threads(2):
        found = packed_results(layer, x, (hx, hx), "cpu")
    for ours, theirs in zip(found, right, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int] | None]:
    """Of every loop that runs, how many rows its steps have; None where they have all."""
    noted: list[list[int] | None] = []
    run = Launch.__call__

    def note(self: Launch, memory: dict[str, Tensor], *steps: int) -> None:
        starts = memory.get(STARTS)
        noted.append(None if starts is None else starts.diff().tolist())
        run(self, memory, *steps)

    monkeypatch.setattr(Launch, "__call__", note)
    return noted


def test_what_is_not_there_is_not_computed(rows: list[list[int] | None]) -> None:
    layer, x = flexrnn.LSTM(I, H), torch.randn(T, B, I)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    with torch.no_grad():
        layer(packed)
        layer(x, lengths=LENGTHS)
        layer(x, lengths=[T] * B)  # nothing is missing
        layer(pack_padded_sequence(x[:, :1], LENGTHS[1:2]))
    assert rows == [packed.batch_sizes.tolist()] * 2 + [None] * 2


def test_padding_is_not_read() -> None:
    layer = flexrnn.LSTM(I, H, bidirectional=True)
    x = torch.randn(T, B, I)
    behind = torch.arange(T)[:, None] >= LENGTHS
    found = []
    for value in (torch.nan, 0.0):
        given = x.masked_fill(behind[..., None], value).requires_grad_()
        with flexrnn.backend("cpu"):
            output, (h, c) = layer(given, lengths=LENGTHS)
        loss = output.square().sum() + h.sum() + c.sum()
        found.append([output, h, c, *torch.autograd.grad(loss, [given, *layer.parameters()])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not found[0][0][behind].any()
    assert not found[0][3][behind].any()


def test_gradients_of_gradients() -> None:
    layer = flexrnn.GRU(2, 3, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        with flexrnn.backend("cpu"):
            return layer(x, lengths=torch.tensor([2, 4, 1]))[0]

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(run, x)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_step_that_cannot_be_compiled(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise CannotRunError("not today")

    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    with flexrnn.backend("reference"):
        right = layer(x, lengths=LENGTHS)
    monkeypatch.setattr(engine, "forward", refuse)
    if backend == "cpu":
        with flexrnn.backend(backend), pytest.raises(RuntimeError, match="not today"):
            layer(x, lengths=LENGTHS)
        return
    with pytest.warns(flexrnn.FallbackWarning, match="not today"):
        torch.testing.assert_close(layer(x, lengths=LENGTHS), right)


FAULTS = {
    "rows that begin read what another has left": (
        "if (later > f.all.first) {",
        "if (later > f.all.last) {",
    ),
    "all rows read the first state where some begin": (
        "f.rows.last = other.rows.first = later;",
        "f.rows.last = other.rows.first = f.rows.first;",
    ),
    "the last states are not put aside": ("r = most(stay,", "r = most(f.all.last,"),
    "a thread leaves out its last row": ("(mine.last, rows)};", "(mine.last, rows) - 1};"),
    "a step lies where another does": ("here = at ? at[now]", "here = at ? at[now] - (now > 1)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_line_of_cpp_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    compiled, (right, wrong) = kernel.library, FAULTS[fault]

    def library(text: str, **rest: Any) -> Any:
        assert right in text
        return compiled(text.replace(right, wrong), **rest)

    monkeypatch.setattr(kernel, "library", library)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    layer = flexrnn.RNN(I, H, bidirectional=True, dtype=torch.float64)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), torch.ones(2, B, H, dtype=torch.float64)
    results = (packed_results(layer, x, [hx], backend) for backend in ("cpu", "reference"))
    assert any(
        not (ours - theirs).norm() <= 1e-12 * theirs.norm()
        for ours, theirs in zip(*results, strict=True)
    )


def test_the_layout_of_a_call_serves_other_lengths(rows: list[list[int] | None]) -> None:
    """How many rows there are is told at run time."""
    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    for lengths in (LENGTHS, LENGTHS.flip(0), (LENGTHS - 3).clamp_min(0)):
        found = []
        for backend in ("cpu", "reference"):
            with flexrnn.backend(backend):
                found.append(layer(x, lengths=lengths))
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
    assert len(rows) == 3


class Echo(cells.RNNCell):
    """Nothing of its state has a derivative, as in an echo-state network."""

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        with torch.no_grad():
            return super().step(x, state)


def test_a_state_without_derivative_hands_none_on() -> None:
    layer = flexrnn.FlexRNN(Echo, I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    hx = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    lengths = LENGTHS.clone()
    lengths[1] = 0  # which ends in its first state
    output, final = layer(x, hx, lengths=lengths)
    (gradient,) = torch.autograd.grad(final.sum(), [hx])
    assert_close(gradient.amax((0, 2)), (lengths == 0).double(), rtol=0, atol=0)
    assert gradient.amin() == 0
    assert not output.requires_grad
    assert not layer(x, hx, lengths=LENGTHS)[1].requires_grad
    with flexrnn.backend("reference"):
        assert_close((output, final), layer(x, hx, lengths=lengths))


def test_explain_is_told_of_lengths() -> None:
    x, layer = torch.randn(T, B, I), flexrnn.LSTM(I, H, num_layers=2)
    saved = int(LENGTHS.sum()) * 6 * H * 4  # four gates, h and c, as float32
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    for found in (flexrnn.explain(layer, x, lengths=LENGTHS), flexrnn.explain(layer, packed)):
        assert [step.saved_bytes for step in found.steps] == [saved] * 2
        assert {step.engine for step in found.steps} == {"cpu"}
    cut = torch.zeros(T, B, dtype=torch.bool)
    first, _ = flexrnn.explain(layer, x, reset=cut).steps
    assert first.program is not None
    assert first.program.fields == ("h", "c", "initial.h", "initial.c")
    narrow, _ = flexrnn.explain(layer.bfloat16(), x.bfloat16(), lengths=LENGTHS).steps
    assert (narrow.engine, narrow.dtype) == ("cpu", torch.float32)
    with pytest.raises(ValueError, match=r"^lengths: expected shape"):
        flexrnn.explain(layer, x.bfloat16(), lengths=[1])


def test_explain_knows_what_of_a_run_is_kept_and_how_long_it_is() -> None:
    x = torch.randn(5, B, I)
    layer = flexrnn.LSTM(I, H, bidirectional=True, checkpoint_every=2)
    found = flexrnn.explain(layer, x)  # whose last segment is of one step
    assert [step.saved_bytes for step in found.steps] == [5 * B * 6 * H * 4] * 2
    assert found.engine == "cpu"
    whole = flexrnn.LSTM(I, H, backend="torch")
    assert flexrnn.explain(whole, x).engine == "torch"
    (step,) = flexrnn.explain(whole, x, return_states=True).steps
    assert step.engine == ""
    assert "no state of every step" in step.causes[0]
