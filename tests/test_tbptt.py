"""Truncated backpropagation: the numbers of one call, the gradients of its chunks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

import flexrnn
from flexrnn import tbptt

T, B, I, H = 11, 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(params=["reference", "interpreter", "cpu"], autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each engine that runs here, in force."""
    with flexrnn.backend(request.param):
        yield


@pytest.fixture(params=[flexrnn.LSTM, flexrnn.GRU])
def make(request: pytest.FixtureRequest) -> Callable[..., flexrnn.FlexRNN]:
    return lambda **options: request.param(I, H, num_layers=2, dtype=torch.float64, **options)


LENGTHS = torch.tensor([11, 3, 0, 8])
RESET = torch.zeros(T, B).bool()
RESET[[0, 4, 5, 9, 7], [1, 0, 3, 3, 1]] = True  # 4 is where a chunk begins, (7, 1) behind an end


@pytest.mark.parametrize("steps", [1, 4, 11, 50])
@pytest.mark.parametrize("marked", [False, True])
def test_numbers_are_those_of_one_call(make: Any, steps: int, marked: bool) -> None:
    layer, x = make(), randn(T, B, I)
    options = {"lengths": LENGTHS, "reset": RESET} if marked else {}
    hx = layer(randn(1, B, I))[1]
    expected, final = layer(x, hx, **options)
    chunks = list(tbptt(layer, x, steps, hx, **options))
    assert_close(torch.cat([c.output for c in chunks]), expected, rtol=1e-12, atol=1e-13)
    assert_close(chunks[-1].state, final, rtol=1e-12, atol=1e-13)
    assert [range(T)[c.time] for c in chunks] == [
        range(s, min(s + steps, T)) for s in range(0, T, steps)
    ]


def test_other_layouts(make: Any) -> None:
    x = randn(T, B, I)
    layer = make(batch_first=True)
    options = {"lengths": LENGTHS, "reset": RESET.T}
    expected, _ = layer(x.transpose(0, 1), **options)
    chunks = list(tbptt(layer, x.transpose(0, 1), 4, **options))
    assert_close(torch.cat([c.output for c in chunks], 1), expected, rtol=1e-12, atol=1e-13)
    alone = tbptt(layer, x[:, 3], 4, lengths=LENGTHS[3], reset=RESET[:, 3])
    assert_close(torch.cat([c.output for c in alone]), expected[3], rtol=1e-12, atol=1e-13)


def test_a_gradient_reaches_back_to_the_beginning_of_its_chunk_and_no_further(make: Any) -> None:
    layer, x, weight = make(), randn(T, B, I), randn(T, B, H)
    carried, gradients = None, []
    for chunk in tbptt(layer, x, 4):
        loss = (chunk.output * weight[chunk.time]).sum()
        gradients.append(grad(loss, list(layer.parameters())))
        expected, carried = layer(x[chunk.time], carried)  # by hand
        theirs = grad((expected * weight[chunk.time]).sum(), list(layer.parameters()))
        assert_close(gradients[-1], theirs, rtol=1e-12, atol=1e-13)
        carried = _detached(carried)
    assert len(gradients) == 3


def _detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)


def test_what_comes_behind_a_reset_knows_nothing_of_the_chunk_before(make: Any) -> None:
    layer, x = make(learn_initial_state=True), randn(T, B, I)
    reset = torch.zeros(T, B).bool()
    reset[4] = True
    _, second, _ = tbptt(layer, x, 4, reset=reset.numpy())
    fresh = layer(x[4:8])[0]
    assert_close(second.output, fresh, rtol=1e-12, atol=1e-13)
    weights = [p for name, p in layer.named_parameters() if name.startswith("initial")]
    ours, theirs = (grad(o.square().sum(), weights) for o in (second.output, fresh))
    assert all(g.any() for g in ours)  # a learned initial state learns at every reset
    assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_layer_may_return_its_state_as_a_plain_tuple() -> None:
    """As a subclass that overrides `forward` may, and `torch.nn.LSTM` does."""

    class Plain(flexrnn.LSTM):
        def forward(self, *args: Any, **options: Any) -> Any:
            output, (h, c) = super().forward(*args, **options)
            return output, (h, c)

    layer, x = Plain(I, H, dtype=torch.float64), randn(T, B, I)
    *_, last = tbptt(layer, x, 4)
    assert type(last.state) is tuple
    assert_close(last.state, layer(x)[1], rtol=1e-12, atol=1e-13)


def test_weights_may_change_between_two_chunks(make: Any) -> None:
    layer, x, shapes = make(), randn(T, B, I), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for chunk in tbptt(layer, x, 4):
        optimizer.zero_grad()
        chunk.output.square().sum().backward()
        optimizer.step()
        shapes.append(chunk.output.shape)
    assert shapes == [(4, B, H), (4, B, H), (3, B, H)]


def test_a_stream_of_batches_goes_on_where_the_last_one_ended(make: Any) -> None:
    layer, x, state, outputs = make(), randn(T, B, I), None, []
    for batch in x.split(6):
        for chunk in tbptt(layer, batch, 4, state):
            chunk.output.sum().backward()  # needs no graph of the batch before
            outputs.append(chunk.output)
            state = chunk.state
    assert_close(torch.cat(outputs), layer(x)[0], rtol=1e-12, atol=1e-13)


def test_a_gradient_that_the_initial_state_asks_for_is_computed(make: Any) -> None:
    layer, x = make(), randn(T, B, I)
    state = layer(randn(1, B, I))[1]
    leaf = state if isinstance(state, Tensor) else state[0]
    first = next(tbptt(layer, x, 4, state))
    expected = layer(x[:4], state)[0]
    ours, theirs = (grad(o.sum(), leaf, retain_graph=True) for o in (first.output, expected))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_what_does_not_fit_is_refused_at_once(refused: Any) -> None:
    layer, call, x = flexrnn.GRU(I, H), tbptt, torch.zeros(T, B, I)
    both_ways = flexrnn.GRU(I, H, bidirectional=True)
    wrong: Any = call
    refused(
        lambda: wrong(torch.nn.GRUCell(I, H), x, 4), TypeError, "layer: expected a FlexRNN, ..."
    )
    refused(lambda: call(both_ways, x, 4), RuntimeError, "layer: expected one direction; ...")
    refused(lambda: wrong(layer, x, 4.0), TypeError, "steps should be of type int, got: float")
    refused(lambda: call(layer, x, 0), ValueError, "steps must be greater than zero, got 0")
    refused(lambda: wrong(layer, None, 4), TypeError, "x: expected a tensor, got NoneType")
    refused(lambda: call(layer, x[0, 0], 4), ValueError, "x: expected shape ..., got (3,)")
    refused(
        lambda: call(layer, x, 4, reset=RESET[:4]),
        ValueError,
        "reset: expected shape (T, B) = (11, 4), got (4, 4)",
    )
    refused(
        lambda: call(layer, x, 4, lengths=[12] * B), ValueError, "lengths: expected numbers ..."
    )
