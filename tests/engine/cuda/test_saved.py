"""What a forward pass saves may be handed back by autograd's hooks, however it lies there."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import cells

T, B, I, H = 4, 3, 5, 7


def _apart(tensor: Tensor) -> Tensor:
    """The same numbers, no row of which lies beside the next."""
    if not tensor.dim():
        return tensor
    return torch.cat([tensor, torch.ones_like(tensor)], -1)[..., : tensor.shape[-1]]


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, T, 3])])
@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.GRUCell, cells.LayerNormLSTMCell])
def test_what_hooks_hand_over_may_lie_otherwise(
    cell: Any, lengths: Tensor | None, device: str
) -> None:
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    layer = flexrnn.FlexRNN(cell, I, H, bidirectional=True, **options)
    x = torch.randn(T, B, I, requires_grad=True, **options)
    hx: Any = [torch.randn(2, B, H, **options) for _ in cell.State._fields]
    hx = tuple(hx) if len(hx) > 1 else hx[0]
    found = []
    for unpack in (_apart, torch.clone):
        with (
            flexrnn.backend("cuda"),
            torch.autograd.graph.saved_tensors_hooks(torch.clone, unpack),
        ):
            output, _ = layer(x, hx, lengths=lengths)
        found.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
