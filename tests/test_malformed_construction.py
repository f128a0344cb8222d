"""Whatever something is built with: a clear exception, or what torch or its twin would be."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import flexrnn
from flexrnn import fromscratch

many = settings(max_examples=80, deadline=None)
CLEAR = (TypeError, ValueError, RuntimeError)


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, Any]:
    """Whether a call is accepted, and what it returns; any but a clear exception goes through."""
    try:
        result, message = (True, call(*args, **kwargs)), "accepted"
    except CLEAR as error:
        result, message = (False, None), str(error)
    event(message.partition(" ")[0])
    assert message
    return result


things = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=2),
    st.just([]),
    st.just({}),
    st.just(object()),
    st.just(torch.ones(2)),
    st.just(torch.tensor(3)),
    st.just(torch.float64),
    st.just(nn.LSTM),
    st.builds(nn.LSTM, st.just(3), st.just(5)),  # each its own: a layer takes a cell's parameters
    st.just(flexrnn.LSTM),
    st.builds(flexrnn.LSTMCell, st.just(3), st.just(5)),
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Something good, and once in four just some thing."""
    return st.integers(0, 3).flatmap(lambda k: things if k == 0 else good)


GOOD: dict[str, st.SearchStrategy[Any]] = {
    "input_size": st.integers(1, 4),
    "hidden_size": st.integers(1, 4),
    "num_layers": st.integers(1, 3),
    "bias": st.booleans(),
    "batch_first": st.booleans(),
    "dropout": st.floats(0, 1),
    "bidirectional": st.booleans(),
    "proj_size": st.integers(0, 2),
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
    "device": st.sampled_from([None, "cpu", "meta", torch.device("cpu")]),
    "dtype": st.sampled_from([None, torch.float64, torch.float16]),
}
# Not an int, which would be a CUDA device, of which this machine may have none or some.
no_device = things.filter(lambda thing: not isinstance(thing, int))


@st.composite
def arguments(draw: Any, of: Any) -> dict[str, Any]:
    """Keyword arguments of a constructor, at most two of them not of their kind."""
    names = [name for name in inspect.signature(of).parameters if name in GOOD]
    kwargs = {name: draw(GOOD[name]) for name in names if name in names[:2] or draw(st.booleans())}
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        kwargs[name] = draw(no_device if name == "device" else things)
    if draw(st.integers(0, 9)) == 0:
        del kwargs[draw(st.sampled_from(names[:2]))]
    if draw(st.integers(0, 9)) == 0:
        kwargs["surprise"] = draw(things)
    return kwargs


def described(module: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, torch.device]]:
    return [(name, p.shape, p.dtype, p.device) for name, p in module.named_parameters()]


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@many
@given(data=st.data())
def test_a_drop_in_is_refused_or_built_as_torchs_is(
    classes: tuple[Any, Any], data: st.DataObject
) -> None:
    ours, theirs = classes
    kwargs = data.draw(arguments(ours))
    accepted, layer = outcome(ours, **kwargs)
    if not accepted:
        return
    beyond_torch = {"proj_size"} if ours is flexrnn.LSTMCell else set()
    if not kwargs.keys() & beyond_torch:
        expected = theirs(**kwargs)
        assert described(layer) == described(expected)
        assert layer.extra_repr() == expected.extra_repr()


OPTIONS = ("batch_first", "backend", "carry_raw", "eps", "proj_size", "nonlinearity")
cell_classes = [getattr(flexrnn.cells, n) for n in flexrnn.cells.__all__ if n.endswith("Cell")]


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@many
@given(data=st.data(), cell=mostly(st.sampled_from(cell_classes)))
def test_a_layer_is_refused_or_runs(data: st.DataObject, cell: Any) -> None:
    kwargs = data.draw(arguments(flexrnn.FlexRNN))
    if data.draw(st.integers(0, 3)) == 0:
        kwargs[data.draw(st.sampled_from(OPTIONS))] = data.draw(things)
    accepted, layer = outcome(flexrnn.FlexRNN, cell, **kwargs)
    if not accepted:
        return
    (weight, *_) = layer.parameters()
    shape = (2, 3) if not layer.batch_first else (3, 2)
    x = torch.zeros(*shape, layer.input_size, dtype=weight.dtype, device=weight.device)
    ran, result = outcome(layer, x)
    if ran:
        assert result[0].shape[:2] == shape
        assert result[0].dtype == weight.dtype


@many
@given(thing=things)
def test_replace_refuses_what_is_no_module(thing: Any) -> None:
    accepted, result = outcome(flexrnn.replace, thing)
    assert accepted == isinstance(thing, nn.Module)
    if type(thing) is nn.LSTM:
        assert type(result) is flexrnn.LSTM
    elif accepted:
        assert result is thing


@many
@given(thing=mostly(st.sampled_from(["auto", "reference"])))
def test_backend_refuses_what_is_no_engine(thing: Any) -> None:
    accepted, _ = outcome(lambda: flexrnn.backend(thing).__enter__())
    assert accepted == (
        thing in ("auto", "reference", "interpreter", "cpu", "cuda", "torch")
        if isinstance(thing, str)
        else False
    )


# The article's layers

scratch = pytest.mark.parametrize("cls", [fromscratch.CustomLSTM, fromscratch.NaiveCustomLSTM])


@scratch
@many
@given(data=st.data(), peephole=mostly(st.booleans()))
def test_a_layer_from_scratch_is_refused_or_runs(
    cls: Any, data: st.DataObject, peephole: Any
) -> None:
    sizes = [data.draw(mostly(st.integers(1, 4))) for _ in range(2)]
    extra = {"peephole": peephole} if cls is fromscratch.CustomLSTM else {}
    accepted, layer = outcome(cls, *sizes, **extra)
    right = all(type(size) is int and size > 0 for size in sizes)
    assert accepted == (right and (not extra or type(peephole) is bool))
    if accepted:
        hidden_seq, _ = layer(torch.zeros(2, 3, sizes[0]))
        assert hidden_seq.shape == (2, 3, sizes[1])


good_x, good_h = torch.randn(2, 3, 3), torch.randn(2, 5)
spoiled_x = st.sampled_from(
    [
        good_x[:0],
        good_x[:, :0],
        good_x[0],
        good_x[..., :2],
        good_x.long(),
        good_x.double(),
        good_x.to("meta"),
        torch.zeros(0, 3, 4),
    ]
)
spoiled_h = st.sampled_from(
    [good_h[:1], good_h[:, :1], good_h[0], good_h[:0], good_h.double(), good_h.to("meta")]
)


@scratch
@many
@given(
    x=mostly(st.just(good_x) | spoiled_x),
    hc=mostly(
        st.none()
        | st.just((good_h, -good_h))
        | st.just([good_h[:0], good_h[:0]])
        | st.tuples(st.just(good_h), spoiled_h)
        | st.lists(spoiled_h | st.just(good_h), max_size=3)
    ),
)
def test_a_call_of_a_layer_from_scratch_is_refused_or_agrees_with_torch(
    cls: Any, x: Any, hc: Any
) -> None:
    layer = cls(3, 5)
    accepted, result = outcome(layer, x, hc)
    if accepted:
        output, (h, c) = fromscratch.to_torch(layer)(x, hc and (hc[0][None], hc[1][None]))
        assert_close(result, (output, (h[0], c[0])), rtol=1e-5, atol=1e-6)


LIKE_LSTM = [
    nn.LSTM(3, 5),
    nn.LSTM(3, 5, 2),
    nn.LSTM(3, 5, bias=False),
    nn.LSTM(3, 5, bidirectional=True),
    nn.LSTM(3, 5, proj_size=2),
    nn.GRU(3, 5),
    flexrnn.LSTM(3, 5),
    fromscratch.CustomLSTM(3, 5),
    fromscratch.CustomLSTM(3, 5, peephole=True),
    fromscratch.NaiveCustomLSTM(3, 5),
]


@many
@given(
    convert=st.sampled_from(
        [
            fromscratch.to_torch,
            fromscratch.from_torch,
            fromscratch.to_naive,
            fromscratch.to_vectorized,
        ]
    ),
    layer=mostly(st.sampled_from(LIKE_LSTM)),
    cls=mostly(st.none() | st.just(fromscratch.NaiveCustomLSTM)),
)
def test_a_converter_refuses_or_keeps_the_function(convert: Any, layer: Any, cls: Any) -> None:
    extra = (cls,) if cls is not None and convert is fromscratch.from_torch else ()
    accepted, converted = outcome(convert, layer, *extra)
    if accepted:
        x = torch.randn(2, 7, 3)
        swapped = x.transpose(0, 1) if isinstance(layer, nn.LSTM) and not layer.batch_first else x
        expected = layer(swapped)[0]
        expected = expected if swapped is x else expected.transpose(0, 1)
        assert_close(converted(x)[0], expected, rtol=1e-5, atol=1e-6)
