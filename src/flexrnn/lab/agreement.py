"""Is it the same function? Each cell beside `nn.LSTM`, with the same weights carried into it."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from flexrnn.lab.results import Agreement
from flexrnn.lab.table import Entry, torch_lstm

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih")  # torch's second bias has the gradient of the first
DTYPES = (torch.float64, torch.float32)


def measure(entry: Entry, size: dict[str, int], dtype: torch.dtype, seed: int) -> Agreement:
    """Carry `nn.LSTM`'s weights into a cell; run and differentiate both on the same input.

    Args:
        entry: the competitor.
        size: `batch`, `seq` and `hidden`; the input is as wide as the hidden state.
        dtype: of weights and input.
        seed: of the weights, the input and the loss.

    Example:
        >>> import torch
        >>> from flexrnn.lab.agreement import measure
        >>> from flexrnn.lab.table import choose
        >>> size = {"batch": 2, "seq": 3, "hidden": 4}
        >>> measure(choose(["naive"])[0], size, torch.float64, seed=0).output < 1e-12
        True
    """
    row = Agreement(entry.key, entry.label, str(dtype).removeprefix("torch."))
    if entry.carry is None or entry.back is None:
        row.why_not = entry.why_not or "no weights make it the same function"
        return row
    generator = torch.Generator().manual_seed(seed)
    B, T, H = size["batch"], size["seq"], size["hidden"]
    x = torch.randn(B, T, H, generator=generator, dtype=dtype)
    loss = torch.randn(B, T + 1, H, generator=generator, dtype=dtype)
    lstm = torch_lstm(H, H).to(dtype)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.uniform_(-(H**-0.5), H**-0.5, generator=generator)

    theirs = _run(lstm, x, loss)
    ours_layer = entry.carry(copy.deepcopy(lstm))
    ours = _run(ours_layer, x, loss)
    ours |= _weight_gradients(entry.back(_gradients_as_weights(ours_layer)))
    theirs |= _weight_gradients(_gradients_as_weights(lstm))

    difference = {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}
    row.output = difference.pop("output")
    row.states = difference.pop("states")
    row.gradients = difference
    row.scale = {name: value.abs().max().item() for name, value in theirs.items()}
    return row


def _run(layer: nn.Module, x: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Output, final states and the gradient of x, of a loss that reads every one of them."""
    x = x.clone().requires_grad_()
    output, (h, c) = layer(x)
    h, c = h.reshape(x.shape[0], -1), c.reshape(x.shape[0], -1)  # nn.LSTM: (1, B, H)
    ((output * loss[:, :-1]).sum() + ((h + c) * loss[:, -1]).sum()).backward()
    states = torch.stack([h, c])
    return {"output": output.detach(), "states": states.detach(), "x": cast(Tensor, x.grad)}


def _gradients_as_weights(layer: nn.Module) -> nn.Module:
    """A copy whose weights are the gradients: what carries weights then carries gradients too.

    Carrying transposes, slices and joins, and does to a gradient exactly what it does to a weight.
    """
    gradients = [parameter.grad for parameter in layer.parameters()]
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    return twin


def _weight_gradients(lstm: nn.Module) -> dict[str, Tensor]:
    return {name: lstm.get_parameter(f"{name}_l0").detach() for name in WEIGHTS}
