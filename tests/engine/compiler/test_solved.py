"""Systems of equations, inverses, determinants and roots of small matrices, of rows or ahead."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import flexrnn

from .written import Cell, but, halves

Function = Callable[[Any, Tensor, Tensor], Tensor]


def matrix(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    """`(B, n, n)`, of any kind."""
    return torch.cat([h, x @ c.W, h @ c.U, h * h], 1).view(-1, 4, 4)[:, :n, :n]


def positive(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m = matrix(c, x, h, n)
    return m @ m.mT + torch.eye(n, dtype=h.dtype)


def four(m: Tensor) -> Tensor:
    """The first four numbers of a row."""
    flat = m.flatten(1)[:, :4]
    return F.pad(flat, (0, 4 - flat.shape[1]))


def inverses(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m, p = matrix(c, x, h, n), positive(c, x, h, n)
    return four(torch.linalg.inv(m)).tanh() + four(p.inverse()) + four(torch.inverse(p + m @ m.mT))


def root(a: Tensor) -> Tensor:
    """By the older name, where torch still has it: that of 2.14 raises."""
    old: Any = getattr(Tensor, "cholesky", root)
    return torch.linalg.cholesky(a) if isinstance(old, FunctionType) else old(a)


def determinants(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m, p = matrix(c, x, h, n), positive(c, x, h, n)
    sign, size = torch.linalg.slogdet(m)
    return (m.det().tanh() + torch.linalg.det(p).log() + p.logdet() + sign + size.tanh())[:, None]


def solutions(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m, p = matrix(c, x, h, n), positive(c, x, h, n)
    vector = torch.linalg.solve(p, h[:, :n])
    known = torch.linalg.solve(p, c.U[:n, :2][None]) + torch.linalg.solve(p, c.b[:n])[..., None]
    return four(torch.linalg.solve(p, m)) + F.pad(vector, (0, 4 - n)) + four(known)


def triangles(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m, p = matrix(c, x, h, n), positive(c, x, h, n)
    ones = torch.linalg.solve_triangular(p, m, upper=False, unitriangular=True).tanh()
    return four(torch.linalg.solve_triangular(p, m, upper=True)) + four(ones)


def roots(c: Any, x: Tensor, h: Tensor, n: int) -> Tensor:
    m, p = matrix(c, x, h, n), positive(c, x, h, n)
    low, high = torch.linalg.cholesky(p), torch.linalg.cholesky(p, upper=True)
    lopsided = torch.linalg.cholesky(0.1 * m.tanh() + 2 * torch.eye(n, dtype=h.dtype))
    return four(low + high + lopsided) + four(
        torch.cholesky_solve(m, low) - torch.cholesky_solve(m, high, upper=True) * 2
    )


WRITTEN: dict[str, Function] = {
    f"{function.__name__} of {n} places": lambda c, x, h, n=n, function=function: (
        x @ c.W + function(c, x, h, n)
    )
    for function in (inverses, determinants, solutions, triangles, roots)
    for n in (1, 3)
} | {
    "nothing where the largest comes first": lambda c, x, h: (
        x @ c.W + four(torch.linalg.inv(torch.stack([h * 0, h.exp(), h.exp() + 1, h], -1)[:, 0]
                                        .view(-1, 2, 2)))
    ),
    "matrices of heads": lambda c, x, h: (
        x @ c.W + four(torch.linalg.inv((h @ c.wide).view(-1, 2, 2, 2))).tanh()
        + torch.linalg.det((h @ c.wide).view(-1, 2, 2, 2)).repeat(1, 2)
    ),
    "determinants of nothing, and of one line again and again": lambda c, x, h: (
        x @ c.W + torch.linalg.det((h * 0).view(-1, 2, 2))[:, None]
        + torch.linalg.det(h[:, None].expand(-1, 4, -1))[:, None]
        + torch.linalg.slogdet((h * 0).view(-1, 2, 2))[0][:, None]
    ),
    "one matrix for all rows": lambda c, x, h: (
        x @ c.W + torch.linalg.solve(c.U, h.T).T + torch.linalg.solve(c.V, h, left=False)
        + torch.linalg.solve(c.U[:2, :2], halves(h)).flatten(1)
        + torch.linalg.solve_triangular(c.U, h.T, upper=False).T
        + torch.linalg.solve_triangular(c.U, h[..., None], upper=True, unitriangular=True)[..., 0]
        + torch.cholesky_solve(
            h[..., None], root(c.U @ c.U.T + torch.eye(4, dtype=h.dtype)))[..., 0]
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
@pytest.mark.parametrize(
    "name", but(WRITTEN, "one matrix for all rows", "asks for the batch size in linalg.solve")
)
def test_engines_agree(same_by_program: Callable[..., None], name: str) -> None:
    layer = flexrnn.FlexRNN(Cell, 3, 4, dtype=torch.float64, function=WRITTEN[name])
    for steps, batch in ((2, 2), (1, 1)):
        x = torch.randn(steps, batch, 3, dtype=torch.float64, requires_grad=True)
        h = torch.randn(1, batch, 4, dtype=torch.float64, requires_grad=True)
        same_by_program(layer, x, h, rtol=1e-9)


def test_what_may_be_a_vector_of_each_row_or_all_columns_is_refused(
    refuses: Callable[..., None],
) -> None:
    refuses(
        lambda c, z, h: h + torch.linalg.solve(
            z[:, :2, None] + torch.eye(2, dtype=z.dtype), c.inner.weight[:2, :2]
        ).sum((1, 2))[:, None],
        "torch takes as many vectors for one of each row",
    )  # fmt: skip


def test_larger_matrices_of_rows_are_refused(refuses: Callable[..., None]) -> None:
    for function in (torch.linalg.inv, torch.linalg.cholesky, torch.linalg.det):
        refuses(
            lambda c, z, h, function=function: (
                h + function(z[:, None] * z[..., None]).view(h.shape[0], -1)[:, :1]
            ),
            "of matrices of each row it takes those of 4 by 4 places at the most",
        )
