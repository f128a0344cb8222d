"""Computations that are written down: the bits of the computation, or nothing at all."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import handle_torch_function
from torch.testing import assert_close

from flexrnn.engine import replay
from flexrnn.engine.replay import ByAddress, Result, is_watched, written


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def everything(row: tuple[Tensor, ...]) -> Result:
    """Views of views, products, writing in place, and what Python decides by kinds."""
    x, w = row
    steps, rows = x.shape[:2]
    flat = x.reshape(-1, x.shape[-1])
    total = torch.zeros(2, rows, w.shape[1], dtype=x.dtype)
    total[0] = x[0] @ w
    total[1].addmm_(x[steps - 1], w).mul_(2)
    into = w.new_empty(flat.shape[0], w.shape[1])
    torch.mm(flat, w, out=into)
    joined = torch.cat([into.view(steps, rows, -1), total]) if x.is_contiguous() else into
    return joined, None, total[1], x.contiguous(), w.T, joined.sum(0), into.narrow(0, 1, 2)


def test_numbers_are_those_of_the_computation() -> None:
    whole = randn(6, 2, 3)
    for x, again in (
        (randn(4, 2, 3), whole[2:]),
        (whole[2:], whole[:4]),
        (whole[1:5], randn(4, 2, 3)),
    ):
        w, other = randn(3, 5), randn(4, 5)[1:]
        result, replayed = written(everything, (x, w))
        assert replayed is not None
        for row in ((x, w), (again, other)):
            found, expected = replayed(*row), everything(row)
            for a, b in zip(found, expected, strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    assert (a.shape, a.stride(), a.storage_offset()) == (
                        (b.shape, b.stride(), b.storage_offset())
                    )
                    assert torch.equal(a, b)
        assert_close(result, everything((x, w)), rtol=0, atol=0)


def test_a_part_is_a_tensor_of_its_own_and_an_operand_is_itself() -> None:
    x = randn(3)
    _, replayed = written(lambda row: (row[0][:], row[0].contiguous()), (x,))
    assert replayed is not None
    part, itself = replayed(x)
    assert part is not x
    assert part is not None
    assert part.data_ptr() == x.data_ptr()
    assert itself is x


def test_nothing_is_held_that_the_computation_lets_go() -> None:
    """Neither a result on the way nor a part of one; and who gets its id is not taken for it."""

    def run(row: tuple[Tensor, ...]) -> Result:
        x = row[0]
        for k in range(20):
            ends.append(weakref.ref(x) if k else weakref.ref(randn()))
            x = (x * (k + 1))[None][0]
            assert all(end() is None for end in ends)
        return (x,)

    ends: list[weakref.ref[Tensor]] = []
    x = randn(3)
    _, replayed = written(run, (x,))
    assert replayed is not None
    found, expected = replayed(x + 1)[0], x + 1
    for k in range(20):
        expected = expected * (k + 1)
    assert found is not None
    assert torch.equal(found, expected)


def test_what_nobody_reads_is_not_asked() -> None:
    asked: list[str] = []

    class Listening(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            asked.append(func.__name__)
            return func(*args, **kwargs or {})

    _, replayed = written(
        lambda row: (row[0][1:].T.reshape(-1)[2:] @ row[1],), (randn(3, 1), randn(0))
    )
    assert replayed is not None
    with Listening():
        replayed(randn(3, 1), randn(0))
    assert asked.count("as_strided") == 1
    assert not {"T", "__getitem__", "reshape", "shape"}.intersection(asked)


ELSEWHERE = randn(3)


@pytest.mark.parametrize(
    "function",
    [
        lambda row: (row[0] + row[0][0].item(),),
        lambda row: (row[0] * row[0].data_ptr(),),
        lambda row: (row[0].abs() if row[0].sum() > 0 else row[0].neg(),),
        lambda row: (row[0] + ELSEWHERE,),
        lambda row: (ELSEWHERE,),
        lambda row: (row[0].unbind()[0],),
        lambda row: (row[0][ELSEWHERE > 0],),
        lambda row: (row[0] + float(row[0].storage_offset()),),
        lambda row: (torch.as_tensor(row[0].numpy() + 1),),
    ],
)
def test_what_depends_on_more_than_kinds_is_not_written_down(
    function: Callable[[tuple[Tensor, ...]], Result],
) -> None:
    x = randn(3)
    result, replayed = written(function, (x,))
    assert replayed is None
    assert_close(result, function((x,)), rtol=0, atol=0)


def by_keyword(row: tuple[Tensor, ...]) -> Result:
    narrow: Any = torch.narrow
    return (narrow(input=row[0], dim=0, start=1, length=3)[1:].clone(),)


@pytest.mark.parametrize(
    ("function", "is_written"),
    [
        (by_keyword, True),
        (lambda row: (row[0].view(torch.int64)[1:].clone(),), False),
        (lambda row: (torch.complex(row[0], -row[0]).conj().imag[1:].clone(),), False),
        (lambda row: (torch.nn.functional.relu(row[0].clone(), inplace=True),), False),
    ],
)
def test_memory_that_is_read_otherwise_or_written_to_without_saying_so(
    function: Callable[[tuple[Tensor, ...]], Result], is_written: bool
) -> None:
    whole = randn(16)
    _, replayed = written(function, (whole[2:7],))
    assert (replayed is not None) == is_written
    if replayed is not None:
        assert_close(replayed(whole[9:14]), function((whole[9:14],)), rtol=0, atol=0)


def test_what_is_too_long_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(row: tuple[Tensor, ...]) -> Result:
        total = row[0]
        for _ in range(4):
            total = total + 1
        return (total,)

    assert written(add, (randn(3),))[1] is not None
    monkeypatch.setattr(replay, "_MOST", 3)
    result, replayed = written(add, (torch.zeros(3),))
    assert replayed is None
    assert_close(result, (torch.full((3,), 4.0),))


def address(tensor: Tensor) -> Tensor:
    """What is written down as a whole."""
    if is_watched():
        return handle_torch_function(address, (tensor,), tensor)
    return torch.full((1,), tensor.data_ptr(), dtype=torch.int64)


def test_a_function_that_hands_itself_over_is_called_anew() -> None:
    _, replayed = written(lambda row: (address(row[0]),), (randn(3),))
    assert replayed is not None
    other = randn(3)
    (found,) = replayed(other)
    assert found is not None
    assert found.item() == other.data_ptr()


def test_who_asks_for_addresses_alone_is_given_no_parts() -> None:
    asked: list[tuple[int, ...]] = []
    note = ByAddress(lambda *places: asked.append(places))

    def computation(row: tuple[Tensor, ...]) -> Result:
        x, w = row
        made = x.new_zeros(4, 5)
        note(x, x[1:, 1], w.T, made, made[2:].T, made[2:, 1:])
        return (made,)

    whole = randn(6, 3)
    _, replayed = written(computation, (whole[2:], randn(2, 5)))
    assert replayed is not None
    asked.clear()
    x, w = whole[1:], randn(9, 5)[3:5]  # of another place in its memory
    (made,) = replayed(x, w)
    assert made is not None
    parts = (x, x[1:, 1], w, made, made[2:], made[2:, 1:])
    assert asked == [tuple(part.data_ptr() for part in parts)]


def test_memory_that_was_given_back_is_an_error_not_a_crash() -> None:
    read = ByAddress(lambda *_: None)

    def computation(row: tuple[Tensor, ...]) -> Result:
        read(row[0])
        return (row[0].new_zeros(1),)

    for x in (randn(3), randn(5)[2:]):
        _, replayed = written(computation, (x,))
        assert replayed is not None
        for call in (lambda x: computation((x,)), replayed):
            other = torch.empty_like(x) if x._base is None else randn(5)[2:]
            call(other)
            other.untyped_storage().resize_(0)
            with pytest.raises(RuntimeError, match="no memory any more"):
                call(other)
    read(torch.zeros(0, 3))  # which never had any


def test_an_error_is_passed_on_and_nobody_watches_any_longer() -> None:
    with pytest.raises(RuntimeError, match="must match"):
        written(lambda row: (row[0] + row[1],), (randn(3), randn(4)))
    assert not is_watched()


def test_no_tensor_is_kept() -> None:
    x, w = randn(4, 2, 3), randn(3, 5)
    result, replayed = written(everything, (x, w))
    assert replayed is not None
    gone = [weakref.ref(t) for t in (x, w, *result) if t is not None]
    del x, w, result
    assert not any(ref() is not None for ref in gone)
    replayed(randn(4, 2, 3), randn(3, 5))
    kept = weakref.ref(replayed)
    gc.disable()
    try:
        del replayed
        assert kept() is None
    finally:
        gc.enable()
