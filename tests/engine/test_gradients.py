"""Gradients that are one another in another shape: each has memory of its own."""

import pytest
import torch
from torch import Tensor

import flexrnn


@pytest.mark.parametrize("engine", ["interpreter", "cpu"])
def test_what_is_done_to_one_gradient_is_not_done_to_another(engine: str) -> None:
    def step(x: Tensor, h: Tensor, w: Tensor, b: Tensor, p: Tensor) -> Tensor:
        return torch.tanh(x @ w + h + b + p.reshape(-1))

    params = [torch.randn(shape, requires_grad=True) for shape in ((3, 6), (6,), (2, 3))]
    for _ in range(6):  # later calls may be written down
        with flexrnn.backend(engine):
            output, _ = flexrnn.scan(step, torch.zeros(2, 6), torch.randn(5, 2, 3), params)
        _, b, p = torch.autograd.grad(output.sum(), params)
        assert torch.equal(b, p.reshape(-1))
        kept = b.clone()
        p.zero_()
        assert torch.equal(b, kept)
