# pyright: reportPrivateUsage=false
# What a storage is known by has no public name.
"""`checkpoint_every`: the same numbers and gradients, to the bit, less memory."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.engine import scan
from flexrnn.engine.cpu.pool import POOL

Make = Callable[..., FlexRNN]
T, B, I, H = 7, 3, 3, 5
ENGINES = ["reference", "interpreter", "cpu"]


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if size and place not in self.seen:
            self.seen.add(place)
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.alive -= size


def outcome(layer: FlexRNN, engine: str, **options: Any) -> list[Tensor]:
    """All results and gradients, from one seed."""
    torch.manual_seed(7)
    x = torch.randn(T, B, I, dtype=torch.float64).requires_grad_()
    with flexrnn.backend(engine):
        output, state, states = layer(x, return_states=True, **options)
    tensors = [
        output, *((state, states) if isinstance(state, Tensor) else (*state, *states)),
    ]  # fmt: skip
    loss = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        weights = torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)
        loss = loss + (tensor * weights.view_as(tensor)).sum()
    with flexrnn.backend("reference"):  # a block around the backward pass changes nothing
        gradients = torch.autograd.grad(
            loss, [x, *layer.parameters()], allow_unused=True, materialize_grads=True
        )
    return [*tensors, *gradients]


@pytest.mark.parametrize("every", [1, 3, 7, 50])
@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_and_gradients_are_the_same_to_the_bit(make: Make, engine: str, every: int) -> None:
    layer = make(
        num_layers=2, bidirectional=True, dropout=0.2, zoneout=0.2, recurrent_dropout=0.3,
        learn_initial_state=True,
    )  # fmt: skip
    options = {"lengths": [7, 0, 4], "reset": torch.rand(T, B) < 0.3}
    expected = outcome(layer, engine, **options)
    layer.checkpoint_every = every
    found = outcome(layer, engine, **options)
    # A program does all steps of a segment by one product, and sums its weights' gradients at once:
    # another order of the terms.
    tolerance = 0 if engine == "reference" else 1e-12
    assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.GRUCell, cells.LayerNormLSTMCell])
@pytest.mark.parametrize("engine", ENGINES)
def test_computing_a_segment_anew_changes_no_bit(engine: str, cell: type[flexrnn.Cell]) -> None:
    """Beside the same segments, called one after another, of which everything is kept."""
    layer = FlexRNN(cell, I, 33, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for every, steps in ((9, 60), (None, 9)):
        torch.manual_seed(7)
        x = torch.randn(60, 5, I, dtype=torch.float64).requires_grad_()
        layer.checkpoint_every, state, outputs = every, None, list[Tensor]()
        with flexrnn.backend(engine):
            for part in x.split(steps):
                output, state = layer(part, state)
                outputs.append(output)
        output = torch.cat(outputs)
        loss = output @ torch.linspace(-1, 2, 33, dtype=torch.float64)
        gradients = torch.autograd.grad(loss.sin().sum(), [x, *layer.parameters()])
        found.append([output, *gradients])
    assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_dropped_for_a_call_are_the_same_in_its_backward_pass(engine: str) -> None:
    layer = flexrnn.LSTM(I, H, 2, weight_drop=0.3, dtype=torch.float64)
    expected = outcome(layer, engine)
    layer.checkpoint_every = 3
    tolerance = 0 if engine == "reference" else 1e-12
    assert_close(outcome(layer, engine), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("engine", ["interpreter", "cpu"])
def test_the_engine_of_the_forward_pass_runs_again(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(scan.in_force("auto"))
        return run(*args, **kwargs)

    run = scan.run
    monkeypatch.setattr(scan, "run", noted)
    layer = flexrnn.LSTM(I, H, checkpoint_every=4)
    with flexrnn.backend(engine):
        output, _ = layer(torch.randn(T, B, I))
    with flexrnn.backend("reference"):
        output.sum().backward()
    assert seen == [engine] * 4  # two segments, twice


@pytest.mark.usefixtures("by_reference")
def test_packed_and_under_autocast() -> None:
    """To the last bit; generated code adds up rows that lie otherwise in another order."""
    found = []
    for every in (None, 2):
        torch.manual_seed(3)
        layer = flexrnn.GRU(I, H, 2, bidirectional=True, checkpoint_every=every)
        packed = torch.nn.utils.rnn.pack_sequence([torch.randn(t, I) for t in (3, 7)], False)
        with torch.autocast("cpu"):
            output, h_n = layer(packed)
        loss = output.data.float().sum() + h_n.float().square().sum()
        found.append([output.data, h_n, *torch.autograd.grad(loss, list(layer.parameters()))])
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_without_gradient_and_under_transforms_it_does_nothing() -> None:
    layer = flexrnn.LSTM(I, H, checkpoint_every=2)
    plain = flexrnn.LSTM(I, H)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    with torch.no_grad():
        assert_close(layer(x), plain(x), rtol=0, atol=0)
    ours, theirs = (
        torch.func.grad(lambda x, made=made: made(x)[0].square().sum())(x)
        for made in (layer, plain)
    )
    assert_close(ours, theirs, rtol=0, atol=0)


def test_double_backward() -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64, checkpoint_every=2)
    x = torch.randn(4, 2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,), fast_mode=True)


def test_explain_sees_each_layer_once() -> None:
    layer = flexrnn.LSTM(I, H, 2, bidirectional=True, checkpoint_every=2)
    report = flexrnn.explain(layer, torch.randn(T, B, I))
    names = [step.name for step in report.steps]
    assert names == ["layer 0", "layer 0 reverse", "layer 1", "layer 1 reverse"]


def peak(steps: int, every: int | None) -> int:
    torch.manual_seed(0)
    layer = flexrnn.LSTM(8, 16, checkpoint_every=every)
    x = torch.randn(steps, 4, 8)
    with Peak() as seen:
        layer(x)[0].mean(0).square().sum().backward()
    return seen.most


@pytest.mark.parametrize("engine", ENGINES)
def test_the_peak_of_memory_falls(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What remains is the output at every step, its copy, and one segment."""
    monkeypatch.setattr(POOL, "limit", 0)  # what is kept for a later call is not this one's
    monkeypatch.setattr(POOL, "_blocks", [])  # and what earlier ones left is not counted
    with flexrnn.backend(engine):
        peaks = {every: peak(400, every) for every in (None, 200, 20)}
        alone = peak(20, None)
    assert peaks[None] > 1.5 * peaks[200]
    assert peaks[None] > 2.5 * peaks[20]  # most of which is the output, which both have
    outputs = 400 * 4 * 16 * 4  # bytes
    assert peaks[20] < 2.5 * outputs + alone
