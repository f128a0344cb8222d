"""A layer that is gone takes its cells with it, after Triton's kernels too."""

import gc
from weakref import ref

import torch

import flexrnn


def test_a_layer_and_its_cells_are_collected(device: str) -> None:
    layer = flexrnn.GRU(2, 5, backend="cuda", device=device)
    alive = [ref(layer), *(ref(module) for module in layer.modules())]
    x = torch.randn(4, 3, 2, device=device, requires_grad=True)
    for _ in range(2):
        layer(x)[0].sum().backward()
    del layer
    gc.collect()
    assert [gone() for gone in alive if gone() is not None] == []
