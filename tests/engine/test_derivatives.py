"""Derivatives that no kernel has: of gradients, forward ones, vectorised ones; all right."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import flexrnn
from flexrnn.cells import HiddenState

T, B, I, H = 3, 2, 2, 3
LAYERS: dict[str, Callable[..., Any]] = {
    "LSTM": partial(flexrnn.LSTM, I, H, bidirectional=True),
    "GRU": partial(flexrnn.GRU, I, H),
    "layer norm": partial(flexrnn.LayerNormLSTM, I, H),
}
# torch scripts its own decompositions when forward mode is first used, and warns of that itself.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
pytestmark = pytest.mark.usefixtures("by_program")


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Any:
    return LAYERS[request.param](dtype=torch.float64)


def sequence(grad: bool = False) -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, requires_grad=grad)


def through(layer: Any) -> Callable[..., Any]:
    """The layer as a function of its input and its parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *params: Tensor) -> Any:
        output, state = functional_call(layer, dict(zip(names, params, strict=True)), (x,))
        return (output, *state) if isinstance(state, tuple) else (output, state)

    return call


def test_first_and_second_derivatives_are_those_of_finite_differences(layer: Any) -> None:
    inputs = (sequence(True), *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert gradcheck(through(layer), inputs, fast_mode=True)
    assert gradgradcheck(through(layer), inputs, fast_mode=True)


def test_the_engine_runs_unless_the_gradient_has_a_gradient(
    layer: Any, by_program: list[str]
) -> None:
    x = sequence(True)
    loss = layer(x)[0].square().sum()
    torch.autograd.grad(loss, x, retain_graph=True)
    assert set(by_program) == {"forward", "backward"}
    by_program.clear()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    assert gradient.requires_grad
    assert by_program == []


def test_a_penalty_on_the_gradient_has_the_references_gradients(
    layer: Any, same_as_reference: Callable[..., None]
) -> None:
    def penalty(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(layer(x)[0].tanh().sum(), x, create_graph=True)
        return gradient.square().sum()

    same_as_reference(penalty, layer, sequence(True))


def test_third_derivatives() -> None:
    layer, found = flexrnn.GRU(I, H, dtype=torch.float64), []
    x = sequence(True)
    for engine in ("auto", "reference"):
        with flexrnn.backend(engine):
            value = layer(x)[0].square().sum()
            for _ in range(3):
                (derivative,) = torch.autograd.grad(value, x, create_graph=True)
                value = derivative.sin().sum()
        found.append(value)
    assert_close(*found, rtol=1e-10, atol=1e-12)


TRANSFORMS: dict[str, Callable[[Callable[..., Any], Tensor], Any]] = {
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "grad": lambda f, x: grad(lambda x: f(x)[0].square().sum())(x),
    "vjp": lambda f, x: vjp(lambda x: f(x)[0], x)[1](torch.ones_like(f(x)[0])),
    "jvp": lambda f, x: jvp(lambda x: f(x)[0], (x,), (x.cos(),)),
    "hessian": lambda f, x: hessian(lambda x: f(x)[0].square().sum())(x),
    "per sample": lambda f, x: vmap(grad(lambda x: f(x)[0].square().sum()), 1)(x),
}


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("backend", ["auto", "interpreter"])
def test_transforms_take_the_reference_without_a_warning(
    layer: Any, by_program: list[str], name: str, backend: str
) -> None:
    x = sequence()
    with flexrnn.backend("reference"):
        expected = TRANSFORMS[name](layer, x)
    with flexrnn.backend(backend), warnings.catch_warnings():
        warnings.simplefilter("error", flexrnn.FallbackWarning)
        outside = by_program.copy()
        got = TRANSFORMS[name](layer, x)
        assert name == "vjp" or by_program == outside
    assert_close(got, expected, rtol=1e-10, atol=1e-12)


class Spiking(flexrnn.Cell):
    """A step with a derivative of its own, of which autograd cannot record the program's."""

    State = HiddenState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)

    def step(self, x: Tensor, state: Any) -> HiddenState:
        voltage = self.inner(torch.cat([x, state.h], -1))
        return HiddenState(0.5 * state.h + cast(Tensor, Spike.apply(voltage)))


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, voltage: Tensor) -> Tensor:
        ctx.save_for_backward(voltage)
        return (voltage > 0).to(voltage.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (voltage,) = ctx.saved_tensors
        return gradients[0] / (10 * voltage.abs() + 1) ** 2


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("lengths", [None, [T, 1]])
@pytest.mark.parametrize("how", ["is_grads_batched", "vmap"])
def test_a_batch_of_cotangents(
    layer: Any, spiking: bool, lengths: Any, how: str, by_program: list[str]
) -> None:
    layer = flexrnn.FlexRNN(Spiking, I, H, dtype=torch.float64) if spiking else layer
    x = sequence(True)
    output, operands = layer(x, lengths=lengths)[0], [x, *layer.parameters()]
    batch = torch.randn(4, *output.shape, dtype=torch.float64)

    def pull(cotangent: Tensor, **options: Any) -> Any:
        return torch.autograd.grad(output, operands, cotangent, retain_graph=True, **options)

    expected = [torch.stack(gradients) for gradients in zip(*map(pull, batch), strict=True)]
    by_program.clear()
    got = vmap(pull)(batch) if how == "vmap" else pull(batch, is_grads_batched=True)
    assert by_program == []
    assert_close(list(got), expected, rtol=1e-12, atol=1e-12)
    assert not any(gradient.requires_grad for gradient in got)


def test_a_batch_of_cotangents_of_a_call_that_somebody_watches(layer: Any) -> None:
    """The operator's backward pass."""
    x = sequence(True)
    with FlopCounterMode(display=False):
        output, _ = layer(x)
    batch = torch.randn(4, *output.shape, dtype=torch.float64)
    got = torch.autograd.grad(output, x, batch, is_grads_batched=True, retain_graph=True)[0]
    expected = [torch.autograd.grad(output, x, one, retain_graph=True)[0] for one in batch]
    assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_an_ensemble_over_stacked_parameters(by_program: list[str]) -> None:
    members = [flexrnn.LSTM(I, H, dtype=torch.float64) for _ in range(3)]
    stacked, x = stack_module_state(members)[0], sequence()
    call = vmap(lambda params: functional_call(members[0], params, (x,))[0])
    got = call(stacked)
    assert by_program == []
    assert_close(got, torch.stack([member(x)[0] for member in members]), rtol=1e-12, atol=1e-12)


@forward_mode
def test_dual_tensors_keep_their_tangents(layer: Any, by_program: list[str]) -> None:
    x, tangent = sequence(), sequence()
    both: Any = jvp(lambda x: layer(x)[0], (x,), (tangent,))
    expected = both[1]
    with forward_ad.dual_level():
        output, _ = layer(forward_ad.make_dual(x, tangent))
        got = forward_ad.unpack_dual(output).tangent
    assert by_program == []
    assert_close(got, expected, rtol=1e-12, atol=1e-12)
    layer(x)
    assert by_program != []  # outside of the level again
