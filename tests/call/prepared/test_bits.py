# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""Calls that are prepared: the bits of those that are not, however operands lie."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.call import quick
from flexrnn.engine.cpu import chunks
from flexrnn.engine.cpu.straight import Straight

T, B, I, H = 6, 2, 3, 5


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_bits_are_those_of_a_call_that_was_not_prepared(
    kind: tuple[Any, dict[str, Any]],
    layers: int,
    batch_first: bool,
    taken: list[int],
    is_taken: Any,
    assert_as_ever: Any,
) -> None:
    cell, options = kind
    for dtype in (torch.float32, torch.float64):
        layer = FlexRNN(cell, I, H, layers, batch_first=batch_first, dtype=dtype, **options)
        for rows in (1, B, 9):
            _, state = layer.step(randn(rows, I, dtype=dtype))
            for shape in ((rows,), (1, rows), (2, rows), (T, rows)):
                x = randn(*shape, I, dtype=dtype)
                x = x.transpose(0, 1).contiguous() if batch_first and x.dim() == 3 else x
                run = layer if x.dim() == 3 else layer.step
                for hx in (None, state):
                    assert_as_ever(layer, partial(run, x, hx))
                    assert is_taken(partial(run, x, hx))


@pytest.mark.parametrize("batch_first", [False, True])
def test_what_torch_computes_before_the_loop_is_computed_anew(
    kind: tuple[Any, dict[str, Any]],
    batch_first: bool,
    is_taken: Any,
    assert_as_ever: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single row leaves the input's products to torch, where weights are many."""
    computed: list[int] = []
    compute = Straight._compute

    def noted(self: Straight, operands: Any, scratch: Any) -> Any:
        computed.append(len(operands))
        return compute(self, operands, scratch)

    monkeypatch.setattr(Straight, "_compute", noted)
    monkeypatch.setattr(chunks, "ROWS", 16)  # so that 60 steps are several chunks, and 9 are one
    monkeypatch.setattr(chunks, "BYTES", 1 << 14)
    cell, options = kind
    wide: dict[str, Any] = {name: 200 for name in options if name == "proj_size"}
    options = options | wide
    layer = FlexRNN(cell, 70, 300, 2, batch_first=batch_first, **options)
    _, state = layer.step(torch.randn(1, 70))
    for steps, is_prepared in ((9, True), (60, False)):  # at most one chunk of steps
        x = torch.randn(1, steps, 70) if batch_first else torch.randn(steps, 1, 70)
        for hx in (None, state):
            call = partial(layer, x, hx)
            assert_as_ever(layer, call)
            computed.clear()
            assert is_taken(call) == is_prepared
            assert len(computed) == 2 * is_prepared
            x.add_(1)
            for parameter in layer.parameters():
                parameter.mul_(0.9)
            assert_as_ever(layer, call)


def test_numbers_are_those_of_the_reference(taken: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, 2, dtype=torch.float64)
    x, state = randn(9, T, I), None
    found = []
    for x_t in x.unbind(1):
        output, state = layer.step(x_t, state)
        found.append(output)
    assert len(taken) == T - 2  # the first, and the first with a state, found out
    with flexrnn.backend("reference"):
        expected, end = layer(x.transpose(0, 1))
    assert_close(torch.stack(found), expected, rtol=1e-13, atol=1e-14)
    assert_close(state, end, rtol=1e-13, atol=1e-14)


def test_results_are_nobody_elses_memory(taken: list[int], flat: Any) -> None:
    layer = flexrnn.LSTM(I, H, 2, dtype=torch.float64)
    x, state = randn(B, I), layer.step(randn(B, I))[1]
    layer.step(x, state)
    before = [s.clone() for s in state]
    results = [layer.step(x, state) for _ in range(3)]
    assert len(taken) == 3
    tensors = [tensor for result in results for tensor in flat(result)]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == 9
    assert all(t.untyped_storage().nbytes() == t.nbytes and not t._is_view() for t in tensors)
    kept = [t.clone() for t in flat(results[2])]
    for tensor in tensors[:6]:
        version = tensors[8]._version
        tensor.fill_(7)
        assert tensors[8]._version == version
    layer.step(x, state)
    assert_close(flat(results[2]), kept, rtol=0, atol=0)
    assert_close(list(state), before, rtol=0, atol=0)


def outcome(call: Callable[[], Any]) -> str:
    try:
        return str(call())
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error)}: {error}"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_tensors_that_are_not_what_they_seem_take_the_long_way(
    taken: list[int], unprepared: Any
) -> None:
    layer = flexrnn.RNN(I, H, dtype=torch.float64)
    x, state = randn(B, I), layer.step(randn(B, I))[1]
    step = layer.step
    step(x, state)
    plain = step(x, state)
    before = len(taken)
    mapped = torch.func.vmap(lambda x, state: step(x, state)[0], (0, 1))
    assert_close(mapped(x[:, None], state[:, :, None]), plain[0][:, None])
    primal = torch.func.jvp(lambda state: step(x, state)[0], (state,), (state,))
    assert primal[1].abs().sum() > 0
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(step(dual, state)[0]).tangent
        assert tangent is not None
    negative = torch.complex(randn(B, I), -x).conj().imag
    assert negative.is_neg()
    assert_close(step(negative, state), plain, rtol=0, atol=0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = step(mode.from_tensor(x), mode.from_tensor(state))[0]
    assert fake.shape == plain[0].shape
    assert len(taken) == before
    nested: Any = torch.nested.nested_tensor([state[0]])
    for other in (state.to("meta"), state.to_sparse(), nested, state.float(), state[0],
                  None, [state], (state, state), (None,), (1.0,)):  # fmt: skip
        found = outcome(partial(step, x, other))
        assert found == unprepared(layer, lambda other=other: outcome(partial(step, x, other)))
        step(x, state)
    with flexrnn.backend("auto"), pytest.raises(RuntimeError):
        step(x, nested)
    for odd in (x.to("meta"), x.to_sparse(), x.to_sparse_csr(), torch.nested.nested_tensor([x[0]]),
                x.float(), x[0, 0]):  # fmt: skip
        found = outcome(partial(step, odd, state))
        assert found == unprepared(layer, lambda odd=odd: outcome(partial(step, odd, state)))
        step(x, state)
    assert_close(step(x, state), plain, rtol=0, atol=0)


def test_layouts_that_take_turns_are_prepared_side_by_side(taken: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    xs, state = (randn(B, I), randn(B, 2 * I)[:, :I]), layer.step(randn(B, I))[1]
    for _ in range(3):
        for x in xs:
            layer.step(x, state)
    assert len(taken) == 4


def test_operands_that_lie_in_another_way_are_read_as_they_lie(
    taken: list[int], assert_as_ever: Any
) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    state = layer.step(randn(B, I))[1]
    wide, crosswise = randn(B, 2 * I), randn(I, B)
    for x in (randn(B, I), wide[:, :I], wide[:, ::2], crosswise.t(), randn(1, I).expand(B, I)):
        layer.step(x, state)
        assert_as_ever(layer, partial(layer.step, x, state))
    turned = tuple(s.transpose(1, 2).contiguous().transpose(1, 2) for s in state)
    assert_as_ever(layer, lambda: layer.step(wide[:, :I], turned))
    twice = (state[0], state[0])
    assert_as_ever(layer, lambda: layer.step(wide[:, :I], twice))
    y = randn(B, T, I)
    for seen in (y.transpose(0, 1), y.transpose(0, 1).contiguous(), randn(T, B, 2 * I)[..., ::2]):
        assert_as_ever(layer, partial(layer, seen, state))


def test_copies_are_layers_of_their_own(taken: list[int], is_taken: Any) -> None:
    layer, x = flexrnn.GRU(I, H, dtype=torch.float64), randn(T, B, I)
    layer(x)
    plain = layer(x)[0]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not is_taken(partial(twin, x))
        assert is_taken(partial(twin, x))
        twin.get_parameter("weight_hh_l0").zero_()
        assert not torch.equal(twin(x)[0], plain)
        assert torch.equal(layer(x)[0], plain)


def test_a_tied_parameter_is_prepared(taken: list[int], is_taken: Any, assert_as_ever: Any) -> None:
    class Tied(cells.RNNCell):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            self.bias_hh = self.bias_ih

    layer, x = FlexRNN(Tied, I, H, dtype=torch.float64), randn(T, B, I)
    assert_as_ever(layer, lambda: layer(x))
    assert is_taken(lambda: layer(x))
    with flexrnn.backend("reference"):
        expected = layer(x)
    assert_close(layer(x), expected, rtol=1e-13, atol=1e-14)


def test_two_directions_and_derivatives_want_more_than_addresses(taken: list[int]) -> None:
    both = flexrnn.LSTM(I, H, bidirectional=True, dtype=torch.float64)
    one = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(T, B, I)
    for layer, mode in ((both, nullcontext()), (one, torch.enable_grad())):
        for _ in range(3):
            with mode:
                layer(x)
    assert not taken


def test_torch_without_the_guards_prepares_nothing(
    taken: list[int], monkeypatch: pytest.MonkeyPatch, assert_as_ever: Any
) -> None:
    monkeypatch.setattr("flexrnn.engine.kinds._WORKS", False)
    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), randn(T, B, I)
    assert_as_ever(layer, lambda: layer(x))
    assert not taken


def test_one_prepared_call_runs_on_several_threads(
    on_four_threads: Any, taken: list[int], flat: Any, own_cell: Any
) -> None:
    layer = FlexRNN(own_cell, I, H, 2, dtype=torch.float64)
    xs = [randn(B, I) for _ in range(4)]
    state = layer.step(xs[0])[1]
    expected = [flat(layer.step(x, state)) for x in xs]
    wrong: list[int] = []

    def run(k: int) -> None:
        with torch.no_grad(), flexrnn.backend("cpu"):
            for n in range(200):
                found = flat(layer.step(xs[(n + k) % 4], state))
                if not all(map(torch.equal, found, expected[(n + k) % 4])):
                    wrong.append(n)

    on_four_threads(run)
    assert not wrong
    assert len(taken) >= 800


STATES: dict[str, Callable[[Tensor], Tensor]] = {  # of one that has room for what is cut off
    "the same for every layer": lambda s: s[:1, :B].expand(3, B, H),
    "some rows": lambda s: s[:3, :B],
    "later rows": lambda s: s[:3, 1 : 1 + B],
    "every other layer": lambda s: s[::2, :B].contiguous().repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("how", STATES)
@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.GRUCell])
def test_layers_of_a_state_need_not_lie_side_by_side(
    how: str, cell: Any, taken: list[int], assert_as_ever: Any
) -> None:
    layer = FlexRNN(cell, I, H, num_layers=3, dtype=torch.float64)
    fields = len(layer.cells[0].State._fields)  # pyright: ignore
    for x, call in ((randn(B, I), layer.step), (randn(T, B, I), layer)):
        state: Any = tuple(STATES[how](randn(6, 4, H)) for _ in range(fields))
        state = state if fields > 1 else state[0]
        assert_as_ever(layer, lambda: call(x, state))  # noqa: B023
    assert taken


def test_freed_memory_is_an_error_as_ever(taken: list[int], is_taken: Any) -> None:
    layer, x = FlexRNN(cells.LSTMCell, I, H, dtype=torch.float64), randn(B, I)
    state = layer.step(x)[1]
    layer.step(x, state)
    assert is_taken(lambda: layer.step(x, state))
    gone = state[0].clone()
    gone.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        layer.step(x, (gone, state[1]))


def test_options_may_be_properties(assert_as_ever: Any) -> None:
    class Own(FlexRNN):
        @property
        def zoneout(self) -> Any:
            return self.__dict__["other"]

        @zoneout.setter
        def zoneout(self, value: Any) -> None:
            self.__dict__["other"] = value

    layer = Own(cells.LSTMCell, I, H, dtype=torch.float64)
    assert_as_ever(layer, lambda: layer(randn(T, B, I).fill_(0.5)))


def test_what_comes_once_is_not_prepared(monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> None:
    monkeypatch.setattr(quick, "Memory", quick.Memory.__base__)
    layer = FlexRNN(cells.LSTMCell, I, H, dtype=torch.float64)
    for steps in range(2, 6):
        layer(randn(steps, B, I))
    memory = quick._memories[layer]
    assert not memory.prepared
    layer(randn(3, B, I))
    assert len(memory.prepared) == 1
    assert not taken
    layer(randn(3, B, I))
    assert taken
