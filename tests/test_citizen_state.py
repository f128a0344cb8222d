"""Copies, pickles, ties, writes to weights between calls, dtypes, devices, buffers."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, vector_to_parameters

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import HiddenState, PeepholeLSTMCell

I, H, B, T = 3, 5, 2, 4


class HoldingCell(flexrnn.Cell):
    """A cell that holds modules, and a buffer that counts its steps, which no program can."""

    State = HiddenState
    steps: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, bias=bias, device=device, dtype=dtype)
        self.register_buffer("steps", torch.zeros((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        self.inner.reset_parameters()
        self.norm.reset_parameters()
        self.steps.zero_()

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        if self.training:
            self.steps = self.steps + 1
        return HiddenState(torch.tanh(self.norm(self.inner(torch.cat([x, state.h], -1)))))


LAYERS: dict[str, Callable[..., FlexRNN]] = {
    "LSTM": flexrnn.LSTM,
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "peephole": partial(FlexRNN, PeepholeLSTMCell),
    "a cell that holds modules": partial(FlexRNN, HoldingCell, backend="reference"),
}
Make = Callable[..., FlexRNN]


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Make:
    return partial(LAYERS[request.param], I, H, num_layers=2)


def sequence(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(T, B, I).to(dtype)


def recurrent(layer: FlexRNN, k: int = 0) -> nn.Parameter:
    """The recurrent weight of layer k."""
    names = dict(layer.named_parameters())
    return names.get(f"weight_hh_l{k}", names.get(f"inner_weight_l{k}"))  # pyright: ignore[reportReturnType]


def name_of(layer: FlexRNN, parameter: nn.Parameter) -> str:
    return next(name for name, p in layer.named_parameters() if p is parameter)


def fresh(make: Make, layer: FlexRNN) -> FlexRNN:
    """A new layer with the weights of another: what an uncached result must equal."""
    new = make(dtype=next(layer.parameters()).dtype)
    new.load_state_dict(layer.state_dict())
    return new


def output(layer: FlexRNN, x: Tensor) -> Tensor:
    return layer(x)[0].detach().clone()


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.data.mul_(2),
        lambda p: p.data.__setitem__((slice(2), slice(None)), 1.0),
        lambda p: setattr(p, "data", torch.ones_like(p)),
        lambda p: setattr(p, "data", torch.ones(p.shape[::-1], dtype=p.dtype).t()),
        lambda p: nn.init.orthogonal_(p),
        lambda p: vector_to_parameters(2 * parameters_to_vector([p]), [p]),
    ],
    ids=["data in place", "data slice", "data", "data strided", "init", "vector_to_parameters"],
)
def test_a_write_to_a_weight_is_seen_by_the_next_call(
    make: Make, write: Callable[[nn.Parameter], object]
) -> None:
    layer, x = make(dtype=torch.float64), sequence(torch.float64)
    before = output(layer, x)
    for k in range(2):
        write(recurrent(layer, k))
        after = output(layer, x)
        assert not torch.allclose(after, before)
        expected = output(fresh(make, layer), x)
        torch.testing.assert_close(after, expected, rtol=1e-13, atol=1e-14)
        first, state = layer.step(x[0])
        second, _ = layer.step(x[1], state)
        streamed = torch.stack([first, second])
        torch.testing.assert_close(streamed, expected[:2], rtol=1e-13, atol=1e-14)
        before = after


def test_an_in_place_write_without_gradient_is_seen_by_the_next_call(make: Make) -> None:
    layer, x = make(), sequence()
    before = output(layer, x)
    with torch.no_grad():
        recurrent(layer).add_(0.5)
    assert not torch.equal(output(layer, x), before)
    assert torch.equal(output(layer, x), output(fresh(make, layer), x))


def test_a_parameter_that_is_assigned_is_the_one_that_is_used(make: Make) -> None:
    layer, x = make(), sequence()
    name = name_of(layer, recurrent(layer))
    new = nn.Parameter(torch.randn_like(recurrent(layer)))
    setattr(layer, name, new)
    assert torch.equal(output(layer, x), output(fresh(make, layer), x))
    layer(x)[0].sum().backward()
    assert new.grad is not None
    assert new.grad.norm() > 0


def test_a_write_between_forward_and_backward_is_refused_by_autograd(make: Make) -> None:
    """Not silently a wrong gradient: what was saved is the weight, not a copy that lags behind."""
    layer, x = make(), sequence()
    loss = layer(x)[0].sum()
    with torch.no_grad():
        recurrent(layer).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_between_calls(make: Make, assign: bool) -> None:
    layer, other, x = make(), make(), sequence()
    assert not torch.equal(output(layer, x), output(other, x))
    layer.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(output(layer, x), output(other, x))


def test_a_deep_copy_is_equal_and_apart(make: Make) -> None:
    layer, x = make(), sequence()
    layer(x)[0].sum().backward()
    twin = copy.deepcopy(layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    before = output(layer, x)
    assert torch.equal(output(twin, x), before)
    assert list(twin.state_dict()) == list(layer.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(output(layer, x), before)
    assert not torch.equal(output(twin, x), before)


def test_a_pickle_is_the_same_layer(make: Make) -> None:
    layer, x = make(batch_first=True, bidirectional=True, dropout=0.25).eval(), sequence()
    layer(x)
    again = pickle.loads(pickle.dumps(layer))
    assert repr(again) == repr(layer)
    assert again.training is False
    assert torch.equal(output(again, x), output(layer, x))
    assert [[w.shape for w in ws] for ws in again.all_weights] == [
        [w.shape for w in ws] for ws in layer.all_weights
    ]


def test_torch_save_and_load_of_layer_and_of_state(make: Make) -> None:
    layer, x = make(), sequence()
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(layer, whole)
    torch.save(layer.state_dict(), state)
    whole.seek(0)
    state.seek(0)
    assert torch.equal(output(torch.load(whole, weights_only=False), x), output(layer, x))
    other = make()
    other.load_state_dict(torch.load(state, weights_only=True), strict=True)
    assert torch.equal(output(other, x), output(layer, x))


class Pair(NamedTuple):
    h: Tensor
    slow: Tensor


class PairCell(HoldingCell):
    State = Pair

    def step(self, x: Tensor, state: Any) -> Any:
        h = torch.tanh(self.inner(torch.cat([x, state.h], -1)))
        return Pair(h, state.slow + 0.1 * (h - state.slow))


@pytest.mark.parametrize("cell", [flexrnn.LSTMCell, PairCell])
def test_torch_load_takes_the_state_of_a_stream_unasked(cell: type[flexrnn.Cell]) -> None:
    """As it takes `torch.nn.LSTM`'s, a plain tuple, without `weights_only=False`."""
    layer, x, file = FlexRNN(cell, I, H), sequence(), io.BytesIO()
    _, state = layer(x)
    torch.save({"step": 7, "state": state}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)["state"]
    assert type(found) is cell.State
    torch.testing.assert_close(tuple(found), tuple(state), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(flexrnn.LSTM, nn.LSTM), (flexrnn.GRU, nn.GRU), (flexrnn.RNN, nn.RNN)]
)
def test_tied_layers_get_the_sum_of_the_gradients_as_in_torch(ours: Any, theirs: Any) -> None:
    torch.manual_seed(0)
    layers = [cls(H, H, 2, dtype=torch.float64) for cls in (ours, theirs)]
    layers[0].load_state_dict(layers[1].state_dict())
    x, gradients = torch.randn(T, B, H, dtype=torch.float64), []
    for layer in layers:
        layer.weight_hh_l1 = layer.weight_hh_l0
        layer(x)[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in layer.named_parameters()})
        assert "weight_hh_l1" not in gradients[-1]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_tied_weights_are_one_parameter_and_stay_tied(make: Make) -> None:
    one, two, x = make(dtype=torch.float64), make(dtype=torch.float64), sequence(torch.float64)
    name = name_of(one, recurrent(one))
    untied = (copy.deepcopy(one), copy.deepcopy(two))
    untied[1].load_state_dict({**two.state_dict(), name: recurrent(one).detach()})
    setattr(two, name, recurrent(one))
    model = nn.ModuleList([one, two])
    assert len(list(model.parameters())) == len(list(one.parameters())) * 2 - 1

    (one(x)[0].sum() + 2 * two(x)[0].sum()).backward()
    (untied[0](x)[0].sum() + 2 * untied[1](x)[0].sum()).backward()
    tied, parts = recurrent(one).grad, [recurrent(layer).grad for layer in untied]
    torch.testing.assert_close(tied, cast(Tensor, parts[0]) + cast(Tensor, parts[1]))

    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.float()):
        first, second = cast(FlexRNN, again[0]), cast(FlexRNN, again[1])
        assert recurrent(first) is recurrent(second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_to_another_dtype(make: Make, dtype: torch.dtype) -> None:
    layer, x = make(), sequence(dtype)
    assert layer.to(dtype) is layer
    assert {p.dtype for p in layer.parameters()} == {b.dtype for b in layer.state_dict().values()}
    result, state = layer(x)
    fields = [state] if isinstance(state, Tensor) else list(state)
    assert {result.dtype, *(field.dtype for field in fields)} == {dtype}
    assert torch.equal(result, fresh(make, layer)(x)[0])


def test_from_meta_to_empty_and_a_draw_or_a_load(make: Make) -> None:
    torch.manual_seed(5)
    drawn, x = make(), sequence()
    with torch.device("meta"):
        layer = make()
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    assert layer(x.to("meta"))[0].shape == drawn(x)[0].shape
    layer.to_empty(device="cpu")
    torch.manual_seed(5)
    layer.reset_parameters()
    for name, value in make_again(make).state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, rtol=0, atol=0)
    layer.load_state_dict(drawn.state_dict(), assign=True)
    assert torch.equal(output(layer, x), output(drawn, x))


def make_again(make: Make) -> FlexRNN:
    torch.manual_seed(5)
    return make()


@pytest.mark.usefixtures("by_reference")
def test_buffers_are_state_and_what_step_writes_persists() -> None:
    layer, x = FlexRNN(HoldingCell, I, H, num_layers=2, bidirectional=True), sequence()
    names = [f"cells.{k}.steps" for k in range(4)]
    assert [name for name, _ in layer.named_buffers()] == names
    layer(x)
    layer.eval()(x)
    layer.train().float()
    layer(x[:1])
    assert [float(layer.state_dict()[name]) for name in names] == [T + 1.0] * 4
    one_way = FlexRNN(HoldingCell, I, H)
    one_way.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k in one_way.state_dict()}
    )
    one_way.step(x[0])
    assert float(one_way.state_dict()["cells.0.steps"]) == T + 2


class ParametrizedCell(flexrnn.Cell):
    """A cell whose own Linear is under weight norm, and another under spectral norm."""

    State = HiddenState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        kwargs = {"bias": bias, "device": device, "dtype": dtype}
        self.ih = parametrizations.weight_norm(nn.Linear(input_size, hidden_size, **kwargs))
        self.hh = parametrizations.spectral_norm(nn.Linear(hidden_size, hidden_size, **kwargs))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(torch.tanh(self.ih(x) + self.hh(state.h)))


@pytest.mark.usefixtures("by_reference")
def test_a_cell_may_parametrize_its_own_modules() -> None:
    torch.manual_seed(0)
    layer, x = FlexRNN(ParametrizedCell, I, H, dtype=torch.float64).eval(), sequence(torch.float64)
    torch.manual_seed(0)
    cell = ParametrizedCell(I, H, dtype=torch.float64).eval()
    assert parametrize.is_parametrized(cell.ih)
    h, outputs = torch.zeros(B, H, dtype=torch.float64), []
    for x_t in x:
        h = torch.tanh(cell.ih(x_t) + cell.hh(h))
        outputs.append(h)
    result = layer(x)[0]
    torch.testing.assert_close(result, torch.stack(outputs), rtol=1e-12, atol=1e-13)
    ours = torch.autograd.grad(result.square().sum(), list(layer.parameters()))
    theirs = torch.autograd.grad(torch.stack(outputs).square().sum(), list(cell.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
