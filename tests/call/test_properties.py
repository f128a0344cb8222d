"""What holds for lengths, resets and streaming at any size, by every engine: Hypothesis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from flexrnn import FlexRNN

Make = Callable[..., FlexRNN]
few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one engine for all examples
)


class Case(NamedTuple):
    T: int
    B: int
    L: int
    bidirectional: bool
    lengths: list[int]
    order: list[int]
    at: int
    seed: int


@st.composite
def cases(draw: st.DrawFn, *, one_way: bool = False) -> Case:
    T, B = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, T), min_size=B, max_size=B))
    return Case(
        T,
        B,
        draw(st.integers(1, 2)),
        not one_way and draw(st.booleans()),
        lengths,
        list(draw(st.permutations(range(B)))),
        draw(st.integers(0, T - 1)),
        draw(st.integers(0, 2**16)),
    )


def setup(make: Make, case: Case, hand: Any) -> tuple[FlexRNN, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(case.seed)
    layer = make(num_layers=case.L, bidirectional=case.bidirectional, learn_initial_state=True)
    for name, parameter in layer.named_parameters():
        if name.startswith("initial"):
            torch.nn.init.normal_(parameter)
    x = torch.randn(case.T, case.B, 3, dtype=torch.float64)
    return layer, x, tuple(torch.randn_like(f) for f in hand.fields(layer(x)[1]))


def close(ours: object, theirs: object) -> None:
    assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@few
@given(case=cases(), poison=st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e300]))
def test_padding_is_irrelevant(
    make: Make, engine: str, hand: Any, case: Case, poison: float
) -> None:
    layer, x, hx = setup(make, case, hand)
    valid = (torch.arange(case.T)[:, None] < torch.tensor(case.lengths))[..., None]
    results = []
    for filling in (0.0, poison):
        filled = torch.where(valid, x, filling).requires_grad_()
        result = hand.run(layer, filled, hx, lengths=case.lengths)
        tensors = (result.output, *result.state, *result.states)
        loss = torch.stack([t.square().sum() for t in tensors]).sum()
        gradients = torch.autograd.grad(
            loss, [filled, *layer.parameters()], allow_unused=True, materialize_grads=True
        )
        results.append((result, gradients))
    assert_close(results[0], results[1], rtol=0, atol=0)


@few
@given(case=cases())
def test_the_order_of_the_rows_is_irrelevant(
    make: Make, engine: str, hand: Any, case: Case
) -> None:
    layer, x, hx = setup(make, case, hand)
    reset = torch.rand(case.T, case.B) < 0.3
    result = hand.run(layer, x, hx, lengths=case.lengths, reset=reset)
    o, lengths = case.order, [case.lengths[b] for b in case.order]
    sorted_ = hand.run(
        layer, x[:, o], tuple(f[:, o] for f in hx), lengths=lengths, reset=reset[:, o]
    )
    close(sorted_.output, result.output[:, o])
    close(sorted_.state, tuple(f[:, o] for f in result.state))
    close(sorted_.states, tuple(f[:, :, o] for f in result.states))


@few
@given(case=cases())
def test_a_length_is_a_cut(make: Make, engine: str, hand: Any, case: Case) -> None:
    layer, x, hx = setup(make, case, hand)
    result = hand.run(layer, x, hx, lengths=case.lengths)
    for b, length in enumerate(case.lengths):
        if length == 0:
            close(tuple(f[:, b] for f in result.state), tuple(f[:, b] for f in hx))
        else:
            alone = hand.run(layer, x[:length, b], tuple(f[:, b] for f in hx))
            close(result.output[:length, b], alone.output)
            close(tuple(f[:, b] for f in result.state), alone.state)
            close(tuple(f[:, :length, b] for f in result.states), alone.states)
        assert not result.output[length:, b].any()


@few
@given(case=cases(one_way=True))
def test_a_reset_is_two_calls(make: Make, engine: str, hand: Any, case: Case) -> None:
    layer, x, hx = setup(make, case, hand)
    reset = torch.zeros(case.T, case.B).bool()
    reset[case.at] = True
    result = hand.run(layer, x, hx, reset=reset)
    fresh = hand.run(layer, x[case.at :], None)
    close(result.output[case.at :], fresh.output)
    close(result.state, fresh.state)
    if case.at:
        close(result.output[: case.at], hand.run(layer, x[: case.at], hx).output)


@few
@given(case=cases())
def test_a_reset_is_two_calls_in_both_directions(
    make: Make, engine: str, hand: Any, case: Case
) -> None:
    layer, x, _ = setup(make, case, hand)
    reset = torch.zeros(case.T, case.B).bool()
    reset[case.at] = True
    result = hand.run(layer, x, None, reset=reset)
    parts = [hand.run(layer, part, None).output for part in (x[: case.at], x[case.at :])
             if len(part)]  # fmt: skip
    close(result.output, torch.cat(parts))


@few
@given(case=cases(one_way=True))
def test_streaming_is_the_sequence(make: Make, engine: str, hand: Any, case: Case) -> None:
    layer, x, hx = setup(make, case, hand)
    reset, state, outputs = torch.rand(case.T, case.B) < 0.3, hand.given(hx), []
    for x_t, reset_t in zip(x, reset, strict=True):
        output, state = layer.step(x_t, state, reset=reset_t)
        outputs.append(output)
    result = hand.run(layer, x, hx, reset=reset)
    close((torch.stack(outputs), hand.fields(state)), (result.output, result.state))
