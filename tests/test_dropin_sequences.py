"""Drop-ins over sequences: lengths, initial states, projections, dropout, and sizes of zero."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.testing import assert_close

import flexrnn

Classes = tuple[Any, Any]
Twins = Callable[..., tuple[Any, Any]]
Same = Callable[..., Any]

I, H, B, T = 4, 5, 3, 6


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def state(layer: nn.RNNBase, *batch: int) -> Any:
    """A random initial state for torch's layer."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h = randn(count, *batch, layer.proj_size or layer.hidden_size)
    return (h, randn(count, *batch, layer.hidden_size)) if isinstance(layer, nn.LSTM) else h


forms = pytest.mark.parametrize(
    "options",
    [
        {"num_layers": k, "bidirectional": two, "batch_first": first, "bias": bias}
        for k, two, first, bias in product((1, 2), (False, True), (False, True), (False, True))
    ],
    ids=str,
)


@forms
@pytest.mark.parametrize("shape", [(T, B), (1, 1)])
def test_values_and_gradients_are_torchs(
    layers: Classes,
    twins: Twins,
    assert_same: Same,
    options: dict[str, Any],
    shape: tuple[int, ...],
) -> None:
    ours, theirs = twins(layers, I, H, **options)
    x = randn(*shape, I)
    batch = shape[0] if options["batch_first"] else shape[1]
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, state(theirs, batch))


@forms
def test_one_sequence_needs_no_batch(
    layers: Classes, twins: Twins, assert_same: Same, options: dict[str, Any]
) -> None:
    ours, theirs = twins(layers, I, H, **options)
    output, _ = assert_same(ours, theirs, randn(T, I), state(theirs))
    assert output.shape == (T, H * ours.num_directions)
    assert_same(ours, theirs, randn(1, I))


@forms
def test_a_projection_is_torchs(twins: Twins, assert_same: Same, options: dict[str, Any]) -> None:
    ours, theirs = twins((flexrnn.LSTM, nn.LSTM), I, H, proj_size=2, **options)
    output, (h_n, c_n) = assert_same(ours, theirs, randn(T, T, I), state(theirs, T))
    assert (output.shape[-1], h_n.shape[-1], c_n.shape[-1]) == (2 * ours.num_directions, 2, H)
    assert ours.weight_hr_l0.shape == (2, H)
    assert ours.weight_hh_l0.shape == (4 * H, 2)
    assert_same(ours, theirs, randn(T, I), state(theirs))
    assert_same(ours, theirs, pack_sequence([randn(2, I), randn(5, I)], False), state(theirs, 2))


def test_a_projected_state_of_the_full_width_is_refused(twins: Twins) -> None:
    for ours in twins((flexrnn.LSTM, nn.LSTM), I, H, proj_size=2):
        h, c = randn(1, B, H), randn(1, B, H)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 2\)"):
            ours(randn(T, B, I), (h, c))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 3, 5\)"):
            ours(randn(T, B, I), (h[..., :2], c[..., :2]))


# Sequences of unlike lengths


def packed(lengths: tuple[int, ...], sorted_: bool) -> PackedSequence:
    return pack_sequence([randn(length, I) for length in lengths], enforce_sorted=sorted_)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("lengths", "sorted_"),
    [
        ((6, 4, 4, 1), True),
        ((6, 4, 4, 1), False),
        ((1, 4, 6, 4), False),
        ((3,), True),
        ((1, 1), True),
        ((2, 2, 2), False),
    ],
)
def test_packed_sequences_are_torchs(
    layers: Classes,
    twins: Twins,
    assert_same: Same,
    bidirectional: bool,
    num_layers: int,
    lengths: tuple[int, ...],
    sorted_: bool,
) -> None:
    x = packed(lengths, sorted_)
    for batch_first in (False, True):
        ours, theirs = twins(
            layers, I, H, num_layers, bidirectional=bidirectional, batch_first=batch_first
        )
        got, _ = assert_same(ours, theirs, x)
        assert isinstance(got, PackedSequence)
        expected = theirs(x)[0]
        assert got.batch_sizes.equal(expected.batch_sizes)
        assert got.sorted_indices is x.sorted_indices
        assert got.unsorted_indices is x.unsorted_indices
        assert_same(ours, theirs, x, state(theirs, len(lengths)))


def test_the_state_of_a_packed_sequence_is_in_the_callers_order(
    layers: Classes, twins: Twins
) -> None:
    ours, theirs = twins(layers, I, H, bidirectional=True)
    rows = [randn(length, I) for length in (2, 5, 1, 4)]
    hx = state(theirs, 4)
    _, final = ours(pack_sequence(rows, enforce_sorted=False), hx)
    for k, row in enumerate(rows):
        one = tuple(s[:, k] for s in hx) if isinstance(hx, tuple) else hx[:, k]
        _, alone = ours(row, one)
        mine = tuple(s[:, k] for s in final) if isinstance(hx, tuple) else final[:, k]
        assert_close(tuple(mine), tuple(alone), rtol=1e-12, atol=1e-12)


def test_what_lies_behind_a_sequences_end_is_never_read(layers: Classes, twins: Twins) -> None:
    ours, _ = twins(layers, I, H, num_layers=2, bidirectional=True)
    x = randn(T, B, I)
    lengths = torch.tensor([2, 6, 3])
    expected = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    for k, length in enumerate(lengths.tolist()):
        x[length:, k] = torch.nan
    got = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert_close(got, expected, rtol=0, atol=0)


# Dropout between the layers


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_dropout_draws_torchs_numbers(
    layers: Classes, twins: Twins, assert_same: Same, bidirectional: bool, p: float
) -> None:
    ours, theirs = twins(layers, I, H, 3, dropout=p, bidirectional=bidirectional)
    for x in (randn(T, B, I), randn(T, I), packed((4, 6, 2), False), packed((5, 5, 1), True)):
        assert_same(ours, theirs, x)  # from the same seed
        torch.manual_seed(1)
        _ = theirs(x)
        after = torch.rand(3)
        torch.manual_seed(1)
        _ = ours(x)
        assert torch.equal(torch.rand(3), after)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
def test_nothing_is_dropped_or_drawn_in_eval_mode_or_after_the_last_layer(
    layers: Classes, twins: Twins
) -> None:
    x = randn(T, B, I)
    for num_layers, training in ((1, True), (2, False)):
        ours, theirs = twins(layers, I, H, num_layers, dropout=0.5)
        before = torch.get_rng_state()
        got = ours.train(training)(x)
        assert torch.equal(torch.get_rng_state(), before)
        assert_close(got, theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_dropout_may_be_changed_afterwards(
    layers: Classes, twins: Twins, assert_same: Same
) -> None:
    ours, theirs = twins(layers, I, H, 2, dropout=0.5)
    ours.dropout = theirs.dropout = 0.0
    assert_same(ours, theirs, randn(T, B, I))
    ours.dropout = theirs.dropout = 0.9
    assert_same(ours, theirs, randn(T, B, I))


# Initial states


def wrong_states(count: int, batched: bool) -> list[tuple[int, ...]]:
    """Shapes that would broadcast to, be cut to, or be taken for the right one."""
    right = (count, B, H) if batched else (count, H)
    shapes = [
        tuple(n + d if k == axis else n for k, n in enumerate(right))
        for axis in range(len(right))
        for d in (-1, 1)
    ]
    shapes += [tuple(1 if k == axis else n for k, n in enumerate(right)) for axis in range(1, 3)]
    shapes += [(*right, 1), (1, *right), right[1:], (), (0,), (B, count, H)]
    return [shape for shape in dict.fromkeys(shapes) if shape != right]


@pytest.mark.parametrize(
    ("batched", "packing"),
    [(True, False), (True, True), (False, False)],
    ids=["batch", "packed", "no batch"],
)
def test_a_state_of_another_shape_is_refused_as_by_torch(
    layers: Classes, twins: Twins, batched: bool, packing: bool
) -> None:
    ours, theirs = twins(layers, I, H, 2, bidirectional=True)
    x: Any = randn(T, B, I) if batched else randn(T, I)
    if packing:
        x = pack_padded_sequence(x, torch.tensor([6, 4, 2]))
    right = state(theirs, B) if batched else state(theirs)
    for shape in wrong_states(4, batched):
        wrong = randn(*shape)
        for hx in [(wrong, right[1]), (right[0], wrong)] if isinstance(right, tuple) else [wrong]:
            if not packing:  # torch's LSTM does not look then, and reads beyond the tensor's end
                with pytest.raises(RuntimeError):
                    theirs(x, hx)
            with pytest.raises(RuntimeError, match=r"Expected hidden.* size|should also be \d-D"):
                ours(x, hx)


def test_a_cells_state_of_another_shape_is_refused_as_by_torch(
    cells: Classes, twins: Twins
) -> None:
    ours, theirs = twins(cells, I, H)
    lstm = isinstance(theirs, nn.LSTMCell)
    for x, shapes in (
        (randn(B, I), [(1, H), (B + 1, H), (B, 1), (B, H + 1), (B, H - 1), (H,), (1,)]),
        (randn(I), [(1,), (H + 1,), (H - 1,), (0,)]),
    ):
        right = randn(*x.shape[:-1], H)
        for shape in shapes:
            wrong = randn(*shape)
            for hx in [(wrong, right), (right, wrong)] if lstm else [wrong]:
                for module in (theirs, ours):
                    with pytest.raises(RuntimeError, match=r"hidden|hx"):
                        module(x, hx)


def test_states_come_back_as_torch_hands_them_out(layers: Classes, twins: Twins) -> None:
    ours, theirs = twins(layers, I, H)
    x = randn(T, B, I)
    _, hx = theirs(x)
    output, final = ours(x, hx)
    assert isinstance(final, tuple) == isinstance(hx, tuple)
    assert_close((output, final), theirs(x, hx), rtol=1e-12, atol=1e-12)
    if isinstance(hx, tuple):
        assert_close(ours(x, list(hx)), (output, final), rtol=0, atol=0)
    assert_close(ours(x, hx=None), ours(x), rtol=0, atol=0)


def test_arguments_are_read_only(layers: Classes, twins: Twins) -> None:
    ours, theirs = twins(layers, I, H, 2)
    x, hx = randn(T, B, I), state(theirs, B)
    kept, kept_hx = x.clone(), copy.deepcopy(hx)
    ours(x, hx)
    assert_close((x, hx), (kept, kept_hx), rtol=0, atol=0)


def test_memory_layout_does_not_matter(layers: Classes, twins: Twins, assert_same: Same) -> None:
    ours, theirs = twins(layers, I, H)
    x = randn(I, T, B).permute(1, 2, 0)
    assert not x.is_contiguous()
    assert_close(ours(x), theirs(x.contiguous()), rtol=1e-12, atol=1e-12)
    row = randn(1, 1, I).expand(T, B, I)
    assert_close(ours(row), theirs(row.contiguous()), rtol=1e-12, atol=1e-12)


# Sizes of zero


def test_an_empty_batch_passes_and_its_gradients_are_zero(
    layers: Classes, twins: Twins, assert_same: Same
) -> None:
    for options in ({}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}):
        ours, theirs = twins(layers, I, H, **options)
        x = randn(0, T, I) if "batch_first" in options else randn(T, 0, I)
        assert_same(ours, theirs, x)
        assert_same(ours, theirs, x, state(theirs, 0))
        ours(x)[0].sum().backward()
        for parameter in ours.parameters():
            assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=0)


def test_no_time_step_is_refused_as_by_torch(layers: Classes, twins: Twins) -> None:
    for batch_first in (False, True):
        for layer in twins(layers, I, H, batch_first=batch_first):
            x = randn(B, 0, I) if batch_first else randn(0, B, I)
            for refused in (x, randn(0, I)):
                with pytest.raises(RuntimeError, match="Expected sequence length to be larger"):
                    layer(refused)


def test_a_cell_takes_sizes_of_zero_as_torchs_does(
    cells: Classes, twins: Twins, assert_same: Same
) -> None:
    for input_size, hidden_size, batch in ((I, H, 0), (I, 0, B), (0, H, B), (0, 0, 0)):
        ours, theirs = twins(cells, input_size, hidden_size)
        h = randn(batch, hidden_size)
        hx = (h, h) if isinstance(theirs, nn.LSTMCell) else h
        assert_same(ours, theirs, randn(batch, input_size), hx)
        assert_same(ours, theirs, randn(batch, input_size))


def test_a_cells_values_and_gradients_are_torchs(
    cells: Classes, twins: Twins, assert_same: Same
) -> None:
    kinds = [{"nonlinearity": n} for n in ("tanh", "relu")] if cells[1] is nn.RNNCell else [{}]
    for options, bias in product(kinds, (True, False)):
        ours, theirs = twins(cells, I, H, bias=bias, **options)
        for batch in ((B,), (1,), ()):
            x, h = randn(*batch, I), randn(*batch, H)
            assert_same(ours, theirs, x)
            hx = (h, randn(*batch, H)) if isinstance(theirs, nn.LSTMCell) else h
            assert_same(ours, theirs, x, hx)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_state_may_be_detached_in_place(
    layers: Classes, twins: Twins, batch_first: bool, backend: str
) -> None:
    """As truncated backpropagation was written for long; no view may be."""
    ours, theirs = twins(layers, I, H, batch_first=batch_first)
    ours.backend = backend
    for learns in (False, True):
        hidden: list[Any] = [None, None]
        for _ in range(4):
            x = randn(T, T, I)
            for k, layer in enumerate((ours, theirs)):
                with torch.set_grad_enabled(learns):
                    hidden[k] = layer(x, hidden[k])[1]
                for field in hidden[k] if isinstance(hidden[k], tuple) else (hidden[k],):
                    field.detach_()
            assert_close(hidden[0], hidden[1], rtol=1e-12, atol=1e-12)
