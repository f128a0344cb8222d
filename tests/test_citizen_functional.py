"""`torch.func` and higher derivatives: functional calls, ensembles, per-sample gradients, jvp."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import HiddenState, PeepholeLSTMCell

I, H, B, T = 3, 5, 2, 4

# torch scripts its own decompositions when forward mode is first used, and warns of that itself.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script")


class HoldingCell(flexrnn.Cell):
    """A cell that holds modules and a buffer."""

    State = HiddenState
    scale: Tensor

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
        self.register_buffer("scale", torch.rand(hidden_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.norm(self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(torch.tanh(self.scale * z))


LAYERS: dict[str, Callable[..., FlexRNN]] = {
    "LSTM": flexrnn.LSTM,
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "peephole": partial(FlexRNN, PeepholeLSTMCell),
    "a cell that holds modules": partial(FlexRNN, HoldingCell),
}
TORCHS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Callable[..., FlexRNN]:
    return partial(LAYERS[request.param], dtype=torch.float64)


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def sequence(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T, B, I)), dtype=torch.float64)


def parameters(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in layer.named_parameters()}


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def test_functional_call_uses_the_given_weights_and_leaves_the_layers(
    make: Callable[..., FlexRNN],
) -> None:
    layer, other, x = make(I, H, num_layers=2), make(I, H, num_layers=2), sequence()
    before, kept = layer(x), parameters(layer)
    state = dict(other.named_parameters()) | dict(other.named_buffers())
    result = functional_call(layer, state, (x,))
    close(tensors(result), tensors(other(x)))
    close(tensors(layer(x)), tensors(before))
    close(parameters(layer), kept)

    names = list(parameters(other))
    given = list(other.parameters())
    taken = torch.autograd.grad(tensors(result)[0].sum(), given, retain_graph=True)
    expected = torch.autograd.grad(other(x)[0].sum(), given)
    close(dict(zip(names, taken, strict=True)), dict(zip(names, expected, strict=True)))


def test_functional_call_with_some_of_the_weights_only(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(I, H), sequence()
    name, parameter = next(iter(layer.named_parameters()))
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        changed.get_parameter(name).mul_(2)
    result = functional_call(layer, {name: 2 * parameter}, (x,))
    close(tensors(result), tensors(changed(x)))


def test_functional_call_inside_a_model_with_a_packed_sequence(
    make: Callable[..., FlexRNN],
) -> None:
    layer, other = make(I, H, bidirectional=True), make(I, H, bidirectional=True)
    x = pack_padded_sequence(sequence(), torch.tensor([2, T]), enforce_sorted=False)
    model = nn.ModuleDict({"encoder": layer})
    state = {f"encoder.{k}": v for k, v in other.state_dict().items()}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model["encoder"](x)

    result = functional_call(Called(), {f"model.{k}": v for k, v in state.items()}, (x,))
    close(result[0].data, other(x)[0].data)
    close(tensors(result[1]), tensors(other(x)[1]))


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str
)
def test_vmap_over_stacked_parameters_is_an_ensemble(
    make: Callable[..., FlexRNN], options: dict[str, Any]
) -> None:
    members = [make(I, H, **options) for _ in range(3)]
    stacked = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x = sequence(B, T, I)

    def call(params: Any, buffers: Any, x: Tensor) -> Any:
        return functional_call(base, (params, buffers), (x,))

    shared = vmap(call, in_dims=(0, 0, None))(*stacked, x)
    for k, member in enumerate(members):
        close([t[k] for t in tensors(shared)], tensors(member(x)))
    inputs = sequence(3, B, T, I)
    own = vmap(call)(*stacked, inputs)
    for k, member in enumerate(members):
        close([t[k] for t in tensors(own)], tensors(member(inputs[k])))


def test_an_ensemble_is_trained_by_vmap_of_grad(make: Callable[..., FlexRNN]) -> None:
    members, x = [make(I, H) for _ in range(3)], sequence()
    params, buffers = stack_module_state(members)

    def loss(params: Any, buffers: Any) -> Tensor:
        return functional_call(members[0], (params, buffers), (x,))[0].square().sum()

    gradients = vmap(grad(loss))(params, buffers)
    for k, member in enumerate(members):
        member(x)[0].square().sum().backward()
        close({n: g[k] for n, g in gradients.items()}, {n: p.grad for n, p in named(member)})


def named(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(layer.named_parameters())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_per_sample_gradients_by_vmap_of_grad(
    make: Callable[..., FlexRNN], bidirectional: bool
) -> None:
    layer = make(I, H, num_layers=2, bidirectional=bidirectional)
    x, target = sequence(B, T, I), sequence(B, T, H * (1 + bidirectional))

    def loss(params: Any, x: Tensor, target: Tensor) -> Tensor:
        return (functional_call(layer, params, (x,))[0] - target).square().sum()

    params = parameters(layer)
    by_vmap = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, target)
    for b in range(B):
        layer.zero_grad()
        (layer(x[b])[0] - target[b]).square().sum().backward()
        close({n: g[b] for n, g in by_vmap.items()}, {n: p.grad for n, p in named(layer)})


def test_vmap_over_the_initial_state(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(I, H), sequence()
    state = layer(x)[1]
    hx = [sequence(3, *field.shape) for field in tensors(state)]

    def given_as(fields: Any) -> Any:
        return fields[0] if len(fields) == 1 else tuple(fields)

    result = vmap(lambda *fields: layer(x, given_as(list(fields))))(*hx)
    for k in range(3):
        close([t[k] for t in tensors(result)], tensors(layer(x, given_as([f[k] for f in hx]))))


def test_vmap_of_a_streamed_step(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(I, H), sequence()
    close(vmap(lambda row: layer.step(row)[0])(x), torch.stack([layer.step(r)[0] for r in x]))


@forward_mode
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_jvp_is_the_transpose_of_vjp_and_the_limit_of_differences(
    make: Callable[..., FlexRNN], options: dict[str, Any]
) -> None:
    layer, x = make(I, H, **options), sequence()
    params = parameters(layer)
    dx, dparams = sequence(), {n: torch.randn_like(p) for n, p in params.items()}

    def function(params: Any, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(functional_call(layer, params, (x,))))

    value, tangent = jvp(function, (params, x), (dparams, dx))[:2]
    close(value, tuple(tensors(layer(x))))
    assert all(t.norm() > 0 for t in tangent)

    cotangent = tuple(torch.randn(v.shape, dtype=torch.float64) for v in value)
    pull = vjp(function, params, x)[1]
    pulled, pulled_x = pull(cotangent)
    left = sum((a * b).sum() for a, b in zip(cotangent, tangent, strict=True))
    right = (pulled_x * dx).sum() + sum((pulled[n] * dparams[n]).sum() for n in params)
    close(left, right)

    def moved(epsilon: float) -> tuple[Tensor, ...]:
        return function({n: p + epsilon * dparams[n] for n, p in params.items()}, x + epsilon * dx)

    difference = tuple((a - b) / 2e-5 for a, b in zip(moved(1e-5), moved(-1e-5), strict=True))
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


@forward_mode
def test_dual_tensors_carry_tangents(make: Callable[..., FlexRNN]) -> None:
    """Also of a weight alone: an operator without a forward rule would give a zero tangent."""
    layer, x = make(I, H), sequence()
    for name, parameter in named(layer):
        direction = torch.randn_like(parameter)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(parameter.detach(), direction)
            output = functional_call(layer, {name: dual}, (x,))[0]
            tangent = forward_ad.unpack_dual(output).tangent
        expected = jvp(
            lambda p, name=name: functional_call(layer, {name: p}, (x,))[0],
            (parameter.detach(),),
            (direction,),
        )[1]
        assert tangent is not None
        assert tangent.norm() > 0
        close(tangent, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        streamed = forward_ad.unpack_dual(layer.step(dual[0])[0]).tangent
        whole = forward_ad.unpack_dual(layer(dual)[0]).tangent
    assert whole is not None
    close(streamed, whole[0])


@forward_mode
def test_forward_over_reverse_is_reverse_over_reverse(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(I, 2), sequence(2, 1, I)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].square().sum()

    by_forward = hessian(loss)(x)  # jacfwd of jacrev
    by_reverse = torch.autograd.functional.hessian(loss, x)
    close(by_forward, by_reverse)


@pytest.mark.parametrize("name", TORCHS)
def test_double_backward_is_torchs(name: str) -> None:
    """A gradient penalty: the gradient of the norm of the input's gradient (pytorch#5261)."""
    torch.manual_seed(0)
    ours, theirs = (cls(I, H, 2).double() for cls in (LAYERS[name], TORCHS[name]))
    ours.load_state_dict(theirs.state_dict())
    x = sequence()

    def penalty(layer: nn.Module) -> dict[str, Tensor]:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf)[0].sum(), leaf, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), [leaf, *layer.parameters()])
        return dict(zip(["x", *parameters(layer)], second, strict=True))

    close(penalty(ours), penalty(theirs))


def test_double_backward_over_packed_sequences_and_directions(
    make: Callable[..., FlexRNN],
) -> None:
    layer = make(2, 2, num_layers=2, bidirectional=True)

    def function(x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([1, 3]), enforce_sorted=False)
        return layer(packed)[0].data

    assert torch.autograd.gradgradcheck(function, [sequence(3, 2, 2).requires_grad_()])


@pytest.mark.parametrize("name", TORCHS)
def test_backward_in_eval_mode_is_torchs(name: str) -> None:
    """cuDNN refuses it (pytorch#10006); here it is as in training."""
    torch.manual_seed(0)
    ours, theirs = (cls(I, H, 2, dropout=0.5).double() for cls in (LAYERS[name], TORCHS[name]))
    ours.load_state_dict(theirs.state_dict())
    x, gradients = sequence(), []
    for layer in (ours.eval(), theirs.eval()):
        leaf = x.clone().requires_grad_()
        layer(leaf)[0].square().sum().backward()
        gradients.append({"x": leaf.grad} | {n: p.grad for n, p in named(layer)})
    close(*gradients)


def test_backward_in_eval_mode(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(I, H, num_layers=2), sequence()
    weights = list(layer.parameters())
    in_training = torch.autograd.grad(layer.train()(x)[0].square().sum(), weights)
    close(torch.autograd.grad(layer.eval()(x)[0].square().sum(), weights), in_training)
