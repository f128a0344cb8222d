"""The three cells that torch has, one step and whole layers: values and every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn

I, H, B, T = 3, 5, 4, 6
LAYERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], dict[str, Any]]] = {
    "LSTM": (flexrnn.LSTM, nn.LSTM, {}),
    "LSTM projected": (flexrnn.LSTM, nn.LSTM, {"proj_size": 2}),
    "GRU": (flexrnn.GRU, nn.GRU, {}),
    "RNN tanh": (flexrnn.RNN, nn.RNN, {}),
    "RNN relu": (flexrnn.RNN, nn.RNN, {"nonlinearity": "relu"}),
}
CELLS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], dict[str, Any]]] = {
    "LSTMCell": (flexrnn.LSTMCell, nn.LSTMCell, {}),
    "GRUCell": (flexrnn.GRUCell, nn.GRUCell, {}),
    "RNNCell tanh": (flexrnn.RNNCell, nn.RNNCell, {}),
    "RNNCell relu": (flexrnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
}


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def compare(ours: nn.Module, theirs: nn.Module, inputs: list[Any]) -> None:
    """Same weights, same inputs: same results, and the same gradient of everything."""
    ours.load_state_dict(theirs.state_dict())
    gradients = []
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)  # for the weights of the loss
        result = tensors(module(*inputs))
        loss = sum(((r * torch.randn(r.shape)).sum() for r in result), torch.zeros(()))
        leaves = [t for t in tensors(inputs) if t.requires_grad] + list(module.parameters())
        results.append(result)
        gradients.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_torchs(name: str, bias: bool) -> None:
    ours, theirs, options = CELLS[name]
    state = (leaf(B, H), leaf(B, H)) if name == "LSTMCell" else leaf(B, H)
    options = {**options, "bias": bias, "dtype": torch.float64}
    compare(ours(I, H, **options), theirs(I, H, **options), [leaf(B, I), state])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "batch_first": True},
        {"bidirectional": True},
        {"num_layers": 3},
        {"num_layers": 2, "bidirectional": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_torchs(name: str, options: dict[str, Any]) -> None:
    ours, theirs, more = LAYERS[name]
    options = {**options, **more, "dtype": torch.float64}
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    h = leaf(layers, B, options.get("proj_size", H))
    hx = (h, leaf(layers, B, H)) if name.startswith("LSTM") else h
    x = leaf(B, T, I) if options.get("batch_first") else leaf(T, B, I)
    compare(ours(I, H, **options), theirs(I, H, **options), [x, hx])
