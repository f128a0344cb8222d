# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""Plain calls of sequences: nothing that makes a call another one is overlooked."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.call import quick

pytestmark = pytest.mark.usefixtures("by_the_engine")
T, B, I, H = 6, 2, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def is_taken(layer: FlexRNN, x: Any, hx: Any = None) -> bool:
    return quick.call(layer, x, hx) is not None


@pytest.fixture
def known(own_cell: Any) -> tuple[FlexRNN, Tensor]:
    """A layer of which a plain call is remembered, with and without derivatives."""
    layer = FlexRNN(own_cell, I, H, dtype=torch.float64)
    x = randn(T, B, I)
    layer(x)
    with torch.no_grad():
        layer(x)
    assert is_taken(layer, x)
    return layer, x


Known = tuple[FlexRNN, Tensor]


def by_reference(call: Callable[[], Any]) -> Any:
    with flexrnn.backend("reference"):
        return call()


def assert_right(layer: FlexRNN, x: Tensor, hx: Any = None) -> None:
    expected = by_reference(lambda: layer(x, hx))
    assert_close(layer(x, hx), expected, rtol=1e-12, atol=1e-13)


def test_what_is_in_force_around_a_call_is_noticed(known: Known) -> None:
    layer, x = known
    for around in (
        flexrnn.backend("reference"),
        flexrnn.backend("interpreter"),
        flexrnn.record(layer),
        torch.autocast("cpu"),
    ):
        with around:
            assert not is_taken(layer, x)
    with flexrnn.record(layer) as taps:
        layer(x)
    assert taps == {}  # the cell taps nothing; a recorded call of one that does is in test_record
    output = layer(x)[0]
    assert output.requires_grad
    with torch.no_grad():
        assert not layer(x)[0].requires_grad
    with torch.inference_mode():
        assert layer(x)[0].is_inference()
    output.sum().backward()
    assert flexrnn.explain(layer, x).engine == "cpu"
    layer.backend = "interpreter"
    with flexrnn.backend("auto"):
        assert is_taken(layer, x)
        assert is_taken(layer, x[:1])


def test_the_default_dtype_counts(known: Known) -> None:
    layer, x = known
    before, ways = torch.get_default_dtype(), len(quick._memories[layer].ways)
    torch.set_default_dtype(torch.float64)
    try:
        assert_right(layer, x)
    finally:
        torch.set_default_dtype(before)
    assert len(quick._memories[layer].ways) == ways + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_derivatives_of_another_kind_take_the_long_way(known: Known) -> None:
    layer, x = known
    names = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, params, (x,))[0].square().sum()

    found = torch.func.grad(loss)(names, x)
    layer(x)[0].square().sum().backward()
    assert_close(found, {name: p.grad for name, p in layer.named_parameters()})
    tangent: Any = torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))[1]
    assert tangent.abs().sum() > 0
    each = torch.func.vmap(lambda x: layer(x)[0], 1, 1)(x[:, :, None])
    assert_close(each[:, :, 0], layer(x)[0])
    y = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(y)[0].sum(), y, create_graph=True)
    assert first.requires_grad


def test_hooks_are_called(known: Known) -> None:
    layer, x = known
    plain = layer(x)[0]
    handle = layer.register_forward_hook(lambda m, i, o: (o[0] + 1, o[1]))
    assert torch.equal(layer(x)[0], plain + 1)
    handle.remove()
    handle = layer.register_forward_pre_hook(lambda m, i: (i[0] * 0,))
    assert_close(layer(x), layer.forward(x * 0), rtol=0, atol=0)
    handle.remove()
    seen = []
    layer.register_full_backward_hook(lambda *_: seen.append(1))
    layer(x.clone().requires_grad_())[0].sum().backward()
    assert seen == [1]
    cell: Any = layer.cells[0]
    cell.inner.register_forward_hook(lambda m, i, o: 2 * o)
    assert not torch.equal(layer(x)[0], plain)
    assert_right(layer, x)


def test_what_a_layer_is_made_of_counts_as_it_is_at_the_call(known: Known, own_cell: Any) -> None:
    layer, x = known
    cell: Any = layer.cells[0]
    plain = layer(x)[0]
    with torch.no_grad():
        layer.get_parameter("decay_l0").mul_(-3)
    assert not torch.equal(layer(x)[0], plain)
    assert_right(layer, x)
    layer.decay_l0 = nn.Parameter(torch.zeros(H, dtype=torch.float64))
    assert_right(layer, x)
    decay = layer.get_parameter("decay_l0")
    for wanted in (False, True):
        decay.requires_grad_(wanted)
        layer(x)[0].sum().backward()
        assert (decay.grad is not None) == wanted
    cell.scale = 3.0
    assert_right(layer, x)
    own_cell.scale = 2.0  # hidden by the cell's own
    try:
        del cell.scale
        assert_right(layer, x)
    finally:
        own_cell.scale = 1.0
    assert_right(layer, x)
    parametrize.register_parametrization(layer, "decay_l0", nn.Tanh())
    assert not is_taken(layer, x)
    assert_right(layer, x)
    parametrize.remove_parametrizations(layer, "decay_l0")
    assert is_taken(layer, x)
    half = layer.float()
    assert half(x.float())[0].dtype == torch.float32
    with pytest.raises(ValueError, match="does not match weight dtype"):
        half(x)
    for twin in (copy.deepcopy(layer), copy.copy(layer)):
        assert_close(twin(x.float()), layer(x.float()), rtol=0, atol=0)
    gru = flexrnn.GRU(I, H, dtype=torch.float64)
    gru(x)
    assert_close(pickle.loads(pickle.dumps(gru))(x), gru(x), rtol=0, atol=0)


def test_a_method_that_is_put_in_the_place_of_another_counts(
    known: Known, own_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = known
    plain, step, begin = layer(x)[0], own_cell.step, own_cell.initial_state

    def doubled(self: Any, x: Any, state: Any) -> Any:
        return self.State(*(2 * field for field in step(self, x, state)))

    def begun(self: Any, *arguments: Any) -> Any:
        return self.State(*(field + 1 for field in begin(self, *arguments)))

    cell: Any = layer.cells[0]
    places: list[tuple[Any, str, Any]] = [
        (own_cell, "step", doubled),
        (cell, "step", lambda x, state: cell.State(state.h + x.sum(-1, keepdim=True), state.c)),
        (own_cell, "initial_state", begun),
        (flexrnn.Cell, "initial_state", begun),
        (cell, "initial_state", lambda *arguments: begun(cell, *arguments)),
    ]
    for where, name, method in places:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, method)
            assert not torch.equal(layer(x)[0], plain)
            assert_right(layer, x)
        assert torch.equal(layer(x)[0], plain)


@pytest.mark.parametrize("kind", ["plain", "buffer", "parameter"])
def test_a_tensor_that_a_cell_gets_later_counts(kind: str) -> None:
    class Shifted(cells.RNNCell):
        def step(self, x: Any, state: Any) -> Any:
            (h,) = super().step(x, state)
            return self.State(h + getattr(self, "offset", 0.0))

    layer = FlexRNN(Shifted, I, H, dtype=torch.float64)
    x, offset = randn(T, B, I), randn(H)
    assert_right(layer, x)
    assert is_taken(layer, x)
    cell: Any = layer.cells[0]
    if kind == "buffer":
        cell.register_buffer("offset", offset)
    else:
        cell.offset = nn.Parameter(offset) if kind == "parameter" else offset
    assert not is_taken(layer, x)
    assert_right(layer, x)
    del cell.offset
    assert is_taken(layer, x)
    assert_right(layer, x)


def test_options_that_a_layer_gets_later_count(known: Known, own_cell: Any) -> None:
    layer, x = known
    for name, value in (
        ("zoneout", 0.5),
        ("recurrent_dropout", 0.5),
        ("weight_drop", 0.5),
        ("checkpoint_every", 2),
    ):
        before = getattr(layer, name)
        setattr(layer, name, value)
        assert not is_taken(layer, x), name
        setattr(layer, name, before)
    assert is_taken(layer, x)
    layer.batch_first = True
    assert_right(layer, x)
    two = FlexRNN(own_cell, I, H, 2, dropout=0.5, dtype=torch.float64)
    assert not is_taken(two, x)
    assert is_taken(two.eval(), x)
    cell = own_cell(I, H, dtype=torch.float64)  # as the one that is there, but for a buffer
    cell.register_buffer("more", randn(H))
    two.cells[0] = cell
    assert not is_taken(two, x)


def test_a_cell_that_begins_in_its_own_way_or_is_no_program_takes_the_long_way() -> None:
    class Begun(cells.RNNCell):
        def initial_state(self, *arguments: Any, **named: Any) -> Any:
            return self.State(super().initial_state(*arguments, **named).h + 1)

    class Centred(cells.RNNCell):
        def step(self, x: Any, state: Any) -> Any:
            (h,) = super().step(x, state)
            return self.State(h - h.mean(0))

    class Drawing(cells.RNNCell):
        rows = (k for k in range(10**9))

        def step(self, x: Any, state: Any) -> Any:
            next(self.rows)
            return super().step(x, state)

    x = randn(T, B, I)
    layer = FlexRNN(Begun, I, H, dtype=torch.float64)
    for _ in range(2):
        assert not is_taken(layer, x)
        assert_right(layer, x)
        assert_right(layer, x, torch.zeros(1, B, H, dtype=torch.float64))
    assert is_taken(layer, x, torch.zeros(1, B, H, dtype=torch.float64))
    layer = FlexRNN(Centred, I, H, dtype=torch.float64)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"mean"):
            layer(x)
    with flexrnn.backend("auto"), pytest.warns(flexrnn.FallbackWarning):
        layer(x)
    layer = FlexRNN(Drawing, I, H, dtype=torch.float64)
    for _ in range(2):
        assert not is_taken(layer, x)


class Marked(Tensor):
    """A tensor of a class of somebody's."""


def test_a_tensor_of_another_class_is_told_of_wherever_it_is(known: Known) -> None:
    layer, x = flexrnn.LSTM(I, H, learn_initial_state=True, dtype=torch.float64), known[1]
    assert is_taken(layer, x)
    own = {name: p.detach() for name, p in layer.named_parameters()}
    for name in ("initial_h_l0", "initial_c_l0", "weight_hh_l0"):
        given = {**own, name: own[name].as_subclass(Marked)}
        with pytest.raises(RuntimeError, match=r"expected plain tensors, got a .*Marked"):
            torch.func.functional_call(layer, given, (x,))
    with flexrnn.backend("auto"), pytest.warns(flexrnn.FallbackWarning, match="Marked"):
        layer(x.as_subclass(Marked))


def test_a_mistake_is_worded_as_ever(known: Known, long: Callable[..., Any]) -> None:
    layer, x = known
    h = randn(1, B, H)

    def words(x: Any, hx: Any) -> tuple[type, str]:
        with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
            layer(x, hx)
        return raised.type, str(raised.value)

    def check(x: Any, hx: Any = None) -> None:
        assert not is_taken(layer, x, hx)
        assert words(x, hx) == long(lambda: words(x, hx))

    for wrong in (x[..., :2], x[:0], x.float(), x.half(), x.int(), x[None], x.to_sparse(),
                  x.to("meta"), x.to(torch.complex128), x.tolist(), None):  # fmt: skip
        check(wrong)
    for hx in (h, (h,), (h, h, h), (h, h[:, :1]), (h, h.float()), (h, None), (h, h.to("meta")),
               (h[0], h[0]), (), 3, {"h": h}):  # fmt: skip
        check(x, hx)
    assert_right(layer, x[:, 0])  # without a batch
    assert_right(layer, x, [h, h])
    assert is_taken(layer, x, (h, h))
    for wrong in (torch.zeros(H), torch.zeros(H + 1, dtype=torch.float64)):
        layer.decay_l0 = nn.Parameter(wrong)
        check(x)
