"""Spellings: systems of equations, inverses and determinants, and Cholesky's root.

Where the matrix is a parameter's, torch inverts it ahead. Where each row has its own, of few
places, they are eliminated one after another, and the largest of a column comes first. The inverse
of what is singular is inf or nan, where torch raises an error.
"""

from itertools import combinations
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.chosen import first, unit_numbers
from flexrnn.engine.compiler.spelt.matrices import matmul
from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows, is_of_rows, where

_MOST = 4  # places of a matrix of each row: what is written for one grows with their square


def _is_small(name: str, a: Tensor, *others: Tensor) -> bool:
    """Whether these are small matrices of each row; larger ones are refused."""
    square = a.dim() > 2 and is_of_rows(a) and a.shape[-1] == a.shape[-2] and a.shape[-1] > 0
    if not square or not a.is_floating_point() or any(x.dtype != a.dtype for x in others):
        return False
    if a.shape[-1] > _MOST:
        raise refused(name, f"of matrices of each row it takes those of {_MOST} by {_MOST} places "
                      "at the most")  # fmt: skip
    return True


def _eliminated(a: Tensor, b: Tensor) -> Tensor:
    """`a⁻¹ b`, of `(B, ..., n, n)` and `(B, ..., n, m)`."""
    n = a.shape[-1]
    both = torch.cat([a, b.expand(*a.shape[:-1], b.shape[-1])], -1)
    for k in range(n):
        done, rest = both[..., :k, :], both[..., k:, :]
        sizes = rest[..., k].abs().detach()
        here = unit_numbers(sizes, -1) == first(sizes, -1)
        largest = where(here.unsqueeze(-1), rest, 0.0).sum(-2, keepdim=True)
        rest = torch.where(here.unsqueeze(-1), rest[..., :1, :], rest)[..., 1:, :]  # they swap
        pivot = largest[..., k : k + 1]
        line = largest / pivot
        parts = [part - part[..., k : k + 1] * line for part in (done, rest) if part.shape[-2]]
        both = torch.cat([*parts[: k > 0], line, *parts[k > 0 :]], -2)
    return both[..., n:]


def _eye(a: Tensor) -> Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _inv(input: Tensor) -> Tensor:
    if not _is_small("inv", input):
        return torch.linalg.inv(input)
    return _eliminated(input, _eye(input))


def _det(input: Tensor) -> Tensor:
    """By minors: what is singular has a determinant, too, and that a derivative."""
    if not _is_small("det", input):
        return torch.linalg.det(input)
    n = input.shape[-1]
    minors: dict[tuple[int, ...], Tensor] = {}  # of the first rows, by their columns
    minors |= {(k,): input[..., 0, k] for k in range(n)}
    for row in range(1, n):
        wider: dict[tuple[int, ...], Tensor] = {}
        for columns in combinations(range(n), row + 1):
            for place, k in enumerate(columns):
                part = input[..., row, k] * minors[columns[:place] + columns[place + 1 :]]
                sign = 1 if (row + place) % 2 == 0 else -1
                wider[columns] = wider[columns] + sign * part if place else sign * part
        minors = wider
    return minors[(*range(n),)]


def _logdet(input: Tensor) -> Tensor:
    return _det(input).log() if _is_small("logdet", input) else torch.logdet(input)


def _slogdet(input: Tensor) -> Any:
    if not _is_small("slogdet", input):
        return torch.linalg.slogdet(input)
    found = _det(input)
    kind: Any = torch.return_types
    return kind.linalg_slogdet((found.sign(), found.abs().log()))


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """A vector for each matrix is one where it has all its axes but the last."""
    ahead = not has_rows(A) and has_rows(B) and A.dim() == 2 and B.dim() > 1 and A.dtype == B.dtype
    if ahead and A.shape[0] == A.shape[1]:
        inverse = torch.linalg.inv(A)
        return matmul(inverse, B) if left else matmul(B, inverse)
    if not left or not _is_small("solve", A, B):
        return torch.linalg.solve(A, B, left=left)
    if not has_rows(B) and B.dim() == A.dim() - 1 and B.shape[1:] == A.shape[1:-1]:
        raise refused(
            "solve",
            "torch takes as many vectors for one of each row, and for columns where there are not "
            "as many rows; with an axis in front they are columns",
        )
    if B.dim() == 1 or (B.dim() == A.dim() - 1 and is_of_rows(B)):
        return _eliminated(A, B.unsqueeze(-1)).squeeze(-1)
    return _eliminated(A, B)


def _solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    own = has_rows(A) and B.dim() >= A.dim() and _is_small("solve_triangular", A, B)
    if A.dim() < 2 or not (own or (not has_rows(A) and has_rows(B))):
        return torch.linalg.solve_triangular(
            A, B, upper=upper, left=left, unitriangular=unitriangular
        )
    ones = torch.ones(A.shape[-2:], dtype=torch.bool, device=A.device)
    kept = ones.triu(int(unitriangular)) if upper else ones.tril(-int(unitriangular))
    a = where(kept, A, 0.0)
    return _solve(a + _eye(A) if unitriangular else a, B, left=left)


def _cholesky(input: Tensor, *, upper: bool = False) -> Tensor:
    if not _is_small("cholesky", input):
        return torch.linalg.cholesky(input, upper=upper)
    other = input.mT
    lower = torch.ones(input.shape[-2:], dtype=torch.bool, device=input.device).tril()
    read = torch.where(lower, *((other, input) if upper else (input, other)))
    half = (input + other) / 2  # torch's derivative is a symmetric matrix, too
    a = half + (read - half).detach()
    rows: list[list[Tensor]] = []
    for i in range(a.shape[-1]):
        row: list[Tensor] = []
        for j in range(i + 1):
            before = rows[j] if j < i else row
            value = a[..., i, j]
            for k in range(j):
                value = value - row[k] * before[k]
            row.append(value.sqrt() if i == j else value / rows[j][j])
        rows.append(row)
    zero = torch.zeros_like(rows[0][0])
    filled = [torch.stack([*row, *[zero] * (len(rows) - len(row))], -1) for row in rows]
    root = torch.stack(filled, -2)
    return root.mT if upper else root


def _cholesky_of_old(input: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(input, upper=upper)


def _cholesky_solve(B: Tensor, L: Tensor, upper: bool = False) -> Tensor:
    own = has_rows(L) and B.dim() >= L.dim() and _is_small("cholesky_solve", L, B)
    if not (own or (not has_rows(L) and has_rows(B))):
        return torch.cholesky_solve(B, L, upper)
    middle = _solve_triangular(L.mT if upper else L, B, upper=False)
    return _solve_triangular(L if upper else L.mT, middle, upper=True)


# Torch 2.14 has functions of Python's there, which raise.
_CHOLESKY = [old for old in (getattr(torch, "cholesky", None), getattr(Tensor, "cholesky", None))
             if old is not None and not isinstance(old, FunctionType)]  # fmt: skip
SPELT: dict[Any, Any] = {
    original: as_torch(original, spelling)
    for spelling, originals in (
        (_inv, (torch.linalg.inv, torch.inverse, Tensor.inverse)),
        (_det, (torch.linalg.det, torch.det, Tensor.det)),
        (_logdet, (torch.logdet, Tensor.logdet)),
        (_slogdet, (torch.linalg.slogdet, torch.slogdet, Tensor.slogdet)),
        (_solve, (torch.linalg.solve,)),
        (_solve_triangular, (torch.linalg.solve_triangular,)),
        (_cholesky, (torch.linalg.cholesky,)),
        (_cholesky_of_old, _CHOLESKY),
        (_cholesky_solve, (torch.cholesky_solve, Tensor.cholesky_solve)),
    )
    for original in originals
}
