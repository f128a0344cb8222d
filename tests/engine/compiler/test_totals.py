"""Sums along an axis behind which others stand, of more places than are taken one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn.engine.compiler.graph import BATCH, Graph

from ..summed import MatrixCell, N, S

WRITTEN: dict[str, Callable[..., Tensor]] = {
    "a sum": lambda c, z, h: z + h.sum(1, keepdim=True) / N,
    "what is computed": lambda c, z, h: z + ((h * c.all).exp() + z).mean(1, True),
    "by rows": lambda c, z, h: z * (c.rows * h).sum(1).sigmoid().unsqueeze(1),
    "a row times it": lambda c, z, h: h + z[:, :, :1] * (z[:, :1, :N] @ h),
    "read beside itself": lambda c, z, h: (h - h.mean(1, True)) * h.sum(1, True) + h,
    "of both axes": lambda c, z, h: z * h.sum(2, True) / S + h.sum(1, True) * c.columns,
    "one behind another": lambda c, z, h: (
        z + (h * (z * h).mean(1, True)).mean(1, True) + h.mean(1, True).pow(2).mean(2, True)),
    "truth": lambda c, z, h: z * (h > z).sum(1, True) / N,
    "a softmax": lambda c, z, h: h.softmax(1) * z,
    "a norm": lambda c, z, h: nn.functional.normalize(h, dim=1) + z,
    "four axes": lambda c, z, h: (
        z.view(-1, 12, 2, S) + h.view(-1, 12, 2, S).sum(1, True)).reshape(-1, N, S),
    "heads": lambda c, z, h: (
        h.view(-1, 2, 12, S) * z.view(-1, 2, 12, S).mean(2, True)).reshape(-1, N, S),
    "a part": lambda c, z, h: z + torch.cat([h[:, 5:, 3:].mean(1, True), z[:, :1, :3]], 2),
    "turned": lambda c, z, h: z + h.mT.cumsum(1).mT * h.mT.reshape(-1, S, N).sum(1)[..., None] / S,
    "an outer product": lambda c, z, h: (
        h + z[:, :, :1] * (z[:, :1] - (z[:, :, :1] * h).sum(1, True))),
    "a matrix of rank one": lambda c, z, h: h @ (h[:, :1].mT @ z[:, 1:2]) / S,
    "of rank one, from left": lambda c, z, h: (h[:, :, 2:3] @ z[:, 1:2, :N]) @ h / N,
    "of rank one, turned": lambda c, z, h: h @ (z[:, 1:2].mT @ h[:, :1]).mT / S,
    "heads of rank one": lambda c, z, h: (
        torch.stack([h, z], 1) @ (
            z.view(-1, 2, 12, S)[:, :, :1].mT @ h.view(-1, 2, 12, S)[:, :, 3:4]) / S).mean(1),
    "heads of a row": lambda c, z, h: (
        z.view(-1, 2, 12, S)[:, :, :1, :12] @ h.view(-1, 2, 12, S)).tanh().mean(1) + z,
    "heads of a column": lambda c, z, h: (
        h.view(-1, 2, 12, S) @ z.view(-1, 2, 12, S)[:, :, :1].mT).reshape(-1, N, 1) / S + z,
    "of one column": lambda c, z, h: z + h.reshape(-1, N * S, 1).square().mean(1, True),
    "of one column, four axes": lambda c, z, h: (
        z + h.reshape(-1, 2, 600, 1).square().mean((1, 2), True)[:, 0]),
    "a parameter for every row": lambda c, z, h: h - c.columns.expand(h.shape[0], 1, S) + z,
    "a parameter for every row, as a matrix": lambda c, z, h: (
        torch.bmm(h[:, :, :1], c.columns.view(1, 1, S).repeat(h.shape[0], 1, 1)) + z),
    "pairs in the plane": lambda c, z, h: (
        pairs(h.flatten(1)[:, :44].reshape(-1, 22, 2)).flatten(1).repeat(1, 28)[:, : N * S]
        .reshape(-1, N, S) + z),
    "pairs in space": lambda c, z, h: (
        pairs(h.flatten(1)[:, :33].reshape(-1, 11, 3)).flatten(1).repeat(1, 37)[:, : N * S]
        .reshape(-1, N, S) + z),
    "of two": lambda c, z, h: (
        (h.view(-1, N, S // 2, 2) * z.view(-1, N, S // 2, 2)).sum(-1).repeat(1, 1, 2) + z),
    "of two, stretched": lambda c, z, h: z + (
        (h[:, :, None, :2] * z[:, None, :, 2:4]).tanh().sum(-1) ** 3).mean(2, True),
}  # fmt: skip


def pairs(p: Tensor) -> Tensor:
    """The forces of all pairs of particles `(B, N, D)`."""
    apart = p[:, :, None] - p[:, None]
    near = (apart**2).sum(-1) + 0.5
    return (near.pow(-1.5).unsqueeze(-1) * apart).sum(2)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_sums_of_a_matrix(
    same_by_program: Callable[..., None], function: Callable[..., Tensor], rows: int
) -> None:
    torch.manual_seed(0)
    layer = flexrnn.FlexRNN(MatrixCell, 4, N * S, dtype=torch.float64, function=function)
    x = torch.randn(3, rows, 4, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, x)


RANK_ONE = ["a matrix of rank one", "of rank one, from left", "of rank one, turned"]


@pytest.mark.parametrize("name", RANK_ONE)
def test_a_column_times_a_row_is_not_multiplied_out(
    program_of: Callable[..., Any], name: str
) -> None:
    nodes = program_of(MatrixCell(4, N * S, function=WRITTEN[name])).graph.nodes
    assert not [node for node in nodes if node.op == "matmul"]


def test_many_places_are_not_added_up_one_by_one(program_of: Callable[..., Any]) -> None:
    nodes = program_of(MatrixCell(4, N * S, function=WRITTEN["a sum"])).graph.nodes
    assert "total" in {node.op for node in nodes}
    assert not [node for node in nodes if node.op == "slice"]


def test_a_total_has_another_axis_than_the_last_and_the_batch() -> None:
    graph = Graph()
    a = graph.input("x0", (BATCH, 3, 5))
    assert graph.nodes[graph.add("total", a, axis=-2)].shape == (BATCH, 1, 5)
    for axis in (-1, -3):
        with pytest.raises(ValueError, match="expected an axis"):
            graph.add("total", a, axis=axis)
