"""`record` gives what a loop by hand over the cell would have seen."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells, record
from flexrnn.cells import HiddenState
from flexrnn.record import Taps

T, B, I, H = 6, 4, 3, 5
ALL = [getattr(cells, name) for name in cells.__all__ if name.endswith("Cell")]
LENGTHS = [3, 6, 0, 1]


def by_hand(layer: FlexRNN, x: Tensor) -> dict[str, Tensor]:
    """The taps of a layer, each `(T, B, H)`, found by a subclass that notes them."""
    noted: dict[str, list[Tensor]] = {}
    for place, cell in zip(("l0", "l0_reverse", "l1", "l1_reverse"), layer.cells, strict=True):
        assert isinstance(cell, flexrnn.Cell)
        suffix, reverse = f"_{place}", place.endswith("reverse")
        if place == "l1":
            x = layer_output(layer, x)
        make: Any = type(cell)
        own = make(x.shape[-1], H, dtype=torch.float64)
        state = {}
        for name, parameter in layer.named_parameters():
            if name.endswith(suffix):
                inner = re.sub(r"^(norm_\w+?)_", r"\1.", name.removesuffix(suffix))
                state[inner] = parameter
        own.load_state_dict(state)

        def tap(place: str = place, **tensors: Tensor) -> None:
            for name, tensor in tensors.items():
                noted.setdefault(f"{place}.{name}", []).append(tensor)

        own.tap = tap
        hidden = own.initial_state((x.shape[1],), torch.float64)
        for x_t in x.flip(0) if reverse else x:
            hidden = own.step(x_t, hidden)
    return {
        name: torch.stack(rows[::-1] if "reverse" in name else rows) for name, rows in noted.items()
    }


def layer_output(layer: FlexRNN, x: Tensor) -> Tensor:
    """What the first of two layers puts out."""
    states = layer(x, return_states=True)[2]
    h = states if isinstance(states, Tensor) else states[0]
    return torch.cat([h[0], h[1]], -1)


@pytest.fixture(params=ALL)
def layer(request: pytest.FixtureRequest) -> FlexRNN:
    return FlexRNN(request.param, I, H, 2, bidirectional=True, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64)


@pytest.mark.usefixtures("by_reference")
def test_taps_are_those_of_a_loop_by_hand(layer: FlexRNN, x: Tensor) -> None:
    with record(layer) as taps:
        output, _ = layer(x)
    expected = by_hand(layer, x)
    assert list(taps) == list(expected)
    assert taps
    assert_close(taps, {n: t.detach() for n, t in expected.items()}, rtol=1e-12, atol=1e-13)
    assert not any(t.requires_grad for t in taps.values())
    assert output.requires_grad  # the layer itself is as ever
    assert_close(output, layer(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["interpreter", "cpu"])
def test_it_listens_whatever_engine_was_chosen(layer: FlexRNN, x: Tensor, engine: str) -> None:
    with record(layer) as expected:
        layer(x)
    with flexrnn.backend(engine), record(layer) as taps:
        layer(x)
    assert_close(taps, expected, rtol=0, atol=0)


def test_lengths_and_packed_sequences(layer: FlexRNN, x: Tensor) -> None:
    with record(layer) as taps:
        layer(x, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        if length:
            with record(layer) as alone:
                layer(x[:length, b])
            cut = {name: tap[:length, b] for name, tap in taps.items()}
            assert_close(cut, alone, rtol=1e-12, atol=1e-13)
        assert not any(tap[length:, b].any() for tap in taps.values())
    lengths = torch.tensor([3, 6, 2, 1])
    with record(layer) as packed, record(layer) as padded:
        layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        first = dict(packed)
        layer(x, lengths=lengths)
    assert_close(first, padded, rtol=1e-12, atol=1e-13)


def test_the_layout_is_always_time_first(layer: FlexRNN, x: Tensor) -> None:
    with record(layer) as expected:
        layer(x)
    layer.batch_first = True
    with record(layer) as taps:
        layer(x.transpose(0, 1))
    assert_close(taps, expected, rtol=0, atol=0)


def test_of_several_calls_the_last_is_kept_and_none_behind_the_block(x: Tensor) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    with record(layer) as taps:
        layer(x)
        layer(x[:2])
        layer.step(x[2])
    assert taps["l0.i"].shape == (1, B, H)
    before = dict(taps)
    layer(x)
    assert all(taps[name] is tap for name, tap in before.items())


def test_blocks_may_be_nested_for_one_layer_or_several(x: Tensor) -> None:
    one, two = (flexrnn.LSTM(I, H, dtype=torch.float64) for _ in range(2))
    with record(one) as outer, record(two) as other:
        one(x)
        with record(one) as inner:
            two(x)
            assert not inner
            one(x)
    assert_close(outer, inner, rtol=0, atol=0)
    assert not torch.equal(outer["l0.f"], other["l0.f"])


def test_checkpoints_and_masks_do_not_disturb_it(x: Tensor) -> None:
    layer = flexrnn.LSTM(
        I, H, dtype=torch.float64, checkpoint_every=2, recurrent_dropout=0.5, zoneout=0.2
    )
    with record(layer) as taps:
        torch.manual_seed(2)
        layer(x)[0].sum().backward()
    layer.checkpoint_every = None
    with record(layer) as expected:
        torch.manual_seed(2)
        layer(x)
    assert_close(taps, expected, rtol=0, atol=0)
    assert taps["l0.i"].shape == (T, B, H)


def test_a_tap_must_come_once_at_every_step(refused: Any, x: Tensor) -> None:
    class Twice(cells.RNNCell):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            self.tap(h=state.h)
            return super().step(x, state)

    layer = FlexRNN(Twice, I, H, dtype=torch.float64)
    message = "Twice.step: expected the tap 'h' once at every step, got it 12 times in 6 steps"
    with record(layer):
        refused(lambda: layer(x), RuntimeError, message)
    layer(x)


def test_what_is_no_layer_is_refused(refused: Any) -> None:
    def enter(value: Any) -> None:
        with record(value):
            pass

    refused(lambda: enter(None), TypeError, "layer: expected a FlexRNN, got NoneType")
    refused(lambda: enter(torch.nn.LSTM(I, H)), TypeError, "layer: expected a FlexRNN, got LSTM")


@pytest.mark.parametrize("fullgraph", [False, True])
def test_it_listens_to_a_layer_that_was_compiled_before(x: Tensor, fullgraph: bool) -> None:
    layer = flexrnn.GRU(I, H, dtype=x.dtype)

    def compiled() -> None:
        call: Any = torch.compile(layer, backend="aot_eager", fullgraph=fullgraph)
        call(x)
        for given in (x, 2 * x):
            with record(layer) as expected:
                layer(given)
            for heard in (layer, call):
                with record(heard) as taps:
                    call(given)
                assert_close(taps, expected)

    torch.compiler.reset()
    with ThreadPoolExecutor(1) as pool:  # in which nobody has recorded yet
        pool.submit(compiled).result()


def test_who_has_heard_enough_keeps_no_more() -> None:
    taps = Taps()
    taps(i=torch.ones(2, 3))
    assert list(taps.close("Cell", 1, None, reverse=False)) == ["i"]
    taps(i=torch.ones(2, 3))  # a segment that runs again in the backward pass
    assert len(taps.rows["i"]) == 1
