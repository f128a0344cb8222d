# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""Plain calls of sequences: what is remembered gives the numbers of the long way, bit by bit.

And nothing that makes a call another one is overlooked.
"""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.call import quick
from flexrnn.engine.compiler import passes
from flexrnn.engine.cpu import plan

T, B, I, H = 6, 2, 3, 5


class OwnCell(flexrnn.Cell):
    """A cell of nobody's, with an option and a module inside."""

    State = cells.LSTMState
    scale = 1.0

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None):  # fmt: skip
        super().__init__(input_size, hidden_size)
        options: Any = {"bias": bias, "device": device, "dtype": dtype}
        self.inner = nn.Linear(input_size + hidden_size, 2 * hidden_size, **options)
        self.decay = nn.Parameter(torch.rand(hidden_size, dtype=dtype))

    def step(self, x: Any, state: Any) -> Any:
        h, c = state
        a, b = self.inner(torch.cat([x, h], -1)).chunk(2, -1)
        c = torch.sigmoid(self.decay) * c + torch.sin(a) * self.scale
        return self.State(torch.tanh(b) * c, c)


KINDS: dict[str, Any] = {
    "lstm": cells.LSTMCell,
    "gru": cells.GRUCell,
    "peephole": cells.PeepholeLSTMCell,
    "layer norm": cells.LayerNormLSTMCell,
    "own": OwnCell,
}


@pytest.fixture(autouse=True)
def by_the_engine() -> Iterator[None]:
    with flexrnn.backend("cpu"):
        yield


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A call on the long way."""

    def run(call: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(quick, "call", lambda *_: None)
            return call()

    return run


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def is_taken(layer: FlexRNN, x: Any, hx: Any = None) -> bool:
    return quick.call(layer, x, hx) is not None


def flat(result: Any) -> list[Tensor]:
    output, state = result
    return [output, *((state,) if isinstance(state, Tensor) else state)]


def lying(shape: tuple[int, ...], how: str, dtype: torch.dtype) -> Tensor:
    """An input of this shape whose numbers lie in one piece, or otherwise."""
    if how == "crosswise":
        return randn(*shape[::-1], dtype=dtype).permute(2, 1, 0)
    if how == "with gaps":
        return randn(shape[0], 2 * shape[1], shape[2] + 1, dtype=dtype)[:, ::2, 1:]
    return randn(*shape, dtype=dtype)


@pytest.mark.parametrize("how", ["in one piece", "crosswise", "with gaps"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_those_of_the_long_way(
    kind: str, how: str, long: Callable[..., Any]
) -> None:
    dtype = torch.float32 if kind == "lstm" else torch.float64
    layer = FlexRNN(KINDS[kind], I, H, dtype=dtype)
    for seen in range(3):  # the first finds out, the others remember; with a state, and without
        x = lying((T, B, I), how, dtype).requires_grad_(seen != 1)
        fields = len(flat(layer(x))) - 1
        state = tuple(randn(1, B, H, dtype=dtype).requires_grad_() for _ in range(fields))
        hx = None if seen == 2 else state if fields > 1 else state[0]
        leaves = [*([x] if x.requires_grad else []), *(state if seen < 2 else ()),
                  *layer.parameters()]  # fmt: skip
        weight = randn(T, B, H, dtype=dtype)

        def trained(x: Tensor = x, hx: Any = hx, leaves: Any = leaves, w: Any = weight) -> Any:
            found = flat(layer(x, hx))
            loss = (found[0] * w).sum() + found[-1].sin().sum()
            return [*found, *torch.autograd.grad(loss, leaves)]

        def inferred(x: Tensor = x, hx: Any = hx) -> Any:
            with torch.no_grad():
                return flat(layer(x, hx))

        for run in (trained, inferred):
            assert_close(run(), long(run), rtol=0, atol=0)
        assert is_taken(layer, x, hx)


@pytest.mark.parametrize("options", [
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "proj_size": 2},
    {"num_layers": 2, "learn_initial_state": True},
    {"bias": False, "batch_first": True},
], ids=str)  # fmt: skip
def test_every_form_of_a_layer_has_the_numbers_of_the_long_way(
    options: dict[str, Any], long: Callable[..., Any]
) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    x = randn(B, T, I) if layer.batch_first else randn(T, B, I)

    def trained() -> Any:
        found = flat(layer(x))
        return [*found, *torch.autograd.grad(found[0].sum() + found[2].prod(),
                                             list(layer.parameters()))]  # fmt: skip

    for _ in range(2):
        assert_close(trained(), long(trained), rtol=0, atol=0)
    assert is_taken(layer, x)
    state = layer(x)[1]
    assert type(state) is type(long(lambda: layer(x))[1])
    assert_close(layer(x, state), long(lambda: layer(x, state)), rtol=0, atol=0)


@pytest.fixture
def known() -> tuple[FlexRNN, Tensor]:
    """A layer of which a plain call is remembered, with and without derivatives."""
    layer = FlexRNN(OwnCell, I, H, dtype=torch.float64)
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
        assert not is_taken(layer, x[:1])  # one step is no loop


def test_the_default_dtype_counts(known: Known) -> None:
    layer, x = known
    before, ways = torch.get_default_dtype(), len(quick._memories[layer].ways)
    torch.set_default_dtype(torch.float64)
    try:
        assert_right(layer, x)
    finally:
        torch.set_default_dtype(before)
    assert len(quick._memories[layer].ways) == ways + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
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


def test_what_a_layer_is_made_of_counts_as_it_is_at_the_call(known: Known) -> None:
    layer, x = known
    cell: Any = layer.cells[0]
    plain = layer(x)[0]
    with torch.no_grad():
        layer.get_parameter("decay_l0").mul_(-3)
    assert not torch.equal(layer(x)[0], plain)
    assert_right(layer, x)
    layer.decay_l0 = nn.Parameter(torch.zeros(H, dtype=torch.float64))
    assert_right(layer, x)
    layer.get_parameter("decay_l0").requires_grad_(False)
    layer(x)[0].sum().backward()
    assert layer.get_parameter("decay_l0").grad is None
    cell.scale = 3.0
    assert_right(layer, x)
    OwnCell.scale = 2.0  # hidden by the cell's own
    try:
        del cell.scale
        assert_right(layer, x)
    finally:
        OwnCell.scale = 1.0
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
    twin = copy.deepcopy(layer)
    assert_close(twin(x.float()), layer(x.float()), rtol=0, atol=0)


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


def test_options_that_a_layer_gets_later_count(known: Known) -> None:
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
    two = FlexRNN(OwnCell, I, H, 2, dropout=0.5, dtype=torch.float64)
    assert not is_taken(two, x)
    assert is_taken(two.eval(), x)
    cell = OwnCell(I, H, dtype=torch.float64)  # as the one that is there, but for a buffer
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


def test_a_mistake_is_worded_as_ever(known: Known) -> None:
    layer, x = known
    h = randn(1, B, H)
    for wrong, hx in (
        (x[..., :2], None),
        (x[:0], None),
        (x.float(), None),
        (x[None], None),
        (x, h),
        (x, (h,)),
        (x, (h, h[:, :1])),
        (x, (h, h.float())),
        (x, (h, None)),
        (x, ()),
    ):
        assert not is_taken(layer, wrong, hx)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            layer(wrong, hx)
    assert_right(layer, x[:, 0])  # without a batch
    assert_right(layer, x, [h, h])
    assert is_taken(layer, x, (h, h))


def test_what_is_remembered_dies_with_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_programs", {})
    gc.collect()
    programs, memories = len(plan._known), len(quick._memories)
    layer = flexrnn.GRU(I, 7, dtype=torch.float64)
    layer(randn(T, B, I))[0].sum().backward()
    assert len(quick._memories) == memories + 1
    passes._programs.clear()
    assert len(plan._known) == programs + 1
    died = weakref.ref(layer)
    del layer
    gc.collect()
    assert died() is None
    assert len(quick._memories) == memories
    assert len(plan._known) == programs


def test_results_are_nobody_elses_memory(known: Known) -> None:
    layer, x = known
    with torch.no_grad():
        output, state = layer(x)
        kept = [output.clone(), *(s.clone() for s in state)]
        again = layer(x)
        for tensor in flat(again):
            tensor.fill_(7)
        layer(x)
    assert_close([output, *state], kept, rtol=0, atol=0)


def test_layers_are_called_from_several_threads() -> None:
    layers = [FlexRNN(OwnCell, I, H, dtype=torch.float64) for _ in range(2)]
    xs = [randn(T + k, B + k, I) for k in range(4)]
    expected = [[by_reference(lambda m=m, x=x: m(x)[0].detach()) for x in xs] for m in layers]
    wrong: list[Any] = []

    def run(k: int) -> None:
        with flexrnn.backend("cpu"):
            for n in range(30):
                which = (n + k) % 2
                found = layers[which](xs[(n + k) % 4])[0].detach()
                if not torch.allclose(found, expected[which][(n + k) % 4], rtol=1e-12, atol=1e-13):
                    wrong.append((k, n))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
