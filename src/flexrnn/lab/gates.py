"""What happens inside an LSTM, made visible: its gates, step by step, beside its two states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flexrnn.fromscratch import CustomLSTM

NAMES = ("i", "f", "g", "o", "c", "h")


@dataclass(frozen=True)
class Recording:
    """Gates and states of one sequence, each `(T, H)`: i, f, g, o and, after each step, c and h."""

    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    c: Tensor
    h: Tensor


@torch.no_grad()
def of_custom_lstm(layer: CustomLSTM, x: Tensor) -> Recording:
    """Compute both forms of `CustomLSTM` again from its weights, and keep every gate.

    Args:
        layer: with or without peephole.
        x: one sequence, `(T, I)`; the states begin at zero.

    Raises:
        RuntimeError: the result is not the layer's own. Then the pictures would show another cell.

    Example:
        >>> import torch
        >>> from flexrnn.fromscratch import CustomLSTM
        >>> from flexrnn.lab.gates import of_custom_lstm
        >>> of_custom_lstm(CustomLSTM(3, 5), torch.randn(7, 3)).f.shape
        torch.Size([7, 5])
    """
    h = c = x.new_zeros(layer.hidden_sz)
    steps: list[tuple[Tensor, ...]] = []
    for x_t in x:  # (I,)
        from_x = x_t @ layer.W + layer.bias  # (4H,)
        z_i, z_f, z_g, z_o = (from_x + (c if layer.peephole else h) @ layer.U).chunk(4)  # (H,) each
        i, f, o = z_i.sigmoid(), z_f.sigmoid(), z_o.sigmoid()
        g = from_x.chunk(4)[2].sigmoid() if layer.peephole else z_g.tanh()
        c = f * c + i * g
        h = (o * c).tanh() if layer.peephole else o * c.tanh()
        steps.append((i, f, g, o, c, h))
    recording = Recording(*(torch.stack(values) for values in zip(*steps, strict=True)))

    own, (_, own_c) = layer(x.unsqueeze(0))  # (1, T, H), (1, H)
    if not (
        torch.allclose(recording.h, own[0], rtol=1e-4, atol=1e-5)
        and torch.allclose(recording.c[-1], own_c[0], rtol=1e-4, atol=1e-5)
    ):
        raise RuntimeError("the recorded gates do not give the layer's own output")
    return recording
