"""Whatever a module is called with: a clear exception, or the result that the oracle has."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

import flexrnn
from flexrnn.cells import LSTMState

many = settings(max_examples=80, deadline=None)

CLEAR = (TypeError, ValueError, RuntimeError)


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, Any]:
    """Whether a call is accepted, and what it returns; any but a clear exception goes through."""
    try:
        with flexrnn.backend("reference"):  # no word on what a compiler would say of it
            result = True, call(*args, **kwargs)
    except CLEAR as error:
        result, message = (False, None), str(error)
    else:
        message = "accepted"
    event(message.partition(" ")[0])
    assert message
    return result


I, H, T = 2, 3, 3
things = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.just({}),
    st.just(object()),
    st.just(Tensor),
    st.just(torch.float32),
    st.lists(st.floats(), max_size=3),
)


@st.composite
def spoiled(draw: Any, *shape: int) -> Any:
    """A float64 tensor of this shape, or, once in three, one with a fault, or no tensor at all."""
    faults = ["size", "rank", "dtype", "device", "thing"]
    fault = draw(st.sampled_from([None] * 2 * len(faults) + faults))
    if fault == "thing":
        return draw(things)
    if fault == "size" and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        shape = tuple(draw(st.integers(0, 5)) if k == axis else n for k, n in enumerate(shape))
    if fault == "rank":
        shape = draw(st.sampled_from([shape[1:], shape[:-1], (1, *shape), (*shape, 1), ()]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    if fault == "dtype":
        wrong = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex128]
        return numbers.to(draw(st.sampled_from(wrong)))
    return numbers.to("meta") if fault == "device" else numbers


@st.composite
def spoiled_state(draw: Any, *shapes: tuple[int, ...]) -> Any:
    """A state whose fields have these shapes, or something near it."""
    fields = [draw(spoiled(*shape)) for shape in shapes]
    kind = draw(st.sampled_from(["right"] * 4 + ["list", "short", "long", "bare", "none", "thing"]))
    if kind in ("none", "thing"):
        return None if kind == "none" else draw(things)
    if kind == "bare" or (kind == "right" and len(shapes) == 1):
        return fields[0]
    several = {"short": fields[1:], "long": [*fields, fields[0]]}.get(kind, fields)
    return several if kind == "list" else tuple(several)


@st.composite
def packed(draw: Any, features: int) -> Any:
    """A packed sequence put together by hand, often one that no function of torch would make."""
    sizes = sorted(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)), reverse=True)
    fault = draw(st.sampled_from([None] * 6 + ["sizes", "kind", "rank", "rows", "order"]))
    rows = sum(sizes) + (draw(st.sampled_from([-1, 1])) if fault == "rows" else 0)
    batch_sizes = torch.tensor(sizes)
    if fault == "sizes":
        batch_sizes = torch.tensor(draw(st.permutations([*sizes, draw(st.integers(-1, 3))])))
    if fault == "kind":
        batch_sizes = batch_sizes.double()
    if fault == "rank":
        batch_sizes = draw(st.sampled_from([batch_sizes[0], batch_sizes[None]]))
    there = torch.tensor(draw(st.permutations(range(sizes[0]))))
    back = torch.argsort(there)
    if fault == "order":
        there = draw(st.sampled_from([there[1:], there + 1, back, None, there.double()]))
    indices = draw(st.sampled_from([(there, back), (there, back), (None, None)]))
    data = draw(spoiled(rows, features).filter(lambda data: isinstance(data, Tensor)))
    return PackedSequence(data, batch_sizes, *indices), sizes[0]


LAYERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (flexrnn.LSTM, nn.LSTM, {}),
    (flexrnn.LSTM, nn.LSTM, {"bidirectional": True, "batch_first": True, "proj_size": 2}),
    (flexrnn.GRU, nn.GRU, {"bidirectional": True, "num_layers": 2}),
    (flexrnn.RNN, nn.RNN, {"bias": False, "batch_first": True}),
]
CELLS: list[tuple[Any, Any]] = [
    (flexrnn.LSTMCell, nn.LSTMCell),
    (flexrnn.GRUCell, nn.GRUCell),
    (flexrnn.RNNCell, nn.RNNCell),
]


def twins(ours: Any, theirs: Any, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    pair = [cls(I, H, **options, dtype=torch.float64) for cls in (ours, theirs)]
    pair[0].load_state_dict(pair[1].state_dict())
    return pair[0], pair[1]


def as_torch_takes_it(hx: Any, ours: nn.Module) -> Any:
    """A state in the structure that torch wants: ours also come in a list, or alone in a tuple."""
    if isinstance(hx, (list, tuple)):
        return tuple(hx) if isinstance(ours, (flexrnn.LSTM, flexrnn.LSTMCell)) else hx[0]
    return hx


@pytest.mark.parametrize(("ours", "theirs", "options"), LAYERS)
@many
@given(data=st.data())
def test_a_layer_refuses_or_agrees_with_torch(
    ours: Any, theirs: Any, options: dict[str, Any], data: st.DataObject
) -> None:
    ours, theirs = twins(ours, theirs, **options)
    form = data.draw(st.sampled_from(["padded", "packed", "alone"]))
    batch = (data.draw(st.integers(0, 3)),) if form == "padded" else ()
    if form == "packed":
        x, size = data.draw(packed(I))
        batch = (size,)
    else:
        x = data.draw(spoiled(*(reversed((T, *batch)) if ours.batch_first else (T, *batch)), I))
    rows = ours.num_layers * ours.num_directions
    shapes = [(rows, *batch, ours.proj_size or H), (rows, *batch, H)]
    hx = data.draw(spoiled_state(*(shapes if isinstance(ours, flexrnn.LSTM) else shapes[1:])))
    accepted, result = outcome(ours, x, hx)
    if accepted:
        assert_close(result, theirs(x, as_torch_takes_it(hx, ours)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), CELLS)
@many
@given(data=st.data(), batch=st.sampled_from([(2,), (1,), (0,), ()]))
def test_a_cell_refuses_or_agrees_with_torch(
    ours: Any, theirs: Any, data: st.DataObject, batch: tuple[int, ...]
) -> None:
    ours, theirs = twins(ours, theirs)
    shapes = [(*batch, H)] * (2 if isinstance(ours, flexrnn.LSTMCell) else 1)
    x, hx = data.draw(spoiled(*batch, I)), data.draw(spoiled_state(*shapes))
    accepted, result = outcome(ours, x, hx)
    if accepted:
        assert_close(result, theirs(x, as_torch_takes_it(hx, ours)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [flexrnn.PeepholeLSTM, flexrnn.GRU])
@many
@given(data=st.data(), batch=st.sampled_from([(2,), (1,), ()]))
def test_a_step_refuses_or_agrees_with_the_call(
    cls: Any, data: st.DataObject, batch: tuple[int, ...]
) -> None:
    layer = cls(I, H, 2, batch_first=True, dtype=torch.float64)
    shapes = [(2, *batch, H)] * (2 if cls is flexrnn.PeepholeLSTM else 1)
    x, hx = data.draw(spoiled(*batch, I)), data.draw(spoiled_state(*shapes))
    accepted, result = outcome(layer.step, x, hx)
    if accepted:
        output, state = layer(x.unsqueeze(-2), hx)
        assert_close(result, (output.squeeze(-2), state), rtol=1e-12, atol=1e-12)


@many
@given(data=st.data(), kind=st.sampled_from([LSTMState, LSTMState, lambda *f: f, lambda *f: f[0]]))
def test_what_a_step_returns_is_refused_or_returned(data: st.DataObject, kind: Any) -> None:
    returned = kind(data.draw(spoiled(2, H)), data.draw(spoiled(2, H)))

    class Constant(flexrnn.LSTMCell):
        def step(self, x: Tensor, state: LSTMState) -> Any:
            return returned

    layer = flexrnn.FlexRNN(Constant, I, H, dtype=torch.float64)
    accepted, result = outcome(layer, torch.zeros(T, 2, I).double())
    right = isinstance(returned, LSTMState) and all(is_like(f, 2, H) for f in returned)
    assert accepted == right
    if accepted:
        h, c = returned
        expected = (h.expand(T, 2, H), LSTMState(h[None], c[None]))
        assert_close(result, expected, rtol=0, atol=0)


def is_like(value: Any, *shape: int) -> bool:
    """Whether this is a float64 tensor of this shape, on the CPU."""
    kind = (shape, torch.float64, "cpu")
    return isinstance(value, Tensor) and (value.shape, value.dtype, value.device.type) == kind


def turn(x: Any, state: Any, *params: Any) -> Any:
    """A step for every structure: the state turns with the mean of the inputs and parameters."""
    rows = (x,) if isinstance(x, Tensor) else x
    drive = sum(tensor.real.double().mean() for tensor in (*rows, *params))
    if isinstance(state, Tensor):
        return 0.5 * state + drive
    parts = [0.5 * part + drive for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


@many
@given(data=st.data())
def test_scan_refuses_or_agrees_with_a_loop(data: st.DataObject) -> None:
    state = data.draw(spoiled_state((2, H), (2,)) | spoiled_state((2, H)))
    if isinstance(state, tuple) and len(state) == 2 and data.draw(st.booleans()):
        state = LSTMState(*state)
    xs = data.draw(spoiled(T, 2, I) | spoiled_state((T, 2, I), (T,)))
    params = data.draw(spoiled_state((2,), (1, 2)))
    accepted, result = outcome(flexrnn.scan, turn, state, xs, () if params is None else params)
    if not accepted:
        return
    history = []
    for row in xs if isinstance(xs, Tensor) else zip(*xs, strict=True):
        state = turn(row, state, *((params,) if isinstance(params, Tensor) else params or ()))
        history.append(state)
    states, final = result
    assert type(states) is type(final) is type(state)
    exactly = partial(assert_close, rtol=0, atol=0, equal_nan=True)  # of nothing the mean is NaN
    exactly(final, state)
    if isinstance(state, Tensor):
        exactly(states, torch.stack(history))
    else:
        exactly(list(states), [torch.stack(field) for field in zip(*history, strict=True)])


@many
@given(data=st.data())
def test_scan_refuses_or_keeps_what_its_step_returns(data: st.DataObject) -> None:
    returned = data.draw(spoiled_state((2, H), (2,)))
    state = LSTMState(torch.zeros(2, H).double(), torch.zeros(2).double())
    for given_state, kind in ((tuple(state), tuple), (state, LSTMState)):
        result_of_step = kind(*returned) if fits(returned) and kind is LSTMState else returned
        accepted, result = outcome(
            flexrnn.scan, lambda x, s, r=result_of_step: r, given_state, torch.zeros(T, 1).double()
        )
        right = fits(returned) and is_like(returned[0], 2, H) and is_like(returned[1], 2)
        assert accepted == right
        if accepted:
            assert_close(result[1], result_of_step, rtol=0, atol=0)
            assert_close(result[0][1], returned[1].expand(T, 2), rtol=0, atol=0)


def fits(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


@many
@given(step=things)
def test_scan_refuses_what_is_no_function(step: Any) -> None:
    if not callable(step):
        assert not outcome(flexrnn.scan, step, torch.zeros(H), torch.zeros(T, I))[0]
