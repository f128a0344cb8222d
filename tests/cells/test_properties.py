"""What holds for every recurrent layer, whatever its cell: found by Hypothesis over odd sizes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import flexrnn
from flexrnn import FlexRNN
from flexrnn.engine import scan

Make = Callable[..., FlexRNN]
few = settings(max_examples=15, deadline=None)


class Sizes(NamedTuple):
    T: int
    B: int
    I: int
    H: int
    L: int
    bidirectional: bool
    bias: bool
    seed: int


def sizes(bidirectional: st.SearchStrategy[bool]) -> st.SearchStrategy[Sizes]:
    # What is 1 may stretch, so that it is a case of its own. For every other number of units a
    # step is traced anew, which is most of the time of these tests.
    return st.builds(
        Sizes,
        T=st.integers(1, 6),
        B=st.integers(1, 4),
        I=st.sampled_from([1, 3]),
        H=st.sampled_from([1, 3, 5]),  # projected to half of it: to 1 and 2
        L=st.integers(1, 2),
        bidirectional=bidirectional,
        bias=st.booleans(),
        seed=st.integers(0, 2**16),
    )


one_way, two_ways, any_way = (sizes(s) for s in (st.just(False), st.just(True), st.booleans()))


def setup(make: Make, s: Sizes) -> tuple[FlexRNN, Tensor, tuple[Tensor, ...]]:
    """A layer, an input, and an initial state as the tuple of its fields."""
    torch.manual_seed(s.seed)
    layer = make(s.I, s.H, num_layers=s.L, bidirectional=s.bidirectional, bias=s.bias)
    x = torch.randn(s.T, s.B, s.I, dtype=torch.float64)
    with torch.no_grad():
        return layer, x, tuple(torch.randn_like(f) for f in fields(layer(x)[1]))


def fields(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def given_as(state: tuple[Tensor, ...]) -> Any:
    return state[0] if len(state) == 1 else state


@torch.no_grad()
def call(layer: FlexRNN, x: Any, state: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
    output, final = layer(x, given_as(state))
    return output, fields(final)


# Of generated code, one row and several are different loops, which round differently; a norm over a
# few units that are nearly equal enlarges that by up to 1 / sqrt(1e-5), some three hundred times.
BOUNDS = {"reference": (1e-12, 1e-13), "cpu": (1e-11, 1e-11)}


@pytest.fixture(scope="module", autouse=True, params=BOUNDS)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each engine in force."""
    with flexrnn.backend(request.param):
        yield


def close(ours: object, theirs: object) -> None:
    rtol, atol = BOUNDS[scan.in_force("auto")]
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@few
@given(s=one_way, at=st.integers(1, 5))
def test_splitting_time_and_carrying_the_state_is_one_call(make: Make, s: Sizes, at: int) -> None:
    layer, x, hx = setup(make, s._replace(T=s.T + 1))
    at = min(at, s.T)
    first, state = call(layer, x[:at], hx)
    second, state = call(layer, x[at:], state)
    close((torch.cat([first, second]), state), call(layer, x, hx))


@few
@given(s=one_way)
def test_streaming_is_the_sequence_call(make: Make, s: Sizes) -> None:
    layer, x, hx = setup(make, s)
    outputs, state = [], given_as(hx)
    with torch.no_grad():
        for x_t in x:
            output, state = layer.step(x_t, state)
            outputs.append(output)
    close((torch.stack(outputs), fields(state)), call(layer, x, hx))


@few
@given(s=one_way)
def test_streaming_starts_from_the_same_state_as_a_sequence(make: Make, s: Sizes) -> None:
    layer, x, _ = setup(make, s)
    with torch.no_grad():
        close(layer.step(x[0])[0], layer(x[:1])[0][0])
        close(layer.step(x[0, 0])[0], layer(x[:1])[0][0, 0])


@few
@given(s=any_way, data=st.data())
def test_permuting_the_batch_commutes(make: Make, s: Sizes, data: st.DataObject) -> None:
    layer, x, hx = setup(make, s)
    order = data.draw(st.permutations(range(s.B)))
    output, state = call(layer, x, hx)
    permuted = call(layer, x[:, order], tuple(f[:, order] for f in hx))
    close(permuted, (output[:, order], tuple(f[:, order] for f in state)))


@few
@given(s=any_way)
def test_a_batch_is_its_sequences_one_by_one(make: Make, s: Sizes) -> None:
    layer, x, hx = setup(make, s)
    output, state = call(layer, x, hx)
    for b in range(s.B):
        alone = call(layer, x[:, b], tuple(f[:, b] for f in hx))
        close(alone, (output[:, b], tuple(f[:, b] for f in state)))


@few
@given(s=any_way, data=st.data())
def test_a_packed_batch_is_its_sequences_one_by_one(
    make: Make, s: Sizes, data: st.DataObject
) -> None:
    layer, x, hx = setup(make, s)
    lengths = data.draw(st.lists(st.integers(1, s.T), min_size=s.B, max_size=s.B))
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    packed_output, state = call(layer, packed, hx)
    output, _ = pad_packed_sequence(packed_output)
    for b, length in enumerate(lengths):
        alone = call(layer, x[:length, b], tuple(f[:, b] for f in hx))
        close(alone, (output[:length, b], tuple(f[:, b] for f in state)))


@few
@given(s=two_ways)
def test_the_reverse_direction_is_the_forward_one_on_flipped_input(make: Make, s: Sizes) -> None:
    layer, x, hx = setup(make, s._replace(L=1))
    forward = make(s.I, s.H, bias=s.bias)
    forward.load_state_dict(
        {
            name.removesuffix("_reverse"): value
            for name, value in layer.state_dict().items()
            if name.endswith("_reverse")
        }
    )
    output, state = call(layer, x, hx)
    flipped, final = call(forward, x.flip(0), tuple(f[1:] for f in hx))
    close(output.chunk(2, -1)[1], flipped.flip(0))
    close(tuple(f[1:] for f in state), final)


@few
@given(s=any_way)
def test_batch_first_only_transposes(make: Make, s: Sizes) -> None:
    layer, x, hx = setup(make, s)
    output, state = call(layer, x, hx)
    layer.batch_first = True
    close(call(layer, x.transpose(0, 1), hx), (output.transpose(0, 1), state))


@few
@given(s=one_way)
def test_the_future_does_not_change_the_past(make: Make, s: Sizes) -> None:
    layer, x, hx = setup(make, s)
    output, _ = call(layer, x, hx)
    changed = x.clone()
    changed[-1] = float("nan")
    past = call(layer, changed, hx)[0][:-1]
    assert torch.equal(past, output[:-1])


@few
@given(s=any_way, sequence_last=st.booleans())
def test_strides_do_not_matter(make: Make, s: Sizes, sequence_last: bool) -> None:
    layer, x, hx = setup(make, s)
    order = (1, 2, 0) if sequence_last else (2, 0, 1)
    strided = x.permute(order).contiguous().permute([order.index(k) for k in range(3)])
    state = tuple(f.transpose(0, 2).contiguous().transpose(0, 2) for f in hx)
    close(call(layer, strided, state), call(layer, x, hx))


@pytest.mark.parametrize(("T", "B", "I", "H"), [(1, 3, 2, 4), (4, 1, 2, 4), (4, 3, 2, 1)])
def test_gradients_also_split_over_time_and_batch(
    make: Make, T: int, B: int, I: int, H: int
) -> None:
    """The gradient of one call is the sum of those of its halves; of a batch, that of its rows."""
    layer = make(I, H, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    weight = torch.randn_like(layer(x)[0])

    def gradient(t: slice, b: slice) -> list[Tensor]:
        output = layer(x[:, b])[0]
        loss = (output * weight[:, b])[t].sum()
        grads = torch.autograd.grad(loss, list(layer.parameters()), materialize_grads=True)
        return list(grads)

    whole, everything = slice(None), gradient(slice(None), slice(None))
    by_row = [gradient(whole, slice(b, b + 1)) for b in range(B)]
    by_time = [gradient(slice(t, t + 1), whole) for t in range(T)]
    for parts in (by_row, by_time):
        summed = [torch.stack(g).sum(0) for g in zip(*parts, strict=True)]
        torch.testing.assert_close(summed, everything, rtol=1e-11, atol=1e-12)
