"""Engines side by side, from one seed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import flexrnn

from .noisy import DOUBLE


@pytest.fixture
def agree() -> Callable[..., None]:
    """Assert that engines give the same from a seed, values and gradients; return the output."""

    def check(layer: nn.Module, x: Any, *engines: str, **marks: Any) -> None:
        found: list[Any] = []
        for engine in ("reference", *(engines or ("interpreter", "cpu"))):
            torch.manual_seed(5)
            with flexrnn.backend(engine):
                output, state = layer(x, **marks)
            values = [getattr(output, "data", output), *(s for s in state.unbind(0))]
            weights = torch.linspace(-1, 2, values[0].numel(), dtype=DOUBLE).view_as(values[0])
            loss = (values[0] * weights).sum() + values[-1].sum()
            found.append([*values, *torch.autograd.grad(loss, [*layer.parameters()])])
        for others in found[1:]:
            assert_close(others, found[0], rtol=1e-11, atol=1e-11)

    return check
