"""What holds for every LSTM, whatever its weights: all three layers, sizes drawn by Hypothesis."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

Layer = NaiveCustomLSTM | CustomLSTM

small = st.integers(1, 6)
quick = settings(max_examples=25, deadline=None)


def setting(
    make: Callable[[int, int], Layer],
    B: int,
    T: int,
    I: int,
    H: int,
    seed: int = 0,
) -> tuple[Layer, Tensor, tuple[Tensor, Tensor]]:
    """A layer, an input and a pair of initial states, in float64."""
    torch.manual_seed(seed)
    layer = make(I, H).double()
    h_0, c_0 = torch.randn(2, B, H, dtype=torch.float64)
    return layer, torch.randn(B, T, I, dtype=torch.float64), (h_0, c_0)


def flat(result: tuple[Tensor, tuple[Tensor, Tensor]]) -> list[Tensor]:
    hidden_seq, (h_T, c_T) = result
    return [hidden_seq, h_T, c_T]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@quick
@given(data=st.data(), B=small, T=st.integers(2, 8), I=small, H=small, seed=st.integers(0, 99))
def test_splitting_the_sequence_and_carrying_the_state(
    make: Callable[[int, int], Layer],
    data: st.DataObject,
    B: int,
    T: int,
    I: int,
    H: int,
    seed: int,
) -> None:
    layer, x, states = setting(make, B, T, I, H, seed)
    cut = data.draw(st.integers(1, T - 1))
    first, carried = layer(x[:, :cut], states)
    second, final = layer(x[:, cut:], carried)
    close(flat((torch.cat([first, second], dim=1), final)), flat(layer(x, states)))


@quick
@given(data=st.data(), B=st.integers(2, 6), T=small, I=small, H=small)
def test_permuting_the_batch_permutes_the_result(
    make: Callable[[int, int], Layer],
    data: st.DataObject,
    B: int,
    T: int,
    I: int,
    H: int,
) -> None:
    layer, x, (h_0, c_0) = setting(make, B, T, I, H)
    order = data.draw(st.permutations(range(B)))
    permuted = layer(x[order], (h_0[order], c_0[order]))
    close(flat(permuted), [result[order] for result in flat(layer(x, (h_0, c_0)))])


def test_batch_rows_do_not_touch_one_another(make: Callable[[int, int], Layer]) -> None:
    """NaN in one row, in x or in a state, stays in that row, forward and backward."""
    layer, x, (h_0, c_0) = setting(make, 3, 5, 2, 4)
    clean = flat(layer(x, (h_0, c_0)))
    x[1], h_0[1], c_0[1] = float("nan"), float("nan"), float("nan")
    x.requires_grad_()
    dirty = flat(layer(x, (h_0, c_0)))
    others = [0, 2]
    close([result[others] for result in dirty], [result[others] for result in clean])
    assert all(result[1].isnan().all() for result in dirty)

    (gradient,) = torch.autograd.grad(dirty[0][0].sum(), x)
    assert gradient[0].count_nonzero() == gradient[0].numel()
    assert gradient[2].count_nonzero() == 0


def test_a_step_does_not_see_the_future(make: Callable[[int, int], Layer]) -> None:
    layer, x, states = setting(make, 2, 6, 3, 4)
    before = layer(x, states)[0]
    x[:, 3:] = float("nan")
    after = layer(x, states)[0]
    assert torch.equal(after[:, :3], before[:, :3])
    assert after[:, 3:].isnan().all()


@pytest.mark.parametrize(
    ("B", "T", "I", "H"), [(2, 1, 3, 4), (1, 5, 3, 4), (2, 5, 1, 4), (2, 5, 3, 1), (1, 1, 1, 1)]
)
def test_sizes_of_one(
    make: Callable[[int, int], Layer],
    B: int,
    T: int,
    I: int,
    H: int,
) -> None:
    layer, x, states = setting(make, B, T, I, H)
    hidden_seq, (h_T, c_T) = layer(x, states)
    assert hidden_seq.shape == (B, T, H)
    assert h_T.shape == c_T.shape == (B, H)
    # and equal to the same rows and steps of a larger call
    larger = layer(x.repeat(3, 1, 1), (states[0].repeat(3, 1), states[1].repeat(3, 1)))
    close(flat((hidden_seq, (h_T, c_T))), [result[:B] for result in flat(larger)])


def test_batch_of_none(make: Callable[[int, int], Layer]) -> None:
    layer, x, states = setting(make, 0, 5, 3, 4)
    hidden_seq, (h_T, c_T) = layer(x, states)
    assert hidden_seq.shape == (0, 5, 4)
    assert h_T.shape == c_T.shape == (0, 4)
    hidden_seq.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() == 0


def test_non_contiguous_input(make: Callable[[int, int], Layer]) -> None:
    layer, x, (h_0, c_0) = setting(make, 3, 5, 2, 4)
    expected = flat(layer(x, (h_0, c_0)))
    time_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    every_other = torch.stack([x, x.flip(0)], dim=-1).flatten(2)[:, :, ::2]
    turned = [state.T.contiguous().T for state in (h_0, c_0)]
    for view in (time_first, every_other):
        assert not view.is_contiguous()
        close(flat(layer(view, (turned[0], turned[1]))), expected)
    one_row = x[:1].expand(3, -1, -1)  # stride 0
    close(flat(layer(one_row)), flat(layer(one_row.contiguous())))


def test_states_default_to_zeros(make: Callable[[int, int], Layer]) -> None:
    layer, x, _ = setting(make, 3, 5, 2, 4)
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    for given_zeros in ((zeros, zeros), [zeros, zeros]):
        torch.testing.assert_close(flat(layer(x)), flat(layer(x, given_zeros)), rtol=0, atol=0)


def test_result_is_contiguous_and_ends_in_the_last_output(
    make: Callable[[int, int], Layer],
) -> None:
    layer, x, states = setting(make, 3, 5, 2, 4)
    hidden_seq, (h_T, _) = layer(x, states)
    assert hidden_seq.is_contiguous()
    assert torch.equal(hidden_seq[:, -1], h_T)


def test_arguments_stay_as_they_were(make: Callable[[int, int], Layer]) -> None:
    layer, x, states = setting(make, 3, 5, 2, 4)
    kept = [t.clone() for t in (x, *states)]
    layer(x, states)
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, *states), strict=True))


def test_repeating_a_call_repeats_the_numbers(make: Callable[[int, int], Layer]) -> None:
    layer, x, states = setting(make, 3, 5, 2, 4)
    training = flat(layer(x, states))
    torch.testing.assert_close(flat(layer.eval()(x, states)), training, rtol=0, atol=0)
