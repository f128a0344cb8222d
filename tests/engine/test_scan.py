"""`scan`: the loop that it stands for, for every structure; and which engine runs it."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import backend, scan
from flexrnn.engine import engines, interpreter, reference
from flexrnn.engine.scan import check_backend

T, B, I, H = 6, 4, 3, 5

Refused = Callable[[Callable[[], object], type[Exception], str], None]


class Memory(NamedTuple):
    h: Tensor
    c: Tensor


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def leak(x: Tensor, h: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return a * h + torch.tanh(x @ w)


def lstm_like(x: tuple[Tensor, Tensor], s: Memory, w: Tensor) -> Memory:
    row, gate = x
    c = gate * s.c + torch.tanh(row @ w)
    return Memory(h=s.h - torch.sigmoid(c), c=c)


def test_a_tensor_as_state_and_input() -> None:
    x, h, w, a = randn(T, B, I), randn(B, H), randn(I, H), randn(1)
    states, final = scan(leak, h, x, (w, a))
    expected, rows = h, []
    for row in x:
        expected = leak(row, expected, w, a)
        rows.append(expected)
    assert_close(states, torch.stack(rows), rtol=1e-12, atol=1e-12)
    assert_close(final, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, h, w, a]
    got = torch.autograd.grad(states.square().sum() + final.sum(), wanted)
    by_loop = torch.autograd.grad(torch.stack(rows).square().sum() + expected.sum(), wanted)
    assert_close(got, by_loop, rtol=1e-12, atol=1e-12)


def test_a_named_tuple_as_state_and_a_tuple_of_inputs() -> None:
    xs, w = (randn(T, B, I), randn(T, B, H)), randn(I, H)
    state = Memory(randn(B, H), randn(B, H))
    states, final = scan(lstm_like, state, xs, [w])
    assert type(states) is type(final) is Memory
    expected, rows = state, []
    for row in zip(*xs, strict=True):
        expected = lstm_like(row, expected, w)
        rows.append(expected)
    stacked = Memory(*map(torch.stack, zip(*rows, strict=True)))
    assert_close((states, final), (stacked, expected), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("by_reference")
def test_a_plain_tuple_stays_one_and_may_hold_tensors_of_any_shape() -> None:
    state = (torch.zeros(()), torch.zeros(2, 3, 4), torch.zeros(1, dtype=torch.int64))

    def count(x: Tensor, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return s[0] + x, s[1] - x, s[2] + 1

    states, final = scan(count, state, torch.arange(4.0))
    assert type(states) is type(final) is tuple
    assert [tuple(s.shape) for s in states] == [(4,), (4, 2, 3, 4), (4, 1)]
    assert final[0].item() == 6
    assert torch.equal(final[1], torch.full((2, 3, 4), -6.0))
    assert states[2].flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("engine", ["reference", "interpreter", "cpu"])
def test_a_count_and_a_mark_stay_of_their_dtypes(engine: str) -> None:
    def mean(x: Tensor, s: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, n, seen = s
        n = n + 1
        return h + (x - h) / n.to(h.dtype), n, seen | (x.sum(-1, keepdim=True) > 0)

    state = randn(B, I), torch.zeros(B, 1, dtype=torch.int64), torch.zeros(B, 1, dtype=torch.bool)
    x = randn(T, B, I)
    with flexrnn.backend(engine):
        states, final = scan(mean, state, x)
    assert [s.dtype for s in final] == [s.dtype for s in states] == [s.dtype for s in state]
    assert final[1].unique().tolist() == [T]
    assert torch.equal(final[2], (x.sum(-1, keepdim=True) > 0).any(0))
    assert_close(final[0], x.mean(0))


def test_one_tensor_in_a_tuple_is_given_and_taken_in_a_tuple() -> None:
    def add(x: tuple[Tensor], s: tuple[Tensor]) -> tuple[Tensor]:
        return (s[0] + x[0],)

    states, final = scan(add, (torch.zeros(2),), (torch.ones(3, 2),))
    assert_close(states, (torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]),), rtol=0, atol=0)
    assert_close(final, (torch.full((2,), 3.0),), rtol=0, atol=0)


def test_one_step_and_an_empty_batch_are_sequences_too() -> None:
    w, a = randn(I, H), randn(1)
    x, h = randn(1, B, I), randn(B, H)
    states, final = scan(leak, h, x, (w, a))
    assert_close(states[0], leak(x[0], h, w, a), rtol=1e-12, atol=1e-12)
    assert_close(states[0], final, rtol=0, atol=0)
    states, final = scan(leak, randn(0, H), randn(T, 0, I), (w, a))
    assert (states.shape, final.shape) == ((T, 0, H), (0, H))


@pytest.mark.usefixtures("by_reference")
def test_params_may_be_one_tensor_or_none_at_all() -> None:
    x, h, a = randn(T, B), randn(B), randn(1)
    got = scan(lambda x, h, a: a * h + x, h, x, a)
    assert_close(got, scan(lambda x, h: a * h + x, h, x), rtol=0, atol=0)


# Refusals

x0, h0 = torch.zeros(T, B), torch.zeros(B)


def keep(x: Any, s: Any) -> Any:
    return s


ARGUMENTS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((1, h0, x0), TypeError, "step: expected a function, got int"),
    ((keep, None, x0), TypeError, "state: expected a tensor or a tuple of tensors, got NoneType"),
    ((keep, [h0], x0), TypeError, "state: expected a tensor or a tuple of tensors, got list"),
    ((keep, (), x0), TypeError, "state: expected a tensor or a tuple of tensors, got tuple"),
    ((keep, (h0, 0.0), x0), TypeError, "state: expected tensors only, got state[1] float"),
    ((keep, h0, {"x": x0}), TypeError, "xs: expected a tensor or a tuple of tensors, got dict"),
    ((keep, h0, (x0, None)), TypeError, "xs: expected tensors only, got xs[1] NoneType"),
    ((keep, h0, x0[:0]), ValueError, "xs: expected at least one time step, got xs[0] of (0, 4)"),
    ((keep, h0, torch.ones(())), ValueError, "xs: expected at least one time step, got xs[0] ..."),
    (
        (keep, h0, (x0, x0[1:])),
        ValueError,
        "xs: expected 6 time steps everywhere, got xs[1] of shape (5, 4)",
    ),
    ((keep, h0, x0, None), TypeError, "params: expected a tensor or a tuple ..., got NoneType"),
    ((keep, h0, x0, (h0, 1)), TypeError, "params: expected tensors only, got params[1] int"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS)
def test_arguments_that_do_not_fit(
    refused: Refused, arguments: Any, error: type[Exception], message: str
) -> None:
    refused(lambda: scan(*arguments), error, message)


class Other(NamedTuple):
    c: Tensor
    h: Tensor


RESULTS: list[tuple[Any, Any, type[Exception], str]] = [
    (h0, None, TypeError, "step: expected a Tensor, got NoneType"),
    (h0, (h0,), TypeError, "step: expected a Tensor, got tuple"),
    ((h0,), h0, TypeError, "step: expected a tuple, got Tensor"),
    ((h0, h0), (h0,), TypeError, "step: expected a state of 2 tensors, got 1"),
    ((h0, h0), [h0, h0], TypeError, "step: expected a tensor or a tuple of tensors, got list"),
    ((h0, h0), (h0, 1), TypeError, "step: expected tensors only, got step[1] int"),
    (Memory(h0, h0), (h0, h0), TypeError, "step: expected a Memory, got tuple"),
    # Taken by position, h would become c.
    (Memory(h0, h0), Other(h0, h0), TypeError, "step: expected a Memory, got Other"),
    (
        h0,
        h0[:1],
        RuntimeError,
        "step: expected tensor 0 of the state to stay (4,) torch.float32, got (1,) torch.float32",
    ),
    (
        (h0, h0),
        (h0, h0.long()),
        RuntimeError,
        "step: expected tensor 1 of the state to stay (4,) torch.float32, got (4,) torch.int64",
    ),
    (
        h0,
        h0.to("meta"),
        RuntimeError,
        "step: expected tensor 0 of the state to stay on cpu, got meta",
    ),
]


@pytest.mark.parametrize(("state", "returned", "error", "message"), RESULTS)
def test_results_that_do_not_fit(
    refused: Refused, state: Any, returned: Any, error: type[Exception], message: str
) -> None:
    refused(lambda: scan(lambda x, s: returned, state, x0), error, message)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_program_is_for_a_batch(shape: tuple[int, ...]) -> None:
    got = r"expected a batch: .* got inputs of \(6,\) and states of \(5?,?\)"
    with backend("interpreter"), pytest.raises(RuntimeError, match=got):
        scan(lambda x, h: 0.5 * h + x, torch.zeros(shape), torch.ones(T))


def test_an_exception_of_the_step_comes_through() -> None:
    def broken(x: Tensor, h: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        scan(broken, h0, x0)


# The reference engine


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1), (1, 0)])
def test_the_reference_keeps_what_is_asked_for_in_the_order_of_time(
    reverse: bool, kept: tuple[int, ...]
) -> None:
    xs, w = (randn(T, B, I), randn(T, B, H)), randn(I, H)
    state = Memory(randn(B, H), randn(B, H))
    history, final = reference.run(
        lambda row, s: lstm_like((row[0], row[1]), s, w), state, xs, reverse=reverse, keep=kept
    )
    rows: list[Any] = [None] * T
    for t in reversed(range(T)) if reverse else range(T):
        state = rows[t] = lstm_like((xs[0][t], xs[1][t]), state, w)
    assert_close(final, state, rtol=0, atol=0)
    assert len(history) == len(kept)
    for got, field in zip(history, kept, strict=True):
        assert_close(got, torch.stack([row[field] for row in rows]), rtol=0, atol=0)


# Which engine runs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each run of an engine by the name of `counted`, which is the interpreter."""
    calls: list[str] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append("counted")
        return interpreter.forward(*args, **kwargs)

    counted = SimpleNamespace(**{**vars(interpreter), "forward": forward})
    monkeypatch.setitem(engines.ENGINES, "counted", counted)
    return calls


def test_backend_is_in_force_inside_the_block_only(calls: list[str]) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    expected = layer(x)
    assert calls == []
    with backend("counted"):
        assert_close(layer(x), expected)
        assert len(calls) == 1
        with backend("reference"):
            layer(x)
            thread = threading.Thread(target=layer, args=(x,))  # starts with no block around it
            thread.start()
            thread.join()
        assert len(calls) == 1
        scan(keep, h0, x0)
        assert len(calls) == 2
    layer(x)
    assert len(calls) == 2
    own = flexrnn.GRU(I, H, backend="counted")
    own(x)
    assert len(calls) == 3
    with backend("reference"):
        own(x)
    assert len(calls) == 3


def test_a_block_is_left_also_by_an_exception(calls: list[str]) -> None:
    with pytest.raises(KeyError), backend("counted"):
        raise KeyError
    scan(keep, h0, x0)
    assert calls == []


@pytest.mark.parametrize("name", ["gpu", "", "AUTO", None, 0, ["auto"], torch.ones(2)], ids=str)
def test_an_engine_that_does_not_exist(refused: Refused, name: Any) -> None:
    message = f"backend: expected one of 'auto', 'reference'..., got {name!r}"
    refused(lambda: check_backend(name), ValueError, message)
    refused(lambda: flexrnn.LSTM(I, H, backend=name), ValueError, message)
    refused(lambda: backend(name).__enter__(), ValueError, message)


def test_whole_numbers_of_a_state_that_do_not_begin_at_zero() -> None:
    """They are cast as what is given at every step is."""
    start = torch.zeros(2, 4), torch.full((2, 4), 10, dtype=torch.int32)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return state[0] + x + state[1].float(), state[1] + 1

    found: list[tuple[Tensor, ...]] = []
    for engine in ("auto", "reference"):
        with flexrnn.backend(engine):
            found.append(flexrnn.scan(step, start, torch.randn(5, 2, 4).abs() * 0)[1])
    assert_close(*found)
    assert found[0][1].eq(15).all()


@pytest.mark.filterwarnings("ignore:.*whole number:flexrnn.FallbackWarning")
def test_whole_numbers_that_no_program_knows() -> None:
    """In float32 there is no 16,777,217."""
    tokens = torch.tensor([[16_777_217], [16_777_216], [3]])[..., None]

    def step(n: Tensor, h: Tensor) -> Tensor:
        return h + (n == 16_777_217)

    for dtype in (torch.float32, torch.float64):
        states, _ = flexrnn.scan(step, torch.zeros(1, 2, dtype=dtype), tokens)
        assert states[:, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*expected whole numbers:flexrnn.FallbackWarning")
@pytest.mark.parametrize("learns", [False, True])
def test_whole_numbers_that_grow_beyond_those_that_a_program_knows(learns: bool) -> None:
    """Beside float32 a counter would in the end stay at 16,777,216."""

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return state[0] + x * (state[1] % 2 == 0), state[1] + 1

    x = torch.ones(4, 2, requires_grad=learns)
    for dtype in (torch.int64, torch.int32):
        start = torch.zeros(2), torch.full((2,), 2**20 - 2, dtype=dtype)
        (h, _), (_, n) = flexrnn.scan(step, start, x)
        assert h[:, 0].tolist() == [1, 1, 2, 2]
        assert n.tolist() == [2**20 + 2] * 2
        with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="got 1048575 to 1048578"):
            flexrnn.scan(step, start, x)
