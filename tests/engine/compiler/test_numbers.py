"""One number for each head of a row: several heads at once are computed as if they were units."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flexrnn

from ..summed import MatrixCell, N, S

WRITTEN: dict[str, Callable[..., Tensor]] = {
    "norms": lambda c, z, h: z * torch.tanh(h.norm(dim=2, keepdim=True) - c.rows).exp(),
    "means and variances": lambda c, z, h: (
        z + h.var(2, keepdim=True).sqrt() * h.mean(2, keepdim=True) * c.rows),
    "a layer norm": lambda c, z, h: nn.functional.layer_norm(h, (S,), c.columns) + z,
    "the largest": lambda c, z, h: z - (h * c.all).amax(2, True).sigmoid() * h[:, :, :1],
    "a softmax": lambda c, z, h: h.softmax(2) * (z.logsumexp(2, True) + c.rows),
    "beside one another": lambda c, z, h: torch.cat(
        [h[:, :, 1:-1], h.mean(2, True) * c.rows, (z[:, :, :1] + c.rows).sin()], 2),
    "a window": lambda c, z, h: torch.cat([h[:, :, 1:], z[:, :, :1] * h[:, :, :1].exp()], 2),
    "read as a row": lambda c, z, h: (
        z + (h.sum(2, True).tanh() * c.rows).squeeze(2).softmax(1).unsqueeze(2)),
    "of heads of heads": lambda c, z, h: z + (
        h.view(-1, 4, 6, S).sum(3, True).tanh() * c.rows.view(4, 6, 1)
    ).reshape(-1, N, 1),
    "stretched over heads": lambda c, z, h: z + (
        h.view(-1, 4, 6, S).sum(3, True) * h.view(-1, 4, 6, S).mean((2, 3), True) + c.rows[:6]
    ).reshape(-1, N, 1) / S,
    "summed over heads": lambda c, z, h: z + (
        h.view(-1, 4, 6, S).sum(3, True).tanh() * c.rows.view(4, 6, 1)).sum(1).repeat(1, 4, 1),
    "truth": lambda c, z, h: torch.where(h.mean(2, True) > z[:, :, 3:4], z, h * c.rows),
    "of two": lambda c, z, h: z + (
        h[:, :20, :2].flatten(1).view(-1, 10, 2, 2, 1) * z[:, :20, :2].reshape(-1, 10, 2, 2, 1)
    ).exp().reshape(-1, 1, 40).mean(2, True),
    "two columns of a parameter": lambda c, z, h: z + (
        torch.cat([h[:, :, :1].sigmoid(), z[:, :, 1:2].tanh()], 2) * c.all[:, :2]
    ).prod(2, keepdim=True),
    "columns of a product": lambda c, z, h: z * (
        (h[:, :4, :5].unsqueeze(1) + c.all[:4, :5]) @ z[:, :8, :5].reshape(-1, 2, 4, 5).mT
    )[:, :, :, :1].sum((1, 2), True)[:, 0] + h,
    "one head": lambda c, z, h: z * h.sum((1, 2), True).tanh() + h.mean((1, 2), True),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_one_number_of_each_head(
    same_by_program: Callable[..., None], function: Callable[..., Tensor], rows: int
) -> None:
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(MatrixCell, 4, N * S, dtype=torch.float64, function=function)
    x = torch.randn(3, rows, 4, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)
