"""`lengths` and `reset`: the same as sequences cut by hand, gradients too; padding is nothing."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN

Make = Callable[..., FlexRNN]
T, B, I, H = 6, 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


LENGTHS = [3, 6, 0, 1]
RESET = torch.tensor(
    [
        [1, 0, 1, 0, 0, 0],  # before the first step, and within
        [0, 0, 0, 1, 1, 0],  # twice in a row
        [0, 1, 0, 0, 0, 1],
        [0, 1, 1, 1, 1, 1],  # all behind the end, if there are lengths
    ]
).bool().T  # fmt: skip


def state_of(hand: Any, layer: FlexRNN, batch: int = B) -> tuple[Tensor, ...]:
    return tuple(randn(*f.shape) for f in hand.fields(layer(torch.zeros(1, batch, I).double())[1]))


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("marked", ["lengths", "reset", "both"])
@pytest.mark.parametrize(("L", "bidirectional", "learned"), [(1, False, False), (2, True, True)])
def test_they_are_sequences_cut_by_hand(
    make: Make, engine: str, hand: Any, L: int, bidirectional: bool, learned: bool, marked: str,
    with_state: bool,
) -> None:  # fmt: skip
    layer = make(num_layers=L, bidirectional=bidirectional, learn_initial_state=learned)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    x = randn(T, B, I).requires_grad_()
    hx = tuple(f.requires_grad_() for f in state_of(hand, layer)) if with_state else None
    lengths = LENGTHS if marked != "reset" else None
    reset = RESET if marked != "lengths" else None
    hand.assert_alike(
        layer,
        lambda: hand.run(layer, x, hx, lengths=lengths, reset=reset),
        lambda: hand.by_hand(layer, x, hx, lengths, reset),
        x,
        hx,
    )


@pytest.mark.parametrize("engine", ["reference", "cpu"], indirect=True)
def test_finite_differences_agree(make: Make, engine: str, hand: Any) -> None:
    layer = make(num_layers=2, bidirectional=True, learn_initial_state=True)
    names = [name for name, _ in layer.named_parameters()]
    x, hx = randn(3, 2, I), state_of(hand, layer, 2)
    reset = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        state, weights = rest[: len(hx)], rest[len(hx) :]
        weights = dict(zip(names, weights, strict=True))
        options = {"lengths": torch.tensor([3, 2]), "reset": reset, "return_states": True}
        arguments = (x, hand.given(state))
        result = torch.func.functional_call(layer, weights, arguments, options)
        return (result[0], *hand.fields(result[1]), *hand.fields(result[2]))

    inputs = [x, *hx, *(p.detach() for p in layer.parameters())]
    assert gradcheck(call, [t.clone().requires_grad_() for t in inputs], fast_mode=True)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_padding_touches_no_number_and_no_gradient(
    make: Make, engine: str, hand: Any, poison: float
) -> None:
    layer = make(num_layers=2, bidirectional=True)
    valid = torch.arange(T)[:, None] < torch.tensor(LENGTHS)
    found = []
    for filling in (0.0, poison):
        torch.manual_seed(1)
        x = torch.where(valid[..., None], randn(T, B, I), filling).requires_grad_()
        reset = RESET if filling else RESET & valid  # nor do resets behind the end
        result = hand.run(layer, x, None, lengths=torch.tensor(LENGTHS), reset=reset)
        assert not result.output[~valid].any()
        loss = result.output.sum() + sum(f.square().sum() for f in (*result.state, *result.states))
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        assert not gradients[0][~valid].any()
        found.append((result, gradients))
    assert_close(found[0], found[1], rtol=0, atol=0)


class Moved(NamedTuple):
    """A state that keeps an input."""

    h: Tensor
    x: Tensor


class Direction(flexrnn.Cell):
    """Reads where its input points to, which zeros do not tell, and where it has moved to."""

    State = Moved

    def __init__(self, input_size: int, hidden_size: int, **options: Any):
        super().__init__(input_size, hidden_size)
        del options["bias"]
        self.W = nn.Parameter(torch.randn(input_size, hidden_size, **options))

    @property
    def state_sizes(self) -> dict[str, int]:
        return {"x": self.input_size}

    def step(self, x: Any, state: Any) -> Any:
        way = x - state.x
        ways = x / x.norm(dim=-1, keepdim=True) + way / way.norm(dim=-1, keepdim=True)
        return Moved(torch.tanh(state.h / 2 + (ways + x.abs().log()) @ self.W), x)


@pytest.mark.parametrize("way", ["call", "states", "record", "checkpoint", "compile", "vmap"])
def test_padding_touches_nothing_where_a_step_has_no_derivative_at_zero(
    engine: str, hand: Any, way: str
) -> None:
    layer = FlexRNN(Direction, I, H, bidirectional=True, dtype=torch.float64)
    lengths = torch.tensor([3, 6, 2, 1])
    valid = torch.arange(T)[:, None] < lengths
    x = torch.where(valid[..., None], randn(T, B, I), torch.nan).requires_grad_()
    expected = hand.by_hand(layer, x, None, lengths.tolist(), None).output
    layer.checkpoint_every = 2 if way == "checkpoint" else None
    if way == "vmap":
        one = torch.vmap(lambda x, n: layer(x[:, None], lengths=n[None])[0][:, 0], (1, 0), 1)
        output = one(x, lengths)
    elif way == "compile":
        torch.compiler.reset()
        output = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, lengths=lengths)[0]
    else:
        with flexrnn.record(layer) if way == "record" else nullcontext():
            output = layer(x, lengths=lengths, return_states=way == "states")[0]
    factor = randn(T, B, 2 * H)
    found = [torch.autograd.grad(y, [x, *layer.parameters()], factor) for y in (output, expected)]
    assert_close((output, *found[0]), (expected, *found[1]), rtol=1e-12, atol=1e-13)


def test_no_gradient_crosses_a_cut(make: Make, engine: str) -> None:
    layer = make(num_layers=2, bidirectional=True)
    x, reset = randn(T, 1, I).requires_grad_(), torch.zeros(T, 1).bool()
    reset[3] = True
    output, _ = layer(x, reset=reset)
    (before,) = torch.autograd.grad(output[:3].sum(), x, retain_graph=True)
    (behind,) = torch.autograd.grad(output[3:].sum(), x)
    assert before[:3].all()
    assert behind[3:].all()
    assert not before[3:].any()
    assert not behind[:3].any()


def test_what_came_before_a_cut_may_have_been_anything(make: Make, engine: str) -> None:
    """A sequence that has diverged does not spoil the one behind the cut."""
    layer, x, reset = make(), randn(T, 1, I), torch.zeros(T, 1).bool()
    x[:3], reset[3] = torch.nan, True
    assert_close(layer(x, reset=reset)[0][3:], layer(x[3:])[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_came_before_a_cut_spoils_its_own_gradients_and_those_of_the_weights(
    make: Make, engine: str, hand: Any, poison: float
) -> None:
    """The loss looks behind the cut alone; but a weight's gradient is a sum over all steps."""
    layer, x, reset = make(), randn(T, 2, I), torch.zeros(T, 2).bool()
    hx = tuple(f.requires_grad_() for f in state_of(hand, layer, 2))
    x[:3, 0], reset[3] = poison, True
    fresh = x[3:].clone().requires_grad_()

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        x.requires_grad_()
        loss = layer(x, hand.given(hx), reset=reset)[0][3:].square().sum()
        leaves = [x, *hx, *layer.parameters()]
        return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)

    by_x, *others = gradients(x)
    assert by_x[:3, 0].isnan().all()  # 0 · NaN
    assert not by_x[:3, 1].any()
    output, _ = layer(fresh)
    (expected,) = torch.autograd.grad(output.square().sum(), fresh, retain_graph=True)
    assert_close(by_x[3:], expected, rtol=1e-11, atol=1e-12)
    assert any(g.isnan().any() for g in others[len(hx) :])
    assert all(not f[:, 1].any() for f in others[: len(hx)])

    # With other numbers in their place, whatever numbers, they are those of the segment alone.
    by_x, *others = gradients(torch.where(x.detach().isfinite(), x.detach(), 0))
    assert not by_x[:3].any()
    expected = torch.autograd.grad(
        output.square().sum(), list(layer.parameters()), allow_unused=True, materialize_grads=True
    )
    assert_close(tuple(others[len(hx) :]), expected, rtol=1e-11, atol=1e-12)


def test_a_packed_sequence_is_the_same_as_lengths(make: Make, engine: str, hand: Any) -> None:
    layer = make(num_layers=2, bidirectional=True)
    x, hx, lengths = randn(T, B, I), state_of(hand, layer), torch.tensor([3, 6, 2, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, state = layer(packed, hand.given(hx))
    output, final = layer(x, hand.given(hx), lengths=lengths)
    assert_close(output, pad_packed_sequence(expected)[0], rtol=1e-12, atol=1e-13)
    assert_close(final, state, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_lengths_may_be_any_integers_or_a_list(make: Make, dtype: torch.dtype) -> None:
    layer, x = make(), randn(T, B, I)
    expected = layer(x, lengths=torch.tensor(LENGTHS))
    assert_close(layer(x, lengths=torch.tensor(LENGTHS, dtype=dtype)), expected, rtol=0, atol=0)
    array = np.array(LENGTHS, dtype=str(dtype).removeprefix("torch."))
    for lengths in (LENGTHS, array, list(array)):
        assert_close(layer(x, lengths=lengths), expected, rtol=0, atol=0)


def test_marks_may_be_arrays_of_numpys(make: Make) -> None:
    layer, x = make(), randn(T, B, I)
    expected = layer(x, lengths=LENGTHS, reset=RESET)

    def call(x: Tensor) -> Any:
        return layer(x, lengths=np.array(LENGTHS), reset=RESET.numpy())

    assert_close(call(x), expected, rtol=0, atol=0)
    turned, kept = np.array(LENGTHS[::-1])[::-1], RESET.numpy().copy()
    kept.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = layer(x, lengths=turned.astype("uint16"), reset=kept[::-1][::-1])
    assert_close(found, expected, rtol=0, atol=0)
    compiled: Any = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), expected, rtol=1e-11, atol=1e-12)


def test_batch_first_and_no_batch(make: Make, hand: Any) -> None:
    layer, x = make(num_layers=2, bidirectional=True), randn(T, B, I)
    expected = hand.run(layer, x, None, lengths=LENGTHS, reset=RESET)
    for b in range(B):
        row = hand.run(layer, x[:, b], None, lengths=torch.tensor(LENGTHS[b]), reset=RESET[:, b])
        assert_close(row.output, expected.output[:, b], rtol=1e-12, atol=1e-13)
        assert_close(row.state, tuple(f[:, b] for f in expected.state), rtol=1e-12, atol=1e-13)
        assert_close(row.states, tuple(f[:, :, b] for f in expected.states), rtol=1e-12, atol=1e-13)
    layer.batch_first = True
    result = hand.run(layer, x.transpose(0, 1), None, lengths=LENGTHS, reset=RESET.T)
    assert_close(result.output, expected.output.transpose(0, 1), rtol=0, atol=0)
    assert_close(result.state, expected.state, rtol=0, atol=0)
    assert_close(result.states, tuple(f.transpose(1, 2) for f in expected.states), rtol=0, atol=0)


def test_states_hold_output_and_final_state(make: Make, engine: str, hand: Any) -> None:
    layer, x = make(num_layers=2), randn(T, B, I)
    result = hand.run(layer, x, None)
    assert torch.equal(result.states[0][1], result.output)
    assert_close(tuple(f[:, -1] for f in result.states), result.state, rtol=0, atol=0)
    states = layer(x, return_states=True)[2]
    assert type(states) is type(layer(x)[1])  # the state's class, or the bare tensor


def test_the_result_has_two_parts_unless_states_are_asked_for(make: Make) -> None:
    layer, x = make(), randn(T, B, I)
    assert len(layer(x, lengths=LENGTHS, reset=RESET)) == 2
    assert len(layer(x, return_states=False)) == 2


def test_under_autocast_all_comes_in_its_dtype(make: Make, hand: Any) -> None:
    layer, x = make(num_layers=2, bidirectional=True, dtype=None), torch.randn(T, B, I)
    with torch.autocast("cpu"):
        result = hand.run(layer, x, None, lengths=LENGTHS, reset=RESET)
        plain = layer(x[:3, :1])[0]
    assert {t.dtype for t in (result.output, *result.state, *result.states)} == {torch.bfloat16}
    cut = torch.zeros_like(RESET)
    with torch.autocast("cpu"):
        marked = layer(x, lengths=LENGTHS, reset=cut)[0][:3, :1]
    # Calls of so few rows multiply in float32 where larger ones round what they multiply.
    assert_close(marked, plain, rtol=0.016, atol=2 * torch.finfo(torch.bfloat16).eps)


def test_resets_return_to_the_state_that_the_cell_says(engine: str) -> None:
    class Ones(flexrnn.GRUCell):
        def initial_state(self, *args: Any, **kwargs: Any) -> Any:
            return self.State(super().initial_state(*args, **kwargs).h + 1)

    layer, x = FlexRNN(Ones, I, H, dtype=torch.float64), randn(T, B, I)
    reset = torch.zeros(T, B).bool()
    reset[2] = True
    output, _ = layer(x, randn(1, B, H), reset=reset)
    assert_close(output[2:], layer(x[2:], torch.ones(1, B, H).double())[0])


zeros, index = torch.zeros, torch.tensor

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lengths": 2.5}, TypeError, "lengths: expected a tensor of integers, got float"),
    ({"lengths": np.zeros(2)}, TypeError, "lengths: expected integers, got torch.float64"),
    ({"reset": np.zeros((3, 2))}, TypeError, "reset: expected torch.bool, got torch.float64"),
    ({"lengths": np.array(["1"])}, TypeError, "lengths: expected a tensor of ..., got ndarray"),
    ({"lengths": True}, TypeError, "lengths: expected a tensor of integers, got bool"),
    ({"lengths": [1, 2.0]}, TypeError, "lengths: expected integers, got [1, 2.0]"),
    ({"lengths": zeros(2)}, TypeError, "lengths: expected integers, got torch.float32"),
    ({"lengths": zeros(2).bool()}, TypeError, "lengths: expected integers, got torch.bool"),
    (
        {"lengths": index([1, 2, 3])},
        ValueError,
        "lengths: expected shape (2,), one for each sequence, got (3,)",
    ),
    ({"lengths": 4}, ValueError, "lengths: expected shape (2,), ..., got ()"),
    (
        {"lengths": index([4, 5])},
        ValueError,
        "lengths: expected numbers from 0 to 4, the number of time steps, got [4, 5]",
    ),
    ({"lengths": [-1, 4]}, ValueError, "lengths: expected numbers from 0 to 4, ..., got [-1, 4]"),
    ({"reset": [True]}, TypeError, "reset: expected a tensor of torch.bool, got list"),
    ({"reset": zeros(4, 2)}, TypeError, "reset: expected torch.bool, got torch.float32"),
    (
        {"reset": zeros(2, 4).bool()},
        ValueError,
        "reset: expected shape (T, B) = (4, 2), got (2, 4)",
    ),
    ({"reset": zeros(2).bool()}, ValueError, "reset: expected shape (T, B) = (4, 2), got (2,)"),
    (
        {"reset": zeros(4, 2, device="meta").bool()},
        RuntimeError,
        "reset: expected it on the input's device cpu, got meta",
    ),
    ({"return_states": 1}, TypeError, "return_states should be of type bool, got: int"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_does_not_fit_is_refused(
    refused: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    layer = flexrnn.LSTM(I, H)
    refused(lambda: layer(zeros(4, 2, I), **options), error, message)


def test_shapes_of_the_other_layouts_are_named(refused: Any) -> None:
    layer = flexrnn.LSTM(I, H, batch_first=True)
    refused(
        lambda: layer(zeros(2, 4, I), reset=zeros(4, 2).bool()),
        ValueError,
        "reset: expected shape (B, T) = (2, 4), got (4, 2)",
    )
    refused(
        lambda: layer(zeros(4, I), reset=zeros(4, 1).bool()),
        ValueError,
        "reset: expected shape (T,) = (4,), got (4, 1)",
    )
    refused(
        lambda: layer(zeros(4, I), lengths=[4]),
        ValueError,
        "lengths: expected shape (), one for each sequence, got (1,)",
    )


@pytest.mark.parametrize(
    "options", [{"lengths": [1, 1]}, {"reset": zeros(2, 2).bool()}, {"return_states": True}]
)
def test_a_packed_sequence_takes_none_of_them(refused: Any, options: dict[str, Any]) -> None:
    packed = pack_padded_sequence(zeros(2, 2, I), index([2, 1]))
    message = f"{next(iter(options))}: expected none with a PackedSequence, which has lengths ..."
    refused(lambda: flexrnn.LSTM(I, H)(packed, **options), ValueError, message)
