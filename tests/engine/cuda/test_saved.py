"""What a forward pass saves may be handed back by autograd's hooks, however it lies there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn import cells

T, B, I, H = 4, 3, 5, 7


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, T, 3])])
@pytest.mark.parametrize("cell", [cells.LSTMCell, cells.GRUCell, cells.LayerNormLSTMCell])
def test_what_hooks_hand_over_may_lie_otherwise(
    cell: Any, lengths: Tensor | None, device: str, hand_over: Callable[..., None]
) -> None:
    options: dict[str, Any] = {"dtype": torch.float64, "device": device}
    layer = flexrnn.FlexRNN(cell, I, H, bidirectional=True, **options)
    hand_over("cuda", layer, torch.randn(T, B, I, **options), lengths=lengths)
