"""Gradients switched off inside a step: what is computed there, and what may be written to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves


def fresh(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Steps of a search, as code for proximal maps has them."""
    phi = x @ c.W + h
    with torch.no_grad():
        k = torch.zeros_like(phi)
        k[:, 0] = 2.0
        k.add_(phi)
        k *= c.one
        k[phi > 0.5] = 1.0
        k.clamp_(-1, 1)
        k.view(-1, 2, 2).mul_(halves(phi))
        torch.add(k, phi, out=k)
    return k * phi


def made_before(c: Any, x: Tensor, h: Tensor) -> Tensor:
    k = torch.zeros_like(h)
    part = k[:, :2]
    with torch.no_grad():
        k.add_(1)
        part.add_(h[:, 2:])
    return k * h + x @ c.W


def written_afterwards(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """What is written where gradients are on again has its derivative."""
    phi = x @ c.W + h
    with torch.no_grad():
        k = phi * 2
        k.add_(1)
    k[:, 1] = phi[:, 0]
    k.mul_(phi)
    return k


def given_back(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """It is the same tensor, and has the same derivative."""
    phi = x @ c.W + h
    with torch.no_grad():
        same = phi.to(phi.dtype)
        less = F.dropout(same, 0.5, False) * 2
        none = F.dropout(same, 0.5, False)
    return phi * same + less + none


def by_number(c: Any, x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        k = torch.zeros(h.shape[0], 4, dtype=h.dtype)
        k[torch.arange(h.shape[0]), h.argmax(1)] = 1.0
        k.scatter_(1, h.topk(2).indices, 2.0)
    return k * h + x @ c.W


def copies(c: Any, x: Tensor, h: Tensor) -> Tensor:
    phi = x @ c.W + h
    with torch.no_grad():
        k, w = phi.clone(), c.U.clone()
        torch.clamp_(k, -1, 1)
        w.fill_diagonal_(0.0)
        w /= w.norm()
    return phi * k + h @ w


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "a tensor of its own": fresh,
    "one that was made before": made_before,
    "written afterwards": written_afterwards,
    "given back": given_back,
    "by number": by_number,
    "copies": copies,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def with_a_derivative(c: Any, z: Tensor, h: Tensor) -> Tensor:
    k = torch.zeros_like(h)
    k[:, 1] = z[:, 0]
    with torch.no_grad():
        k.add_(1)
    return k * h


def with_one_made_inside(c: Any, z: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        k = torch.zeros_like(h)
        with torch.enable_grad():
            k[:, 0] = z[:, 0]
        k.mul_(2)
    return k + h


def a_part(c: Any, z: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        part = z[:, :2]
        part.add_(1)
    return z


def without_its_derivative(c: Any, z: Tensor, h: Tensor) -> Tensor:
    apart = z.detach()
    with torch.no_grad():
        apart.add_(1)
    return z


def an_activation(c: Any, z: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        F.relu(z, inplace=True)
    return z + h


def a_part_made_inside(c: Any, z: Tensor, h: Tensor) -> Tensor:
    k = torch.zeros_like(h)
    with torch.no_grad():
        part = k[:, :2]
    part.add_(z[:, :2])
    return k + z


def perhaps_a_copy(c: Any, z: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        same = z.contiguous()
    return same + h


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a value that has a derivative": (with_a_derivative, "add_ .* switched off, .*derivative"),
    "one that has it from inside": (with_one_made_inside, "mul_ .* switched off, .*derivative"),
    "a part": (a_part, "add_ .* where no derivative passes"),
    "without its derivative": (without_its_derivative, "add_ .* where no derivative passes"),
    "an activation": (an_activation, "relu .* switched off, .*derivative"),
    "a part made inside": (a_part_made_inside, "add_ .* where no derivative passes"),
    "perhaps a copy": (perhaps_a_copy, "contiguous .* it gives back what may have a derivative"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_write_that_would_cut_a_derivative_is_refused(
    name: str, refuses: Callable[..., None]
) -> None:
    refuses(*REFUSED[name])
