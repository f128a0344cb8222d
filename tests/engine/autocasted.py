"""A layer under autocast, for both engines that are judged there."""

from typing import Any

import torch

import flexrnn


class Autocast(flexrnn.FlexRNN):
    """A layer that is called under autocast, and whose gradients are computed outside of it."""

    casts_to = torch.bfloat16

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        device = next(self.parameters()).device  # a packed sequence does not say it
        with torch.autocast(device.type, dtype=self.casts_to):
            return super().forward(*args, **kwargs)
