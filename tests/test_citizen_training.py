"""Training as of any module: hooks, optimizers, frozen weights, modes without gradient, dropout."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import FlexRNN
from flexrnn.cells import HiddenState, PeepholeLSTMCell

I, H, B, T = 3, 5, 2, 4


class HoldingCell(flexrnn.Cell):
    """A cell that holds modules, one of which acts in training only."""

    State = HiddenState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        drop: float = 0.0,
    ):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.norm = nn.LayerNorm(hidden_size, bias=bias, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.norm(self.inner(torch.cat([x, state.h], -1)))
        return HiddenState(self.drop(torch.tanh(z)))


LAYERS: dict[str, Callable[..., FlexRNN]] = {
    "LSTM": flexrnn.LSTM,
    "GRU": flexrnn.GRU,
    "RNN": flexrnn.RNN,
    "peephole": partial(FlexRNN, PeepholeLSTMCell),
    "a cell that holds modules": partial(FlexRNN, HoldingCell),
}
TORCHS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
Make = Callable[..., FlexRNN]
Pair = tuple[FlexRNN, nn.RNNBase]


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Make:
    return partial(LAYERS[request.param], I, H, dtype=torch.float64)


@pytest.fixture(params=TORCHS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Ours and torch's with the same weights."""
    ours = LAYERS[request.param](I, H, 2, dtype=torch.float64)
    theirs = TORCHS[request.param](I, H, 2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def sequence() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64)


def close(ours: object, theirs: object, atol: float = 1e-13) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=atol)


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


SEARCHES = partial(torch.optim.LBFGS, max_iter=2, line_search_fn="strong_wolfe")


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.Adam, lr=0.01),
        partial(torch.optim.AdamW, lr=0.01, foreach=True),
        SEARCHES,
    ],
    ids=["SGD", "Adam", "AdamW foreach", "LBFGS"],
)
@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_an_optimizer_takes_the_path_that_it_takes_with_torchs(
    pair: Pair, optimizer: Callable[..., torch.optim.Optimizer], engine: str
) -> None:
    # Of a small weight the search for a step enlarges what is rounded differently, which with the
    # reference depends on the processor; 1e-12 of numbers about as large as 1 is what an engine may
    # be off.
    atol = 1e-13 if engine == "reference" and optimizer is not SEARCHES else 1e-12
    pair[0].backend = engine
    x, target = sequence(), torch.randn(T, B, H, dtype=torch.float64)
    start = {name: p.detach().clone() for name, p in pair[0].named_parameters()}
    losses = []
    for layer in pair:
        steps = optimizer(layer.parameters())

        def closure(layer: nn.Module = layer, steps: torch.optim.Optimizer = steps) -> float:
            steps.zero_grad()
            loss = (layer(x)[0] - target).square().mean()
            loss.backward()
            return float(loss.detach())

        losses.append([steps.step(closure) for _ in range(5)])
    close(losses[0], losses[1], atol)
    assert losses[0][-1] < losses[0][0]
    close(dict(pair[0].named_parameters()), dict(pair[1].named_parameters()), atol)
    for name, parameter in pair[0].named_parameters():
        assert not torch.equal(parameter, start[name]), name


def test_every_parameter_of_a_generic_layer_is_trained(make: Make) -> None:
    layer, x = make(num_layers=2, bidirectional=True), sequence()
    start = {name: p.detach().clone() for name, p in layer.named_parameters()}
    target = torch.randn(T, B, 2 * H, dtype=torch.float64)
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=0.01), []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (layer(x)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    for name, parameter in layer.named_parameters():
        assert not torch.equal(parameter, start[name]), name


def test_zero_grad_and_accumulation(make: Make) -> None:
    layer, x = make(), sequence()
    layer(x)[0].sum().backward()
    once = {name: cast(Tensor, p.grad).clone() for name, p in layer.named_parameters()}
    layer(x)[0].sum().backward()
    close({n: p.grad for n, p in layer.named_parameters()}, {n: 2 * g for n, g in once.items()})
    layer.zero_grad()
    assert all(p.grad is None for p in layer.parameters())
    layer(x)[0].sum().backward()
    layer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_frozen_weights_get_no_gradient_and_change_no_other(make: Make) -> None:
    layer, x = make(), sequence()
    names = [name for name, _ in layer.named_parameters()]
    whole = dict(
        zip(names, torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters())), strict=True)
    )
    for frozen in names:
        layer.zero_grad()
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name != frozen)
        layer(x)[0].sum().backward()
        assert layer.get_parameter(frozen).grad is None
        grads = {name: layer.get_parameter(name).grad for name in names if name != frozen}
        close(grads, {name: g for name, g in whole.items() if name != frozen})

    layer.requires_grad_(False)
    assert not layer(x)[0].requires_grad
    leaf = x.clone().requires_grad_()
    layer(leaf)[0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.norm() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_the_numbers_are_the_same(make: Make, mode: Callable[[], Any]) -> None:
    layer, x = make(num_layers=2, bidirectional=True), sequence()
    expected = tensors(layer(x))
    with mode():
        result = tensors(layer(x))
    assert not any(t.requires_grad for t in result)
    close([t.clone() for t in result], [t.detach() for t in expected])
    layer(x)[0].sum().backward()  # and a later call with gradient is not disturbed


def test_forward_hooks_see_and_may_change_what_goes_in_and_out(make: Make) -> None:
    layer, x, seen = make(), sequence(), []
    expected = layer(2 * x)[0]
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0], *inputs[1:])),
        layer.register_forward_hook(lambda _, inputs, result: seen.append((inputs, result))),
        layer.register_forward_hook(lambda *args: (-args[2][0], args[2][1])),
        layer.register_forward_hook(lambda *args: None, with_kwargs=True, always_call=True),
    ]
    close(layer(x)[0], -expected)
    (inputs, result) = seen.pop()
    close(inputs[0], 2 * x)
    close(result[0], expected)
    close(layer.step(x[0])[0], -expected[0])  # a streamed step runs them too
    close(seen.pop()[1][0], expected[:1])  # as a sequence of one
    for handle in handles:
        handle.remove()
    close(layer(2 * x)[0], expected)


def test_full_backward_hooks_see_what_torchs_see(pair: Pair) -> None:
    x, seen = sequence(), []
    weight = torch.randn(T, B, H, dtype=torch.float64)
    for layer in pair:
        leaf, calls = x.clone().requires_grad_(), []
        layer.register_full_backward_hook(
            lambda _, into, out, calls=calls: calls.append((into[0], out[0]))
        )
        layer.register_full_backward_pre_hook(lambda _, out: (3 * out[0], *out[1:]))
        (layer(leaf)[0] * weight).sum().backward()
        seen.append((calls[0], leaf.grad))
        assert len(calls) == 1
    close(seen[0], seen[1])
    close(seen[0][0][1], 3 * weight)


def test_tensor_hooks_on_parameters_run(make: Make) -> None:
    layer, x = make(num_layers=2), sequence()
    layer(x)[0].sum().backward()
    parameter = next(layer.parameters())
    gradient = cast(Tensor, parameter.grad).clone()
    layer.zero_grad()
    parameter.register_hook(lambda grad: -grad)
    layer(x)[0].sum().backward()
    close(parameter.grad, -gradient)


@pytest.mark.usefixtures("by_reference")
def test_hooks_on_modules_inside_a_cell_run_at_every_step() -> None:
    layer, x = FlexRNN(HoldingCell, I, H, num_layers=2, dtype=torch.float64), sequence()
    calls = []
    inner = cast(nn.Linear, layer.cells[1].get_submodule("inner"))
    handle = inner.register_forward_hook(lambda module, *_: calls.append(module.weight.shape))
    output = layer(x)[0]
    assert calls == [(H, H + H)] * T
    handle.remove()
    close(layer(x)[0], output)
    assert len(calls) == T


def test_apply_reaches_the_weights_of_modules_inside_a_cell() -> None:
    """The usual initialiser, which asks for `nn.Linear`, also from a model around the layer."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)

    layer = FlexRNN(HoldingCell, I, H, num_layers=2, bidirectional=True)
    nn.Sequential(nn.Linear(2, 2), layer).apply(init)
    weights = {n: p for n, p in layer.named_parameters() if n.startswith("inner_weight")}
    assert len(weights) == 4
    for weight in weights.values():
        assert torch.equal(weight, torch.full_like(weight, 0.25))


def test_dropout_between_layers_draws_torchs_numbers_in_training_only(request: Any) -> None:
    for name, theirs_class in TORCHS.items():
        theirs = theirs_class(I, H, 3, dropout=0.5, dtype=torch.float64)
        ours = LAYERS[name](I, H, 3, dropout=0.5, dtype=torch.float64)
        ours.load_state_dict(theirs.state_dict())
        x, results = sequence(), []
        for layer in (ours, theirs):
            torch.manual_seed(1)
            results.append(layer(x))
        close(tensors(results[0]), tensors(results[1]))
        assert not torch.equal(ours(x)[0], results[0][0])
        close(tensors(ours.eval()(x)), tensors(theirs.eval()(x)))
        assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.usefixtures("by_reference")
def test_dropout_inside_a_cell_honours_the_layers_mode() -> None:
    torch.manual_seed(0)
    layer = FlexRNN(HoldingCell, I, 64, drop=0.5, dtype=torch.float64)
    without = FlexRNN(HoldingCell, I, 64, dtype=torch.float64)
    without.load_state_dict(layer.state_dict())
    x = sequence()
    dropped = layer(x)[0]
    assert 0.3 < float((dropped == 0).double().mean()) < 0.7
    assert not torch.equal(layer(x)[0], dropped)
    for module in (layer, nn.Sequential(layer)):  # also when the model around it is switched
        module.eval()
        close(layer(x)[0], without(x)[0])
        module.train()
        assert (layer(x)[0] == 0).any()
    cast(nn.Dropout, layer.cells[0].get_submodule("drop")).eval()  # and when the module itself is
    close(layer(x)[0], without(x)[0])


@pytest.mark.usefixtures("by_reference")
def test_batch_norm_inside_a_cell_counts_every_step() -> None:
    class BatchNormCell(flexrnn.Cell):
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
            self.norm = nn.BatchNorm1d(hidden_size, device=device, dtype=dtype)

        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            return HiddenState(torch.tanh(self.norm(self.inner(torch.cat([x, state.h], -1)))))

    torch.manual_seed(0)
    layer = FlexRNN(BatchNormCell, I, H, dtype=torch.float64)
    torch.manual_seed(0)
    cell, x = BatchNormCell(I, H, dtype=torch.float64), sequence()
    for mode in (True, False):
        layer.train(mode)
        cell.train(mode)
        h, outputs = torch.zeros(B, H, dtype=torch.float64), []
        for x_t in x:
            h = torch.tanh(cell.norm(cell.inner(torch.cat([x_t, h], -1))))
            outputs.append(h)
        close(layer(x)[0], torch.stack(outputs))
        close(dict(layer.cells[0].named_buffers()), dict(cell.named_buffers()))
    assert int(layer.state_dict()["cells.0.norm.num_batches_tracked"]) == T
