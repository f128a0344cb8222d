"""Parametrizations, weight norm, spectral norm and pruning act on our layers as on any module.

What a layer computes is judged against a plain twin (torch's own where torch has one) that holds
the same effective weights; the gradients of the originals, by pulling the twin's gradient of the
effective weight back through the parametrization.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import HiddenState, PeepholeLSTMCell

I, H, B, T = 3, 5, 2, 4


class HoldingCell(flexrnn.Cell):
    """A cell that holds modules instead of parameters."""

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
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, bias=bias, device=device, dtype=dtype)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(torch.tanh(self.norm(self.inner(torch.cat([x, state.h], -1)))))


class Kind(NamedTuple):
    ours: Callable[..., FlexRNN]
    plain: Callable[..., nn.Module]
    weight: str


peephole, holding = partial(FlexRNN, PeepholeLSTMCell), partial(FlexRNN, HoldingCell)
KINDS = {
    "LSTM": Kind(flexrnn.LSTM, nn.LSTM, "weight_hh_l0"),
    "GRU": Kind(flexrnn.GRU, nn.GRU, "weight_hh_l0"),
    "RNN": Kind(flexrnn.RNN, nn.RNN, "weight_hh_l0"),
    "peephole": Kind(peephole, peephole, "weight_hh_l0"),
    "a cell that holds modules": Kind(holding, holding, "inner_weight_l0"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def made(kind: Kind) -> FlexRNN:
    return kind.ours(I, H, num_layers=2, dtype=torch.float64)


def sequence() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64)


def streamed(layer: FlexRNN, x: Tensor) -> Tensor:
    """The outputs of `layer.step`, time step by time step: from the second on, h is not zero."""
    outputs, state = [], None
    for x_t in x:
        output, state = layer.step(x_t, state)
        outputs.append(output)
    return torch.stack(outputs)


def twin(kind: Kind, layer: FlexRNN) -> nn.Module:
    """A plain layer that holds the effective weights, the values of `layer`'s attributes."""
    plain = kind.plain(I, H, num_layers=2, dtype=torch.float64)
    weights = {name: getattr(layer, name).detach().clone() for name in plain.state_dict()}
    plain.load_state_dict(weights)
    return plain


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def check_against_twin(kind: Kind, layer: FlexRNN, originals: list[Tensor]) -> None:
    """Values, and gradients of `originals`, from which the effective weight is computed."""
    x = sequence()
    output, state = layer(x)
    plain = twin(kind, layer)
    expected, expected_state = plain(x)
    close((output, state), (expected, expected_state))

    weight = torch.randn(output.shape, dtype=torch.float64)
    effective = plain.get_parameter(kind.weight)
    (pulled,) = torch.autograd.grad((expected * weight).sum(), [effective])
    close(
        torch.autograd.grad((output * weight).sum(), originals, retain_graph=True),
        torch.autograd.grad(getattr(layer, kind.weight), originals, pulled),
    )


def train(layer: FlexRNN, x: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(x)[0].square().sum().backward()
        optimizer.step()


class Symmetric(nn.Module):
    """A parametrization that is not its own inverse: W ↦ (W + reversed W) / 2."""

    def forward(self, W: Tensor) -> Tensor:
        return (W + W.flip(0)) / 2


def test_pytorch_65688_parametrized_weights_are_trained(kind: Kind) -> None:
    """torch's layers went on with the weight as it was when it was parametrized."""
    layer, x = made(kind), sequence()
    plain_output = layer(x)[0].detach()
    parametrize.register_parametrization(layer, kind.weight, Symmetric())
    original = layer.get_parameter(f"parametrizations.{kind.weight}.original")
    assert kind.weight not in dict(layer.named_parameters())
    check_against_twin(kind, layer, [original])

    output, before = layer(x)[0].detach(), original.detach().clone()
    assert not torch.equal(output, plain_output)
    others = {k: v.detach().clone() for k, v in layer.named_parameters() if v is not original}
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in others)  # so that only this one can explain a change
    train(layer, x)
    assert not torch.equal(original, before)
    assert not torch.equal(layer(x)[0], output)
    for name, value in others.items():
        assert torch.equal(layer.get_parameter(name), value)
    check_against_twin(kind, layer, [original])


def test_several_weights_of_several_layers_are_parametrized(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    for name in (kind.weight, kind.weight.replace("_l0", "_l1")):
        parametrize.register_parametrization(layer, name, Symmetric())
        parametrize.register_parametrization(layer, name, Symmetric())  # one on another
    close(layer(x), twin(kind, layer)(x))


def test_removing_a_parametrization_keeps_its_value(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    names = set(layer.state_dict())
    parametrize.register_parametrization(layer, kind.weight, Symmetric())
    output = layer(x)
    parametrize.remove_parametrizations(layer, kind.weight)
    close(layer(x), output)
    assert set(layer.state_dict()) == names
    weight = layer.get_parameter(kind.weight).detach().clone()
    train(layer, x)
    assert not torch.equal(layer.get_parameter(kind.weight), weight)
    close(layer(x), twin(kind, layer)(x))


def test_a_cached_parametrization_is_computed_once_and_gives_the_same(kind: Kind) -> None:
    layer, x, calls = made(kind), sequence(), []

    class Counted(Symmetric):
        def forward(self, W: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(W)

    parametrize.register_parametrization(layer, kind.weight, Counted(), unsafe=True)
    output = layer(x)
    calls.clear()
    with parametrize.cached():
        close((layer(x), layer(x)), (output, output))
    assert len(calls) == 1


def test_a_parametrization_acts_on_a_streamed_step_too(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    parametrize.register_parametrization(layer, kind.weight, Symmetric())
    close(streamed(layer, x), twin(kind, layer)(x)[0])


def test_weight_norm(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    output = layer(x)
    parametrizations.weight_norm(layer, kind.weight)
    close(layer(x), output)  # it starts as the same function
    path = f"parametrizations.{kind.weight}.original"
    g, v = layer.get_parameter(f"{path}0"), layer.get_parameter(f"{path}1")
    check_against_twin(kind, layer, [g, v])
    norms = torch.linalg.vector_norm(getattr(layer, kind.weight), dim=1, keepdim=True)
    close(norms, g.abs())
    train(layer, x)
    check_against_twin(kind, layer, [g, v])
    assert not torch.allclose(layer(x)[0], output[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_of_the_old_kind(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    output = layer(x)
    weight_norm(layer, kind.weight)
    close(layer(x), output)
    g, v = layer.get_parameter(f"{kind.weight}_g"), layer.get_parameter(f"{kind.weight}_v")
    check_against_twin(kind, layer, [g, v])
    train(layer, x)
    output = streamed(layer, x)  # its hook is the first thing that sees the new weights
    close(output, layer(x)[0])
    check_against_twin(kind, layer, [g, v])
    nn.utils.remove_weight_norm(layer, kind.weight)
    close(layer(x), twin(kind, layer)(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, partial(prune.l1_unstructured, amount=0.4)])
def test_a_module_of_a_cell_that_makes_its_weight_anew_is_trained(
    change: Callable[..., nn.Module],
) -> None:
    """The weight of the call before stays in the module, and what it was made of is gone."""

    class Changed(HoldingCell):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            change(self.inner, name="weight")

    layer, x = made(Kind(partial(FlexRNN, Changed), nn.LSTM, "")), sequence()
    found: dict[str, list[Tensor]] = {}
    for engine in ("reference", "cpu", "interpreter"):
        with flexrnn.backend(engine):
            for _ in range(3):
                loss = layer(x)[0].square().sum()
                found[engine] = [*torch.autograd.grad(loss, list(layer.parameters()))]
    for engine in ("cpu", "interpreter"):
        for ours, expected in zip(found[engine], found["reference"], strict=True):
            torch.testing.assert_close(ours, expected)


def test_spectral_norm(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    parametrizations.spectral_norm(layer, kind.weight, n_power_iterations=5)
    for _ in range(20):
        layer(x)  # each call in training mode iterates
    layer.eval()
    largest = torch.linalg.matrix_norm(getattr(layer, kind.weight), ord=2)
    torch.testing.assert_close(largest, torch.ones_like(largest), rtol=1e-6, atol=0)
    original = layer.get_parameter(f"parametrizations.{kind.weight}.original")
    check_against_twin(kind, layer, [original])
    output = layer(x)[0]
    train(layer, x)
    assert not torch.allclose(layer(x)[0], output)


def test_spectral_norm_of_the_old_kind(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    spectral_norm(layer, kind.weight, n_power_iterations=5)
    for _ in range(20):
        layer(x)
    layer.eval()
    layer(x)
    largest = torch.linalg.matrix_norm(getattr(layer, kind.weight), ord=2)
    torch.testing.assert_close(largest, torch.ones_like(largest), rtol=1e-6, atol=0)
    check_against_twin(kind, layer, [layer.get_parameter(f"{kind.weight}_orig")])
    original = layer.get_parameter(f"{kind.weight}_orig")
    with torch.no_grad():
        original.add_(torch.randn_like(original))
    output = streamed(layer, x)  # its hook is the first thing that sees the new weight
    close(output, layer(x)[0])


def test_orthogonal(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    parametrizations.orthogonal(layer, kind.weight)
    train(layer, x)
    close(layer(x), twin(kind, layer)(x))
    weight = getattr(layer, kind.weight).detach()
    product = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    close(product, torch.eye(len(product), dtype=torch.float64))


def test_pruning_acts_on_sequences_and_on_streamed_steps(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    full = layer(x)[0]
    prune.l1_unstructured(layer, kind.weight, amount=0.4)
    original = layer.get_parameter(f"{kind.weight}_orig")
    check_against_twin(kind, layer, [original])
    plain = twin(kind, layer)
    assert not torch.allclose(layer(x)[0], full)

    with torch.no_grad():
        original.mul_(1.5)  # as an optimizer would, between calls
        plain.get_parameter(kind.weight).mul_(1.5)
    output = streamed(layer, x)  # its hook is the first thing that sees the new weight
    expected, _ = plain(x)
    close(output, expected)
    close(layer(x)[0], expected)


def test_pruned_weights_stay_zero_in_training_and_after_removal(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    prune.random_structured(layer, kind.weight, amount=2, dim=0)
    mask = getattr(layer, f"{kind.weight}_mask").clone()
    output = layer(x)[0]
    train(layer, x)
    layer(x)
    assert (getattr(layer, kind.weight)[mask == 0] == 0).all()
    assert not torch.allclose(layer(x)[0], output)
    trained = layer(x)
    prune.remove(layer, kind.weight)
    close(layer(x), trained)
    assert kind.weight in dict(layer.named_parameters())


def test_global_pruning_over_a_model(kind: Kind) -> None:
    layer, x = made(kind), sequence()
    head = nn.Linear(H, 2, dtype=torch.float64)
    targets = [(layer, kind.weight), (layer, kind.weight.replace("_l0", "_l1")), (head, "weight")]
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=0.5)
    zeros = sum(int((getattr(module, name) == 0).sum()) for module, name in targets)
    assert zeros == round(0.5 * sum(getattr(module, name).numel() for module, name in targets))
    close(layer(x), twin(kind, layer)(x))
