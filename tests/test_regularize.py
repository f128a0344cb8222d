"""Zoneout, recurrent dropout and weight drop against loops by hand that draw the same masks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn.functional import dropout, linear
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.cells import HiddenState, LSTMState
from flexrnn.regularize import Drop

T, B, I, H = 6, 4, 3, 5
ALL: list[tuple[Any, dict[str, Any]]] = [
    (cells.LSTMCell, {}),
    (cells.LSTMCell, {"proj_size": 2}),
    (cells.LSTMCell, {"drop": "g"}),
    (cells.GRUCell, {}),
    (cells.GRUCell, {"drop": "n"}),
    (cells.RNNCell, {}),
    (cells.PeepholeLSTMCell, {}),
    (cells.PeepholeLSTMCell, {"drop": "g"}),
    (cells.ArticlePeepholeLSTMCell, {}),
    (cells.LayerNormLSTMCell, {}),
    (cells.LayerNormLSTMCell, {"drop": "g"}),
    (cells.NaiveLSTMCell, {}),
]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(params=["reference", "interpreter", "cpu"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    with flexrnn.backend(request.param):
        yield request.param


def lstm(**options: Any) -> FlexRNN:
    return FlexRNN(cells.LSTMCell, I, H, **{"dtype": torch.float64, **options})


def loop(layer: FlexRNN, x: Tensor, change: Callable[[int, Any, Any], Any]) -> Tensor:
    """A loop over the cell of a layer of one; `change(t, new, old)` says what the step makes."""
    (cell,) = layer._bound_cells()  # pyright: ignore[reportPrivateUsage]
    state, outputs = cell.initial_state((x.shape[1],), torch.float64), []
    for t, x_t in enumerate(x):
        state = change(t, cell.step(x_t, state), state)
        outputs.append(state[0])
    return torch.stack(outputs)


def test_zoneout_lets_units_keep_their_old_value(engine: str) -> None:
    layer, x = lstm(zoneout={"h": 0.3, "c": 0.8}), randn(T, B, I)
    torch.manual_seed(5)
    output, _ = layer(x)
    torch.manual_seed(5)
    h_kept, c_kept = (torch.empty(T, B, H, dtype=torch.bool).bernoulli_(p) for p in (0.3, 0.8))

    def change(t: int, new: LSTMState, old: LSTMState) -> LSTMState:
        return LSTMState(torch.where(h_kept[t], old.h, new.h), torch.where(c_kept[t], old.c, new.c))

    assert_close(output, loop(layer, x, change), rtol=1e-12, atol=1e-13)


def test_zoneout_takes_its_expectation_in_evaluation(engine: str) -> None:
    layer, x = lstm(zoneout={"h": 0.3, "c": 0.8}).eval(), randn(T, B, I)

    def change(t: int, new: LSTMState, old: LSTMState) -> LSTMState:
        return LSTMState(0.3 * old.h + 0.7 * new.h, 0.8 * old.c + 0.2 * new.c)

    assert_close(layer(x)[0], loop(layer, x, change), rtol=1e-12, atol=1e-13)
    assert_close(layer(x), layer(x), rtol=0, atol=0)


def test_zoneout_may_leave_a_field_alone_or_freeze_it(engine: str) -> None:
    x = randn(T, B, I)
    for training in (True, False):
        layer = lstm(zoneout={"c": 1.0}).train(training)
        output, (_, c) = layer(x)
        assert not c.any()
        assert output.any()
        both = lstm(zoneout=1).train(training)
        hx = randn(1, B, H), randn(1, B, H)
        assert_close(tuple(both(x, hx)[1]), hx, rtol=0, atol=0)


def test_as_many_units_keep_their_value_as_were_asked_for() -> None:
    layer = FlexRNN(cells.RNNCell, I, 400, zoneout=0.3, dtype=torch.float64)
    (states,) = layer(randn(100, 1, I), return_states=True)[2]
    kept = (states[1:] == states[:-1]).double().mean()
    assert abs(float(kept) - 0.3) < 0.01


@pytest.mark.parametrize("drop", ["h", "g"])
def test_recurrent_dropout_drops_the_same_at_every_step(engine: str, drop: str) -> None:
    layer, x = lstm(recurrent_dropout=0.4, drop=drop), randn(T, B, I)
    torch.manual_seed(5)
    output, _ = layer(x)
    torch.manual_seed(5)
    mask = dropout(torch.ones(B, H, dtype=torch.float64), 0.4)
    assert mask.unique().tolist() == [0, 1 / 0.6]
    h, c, outputs = torch.zeros(B, H).double(), torch.zeros(B, H).double(), []
    W, U, b, a = layer.parameters()
    for x_t in x:
        inner = linear(h * mask if drop == "h" else h, U, a)
        i, f, g, o = (linear(x_t, W, b) + inner).chunk(4, -1)
        g = g.tanh() * mask if drop == "g" else g.tanh()
        c = f.sigmoid() * c + i.sigmoid() * g
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    assert_close(output, torch.stack(outputs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("drop", ["h", "n"])
def test_of_a_gru_it_drops_no_memory(engine: str, drop: str) -> None:
    """The old state comes into the new one undropped."""
    layer = FlexRNN(cells.GRUCell, I, H, dtype=torch.float64, recurrent_dropout=1.0, drop=drop)
    x, h = randn(T, B, I), torch.zeros(B, H).double()
    W, U, b, a = layer.parameters()
    h = randn(B, H)
    expected = [h]
    for x_t in x:
        h = expected[-1]
        x_r, x_z, x_n = linear(x_t, W, b).chunk(3, -1)
        h_r, h_z, h_n = linear(h if drop == "n" else 0 * h, U, a).chunk(3, -1)
        n = ((x_n + (x_r + h_r).sigmoid() * h_n).tanh()) * (drop == "h")
        z = (x_z + h_z).sigmoid()
        expected.append((1 - z) * n + z * h)
    output, _ = layer(x, expected[0][None])
    assert_close(output, torch.stack(expected[1:]), rtol=1e-12, atol=1e-13)


def test_what_is_dropped_may_be_infinite() -> None:
    drop = Drop("Cell", (torch.tensor([[0.0, 2.0]]),))
    h = torch.tensor([[torch.inf, 3.0]], requires_grad=True)
    dropped = drop(h)
    assert dropped.tolist() == [[0, 6]]
    (gradient,) = torch.autograd.grad(dropped.sum(), h)
    assert gradient.tolist() == [[0, 2]]


def test_weight_drop_drops_recurrent_weights_once_a_call(engine: str) -> None:
    layer = lstm(weight_drop=0.4, num_layers=2, bidirectional=True)
    x = randn(T, B, I)
    torch.manual_seed(5)
    output, _ = layer(x)
    torch.manual_seed(5)
    weights = {}
    for name, weight in layer.named_parameters():
        if name.startswith("weight_hh"):
            weights[name] = dropout(weight, 0.4)
    layer.weight_drop = 0.0
    expected, _ = functional_call(layer, weights, (x,))
    assert_close(output, expected, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(o.square().sum(), list(layer.parameters())) for o in (output, expected)
    ]
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.usefixtures("by_reference")  # with which every engine is compared below
@pytest.mark.parametrize(("cell", "own"), ALL)
def test_evaluation_knows_neither_dropout(cell: Any, own: dict[str, Any]) -> None:
    hidden = {} if cell in (cells.NaiveLSTMCell, cells.ArticlePeepholeLSTMCell) else {
        "weight_drop": 0.5
    }  # fmt: skip
    layer = FlexRNN(cell, I, H, num_layers=2, recurrent_dropout=0.5, **hidden, **own)
    plain = FlexRNN(cell, I, H, num_layers=2, **own)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I)
    assert not torch.equal(layer(x)[0], plain(x)[0])
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])


def test_evaluation_behind_training_is_another_program() -> None:
    layer = FlexRNN(cells.LSTMCell, I, H, recurrent_dropout=0.5, weight_drop=0.5)
    plain, x = FlexRNN(cells.LSTMCell, I, H), torch.randn(T, B, I)
    plain.load_state_dict(layer.state_dict())
    assert not torch.equal(layer(x)[0], plain(x)[0])
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("cell", "own"), ALL)
def test_engines_give_the_same_numbers_and_a_seed_repeats_them(
    cell: Any, own: dict[str, Any], training: bool
) -> None:
    """All features at once, in two layers and both directions."""
    hidden = {} if cell in (cells.NaiveLSTMCell, cells.ArticlePeepholeLSTMCell) else {
        "weight_drop": 0.2
    }  # fmt: skip
    options = {"zoneout": 0.2, "recurrent_dropout": 0.3, "dropout": 0.2, **hidden, **own}
    layer = FlexRNN(
        cell, I, H, 2, bidirectional=True, learn_initial_state=True, dtype=torch.float64, **options
    ).train(training)  # fmt: skip
    x, reset = randn(T, B, I).requires_grad_(), torch.rand(T, B) < 0.3

    def result(backend: str) -> list[Tensor]:
        torch.manual_seed(7)
        with flexrnn.backend(backend):
            output, _, states = layer(x, lengths=[3, 6, 0, 1], reset=reset, return_states=True)
        states = (states,) if isinstance(states, Tensor) else tuple(states)
        loss = output.sum() + sum(s.square().sum() for s in states)
        return [output, *states, *torch.autograd.grad(loss, [x, *layer.parameters()],
                allow_unused=True, materialize_grads=True)]  # fmt: skip

    first, second = result("reference"), result("reference")
    assert_close(first, second, rtol=0, atol=0)
    for engine in ("interpreter", "cpu"):
        other, again = result(engine), result(engine)
        assert_close(other, first, rtol=1e-11, atol=1e-12)
        assert_close(again, other, rtol=0, atol=0)


@pytest.mark.usefixtures("by_reference")  # whose gradients those of every engine are, as above
@pytest.mark.parametrize(("cell", "own"), ALL)
def test_finite_differences_agree(cell: Any, own: dict[str, Any]) -> None:
    hidden = {} if cell in (cells.NaiveLSTMCell, cells.ArticlePeepholeLSTMCell) else {
        "weight_drop": 0.2
    }  # fmt: skip
    options = {"zoneout": 0.3, "recurrent_dropout": 0.3, "dropout": 0.2, **hidden, **own}
    layer = FlexRNN(cell, I, H, 2, bidirectional=True, dtype=torch.float64, **options)
    names = [name for name, _ in layer.named_parameters()]
    reset = torch.tensor([[0, 1], [1, 0], [0, 0]]).bool()

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        torch.manual_seed(7)
        named = dict(zip(names, weights, strict=True))
        return functional_call(layer, named, (x,), {"lengths": [3, 2], "reset": reset})[0]

    inputs = [randn(3, 2, I), *(p.detach().clone() for p in layer.parameters())]
    assert gradcheck(call, [t.requires_grad_() for t in inputs], fast_mode=True)


def test_under_autocast_and_packed_all_of_them_run() -> None:
    layer = flexrnn.LSTM(
        I, H, 2, bidirectional=True, proj_size=2, zoneout=0.2, recurrent_dropout=0.3,
        weight_drop=0.2, learn_initial_state=True,
    )  # fmt: skip
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(t, I) for t in (3, 6)], False)
    with torch.autocast("cpu"):
        output, (h, c) = layer(packed)
    assert (output.data.dtype, h.dtype, c.dtype) == (torch.bfloat16,) * 3
    output.data.float().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_step_may_drop_at_several_places(engine: str) -> None:
    class Twice(cells.GRUCell):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            h = self.drop_recurrent(state.h)
            wide = self.drop_recurrent(torch.cat([h, h], -1))
            return HiddenState((h + wide[..., H:] + x.sum(-1, keepdim=True)).tanh())

    layer, x = FlexRNN(Twice, I, H, dtype=torch.float64, recurrent_dropout=0.5), randn(T, B, I)
    torch.manual_seed(5)
    output, _ = layer(x)
    torch.manual_seed(5)
    first, second = (dropout(torch.ones(B, w, dtype=torch.float64), 0.5) for w in (H, 2 * H))
    h = torch.zeros(B, H).double()
    for x_t in x:
        h = first * h
        h = (h + second[:, H:] * h + x_t.sum(-1, keepdim=True)).tanh()
    assert_close(output[-1], h, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("by_reference")
def test_the_look_at_a_step_before_masks_are_drawn_changes_no_buffer() -> None:
    class Counting(cells.GRUCell):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.register_buffer("steps", torch.tensor(0))

        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            self.steps += 1
            return super().step(x, state)

    layer = FlexRNN(Counting, I, H, recurrent_dropout=0.5)
    layer(torch.randn(T, B, I))
    assert layer.cells[0].steps == T


class Never(cells.GRUCell):
    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(state.h + x.sum(-1, keepdim=True))


def test_a_cell_that_has_no_place_for_it_is_refused(refused: Any) -> None:
    refused(
        lambda: FlexRNN(Never, I, H, recurrent_dropout=0.5),
        ValueError,
        "recurrent_dropout: expected a cell whose step calls self.drop_recurrent, got Never",
    )
    late = FlexRNN(Never, I, H)
    late.recurrent_dropout = 0.5
    refused(
        lambda: late(torch.randn(T, B, I)), ValueError, "recurrent_dropout: expected a cell ..."
    )
    refused(
        lambda: flexrnn.NaiveLSTM(I, H, weight_drop=0.5),
        ValueError,
        "weight_drop: expected a cell with parameters weight_hh*, got NaiveLSTMCell with U_i, ...",
    )
    refused(lambda: flexrnn.LSTM(I, H, drop="c"), ValueError, "drop: expected 'h' or 'g', got 'c'")


def test_a_step_that_drops_more_or_less_often_than_at_first_is_refused(refused: Any) -> None:
    h = torch.zeros(B, H)
    once = Drop("Cell", (h,))
    refused(once.finish, RuntimeError, "Cell.step: expected 1 calls of drop_recurrent ..., got 0")
    once(h)
    refused(lambda: once(h), RuntimeError, "Cell.step: expected 1 calls ..., got 2")
    refused(
        lambda: Drop("Cell", (h,))(h[:, :2]),
        RuntimeError,
        "Cell.step: expected drop_recurrent of width 5, as when it was first called, got shape ...",
    )


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"zoneout": 1.5}, ValueError, "zoneout should be a number in range [0, 1] ..., got 1.5"),
    ({"zoneout": True}, ValueError, "zoneout should be a number in range [0, 1] ..., got True"),
    ({"zoneout": {"c": -1}}, ValueError, "zoneout['c'] should be a number in range ..., got -1"),
    (
        {"zoneout": {"d": 0.1}},
        ValueError,
        "zoneout: expected fields of LSTMCell's state ('h', 'c'), got 'd'",
    ),
    ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout should be ..., got -0.1"),
    ({"recurrent_dropout": None}, ValueError, "recurrent_dropout should be ..., got None"),
    ({"weight_drop": 2}, ValueError, "weight_drop should be a number ..., got 2"),
    (
        {"learn_initial_state": 1},
        TypeError,
        "learn_initial_state should be of type bool, got: int",
    ),
    ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every should be of type int, got: float"),
    ({"checkpoint_every": True}, TypeError, "checkpoint_every should be of type int, got: bool"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be greater than zero, got 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_options_are_checked(
    refused: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    refused(lambda: flexrnn.LSTM(I, H, **options), error, message)


def test_repr_shows_them() -> None:
    layer = flexrnn.LSTM(I, H, zoneout=0.1, weight_drop=0.2, learn_initial_state=True)
    assert layer.extra_repr() == "3, 5, zoneout=0.1, weight_drop=0.2, learn_initial_state=True"
    assert flexrnn.LSTM(I, H, checkpoint_every=4).extra_repr() == "3, 5, checkpoint_every=4"
