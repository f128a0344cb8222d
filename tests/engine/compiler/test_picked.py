"""What a mask picks, and the same mask puts: a choice, one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .written import halves


def of_units(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, k, mask = x @ c.W + h, torch.zeros_like(h), h > x @ c.W
    y[mask] = (h * 2)[mask]
    k[mask] = 2 * h[mask] / (1 + y[mask] ** 2)
    k[k < 0] *= 0.5
    return y * k + h


def nowhere_else(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Where nothing is picked it would be 1 / 0, or the logarithm of 0, and its derivative nan."""
    k, r = torch.zeros_like(h), (x @ c.W).relu()
    mask = r > 0
    k[mask] = c.one / r[mask] + r[mask].log() - torch.sqrt(r[mask]) ** 1.5
    k[mask] += h[mask] / (1 - torch.exp(-r[mask])) * 0.1
    return k.tanh() + h


def of_rows(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, z, mask = x @ c.W + h, halves(h).clone(), h[:, 0] > 0
    y[mask] = h[mask] * c.b + c.one - 2 * (x @ c.W)[mask].clamp(min=0)
    heads = z[..., 0] > 0.1
    z[heads] = F.relu(z[heads]) * c.heads + torch.add(z[heads], z[heads], alpha=2)
    return y * z.flatten(1)


def picked_before(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """What is picked is a copy: what is written to either does not change the other."""
    y, mask = x @ c.W + h, h > 0
    once = y[mask]
    again = once
    y.mul_(3)
    again *= 2
    y[mask] = once + torch.masked_select(h, mask).clone() + once.detach()
    return y


def without_gradients(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, mask = x @ c.W + h, h > 0
    with torch.no_grad():
        z = y.clone()
        z[mask] = h[mask] * 2
        z[mask] *= 3
        less = z[mask] * y[mask]
    y[mask] = less + y[mask]
    return y * z


def said_again(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """The same mask, made anew of the same values."""
    y = x @ c.W + h
    y[h > 0] = h[h > 0] * 2
    mask = h.abs() > 0.5
    y[~mask] = y[~mask] + h[~mask] ** 2
    y[(h > 0) & mask] /= 1 + h[(h > 0) & mask]
    y[y < x[:, :1]] = 0.1 * y[y < x[:, :1]]
    return y


def by_experts(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """Each row goes to an expert of its own, which sees no other, and is weighed."""
    weights = (h @ c.U).softmax(-1)
    chosen, y = weights.argmax(-1), x @ c.W
    for k, expert in enumerate((c.U, c.V, c.U.T)):
        mask = chosen == k
        inner = F.layer_norm(F.gelu(F.linear(h[mask], c.wide.T)), (8,)) @ c.wide.T
        y[mask] += weights[mask, k, None] * (F.linear(h[mask], expert, c.b) + inner.softmax(-1))
    return y


def by_modules(c: Any, x: Tensor, h: Tensor) -> Tensor:
    y, mask = torch.zeros_like(h), h[:, 0] > 0
    with torch.no_grad():
        again = F.linear(h[mask], c.V)
    y[mask] = F.silu(torch.matmul(h[mask], c.U)) + again
    y[~mask] = F.rms_norm(h[~mask], (4,), c.b, 1e-3) * h.sum(-1)[~mask].unsqueeze(-1)
    y[mask] += F.dropout(F.normalize(h[mask], dim=-1), 0.0)
    return y + x @ c.W


WRITTEN: dict[str, Callable[..., Tensor]] = {
    "of units": of_units,
    "nowhere else": nowhere_else,
    "of rows": of_rows,
    "said again": said_again,
    "picked before": picked_before,
    "without gradients": without_gradients,
    "rows by experts": by_experts,
    "rows by layers": by_modules,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def put(picks: Callable[..., Any]) -> Callable[..., Tensor]:
    """`y[m] = picks(z, h, y, m)`."""

    def step(c: Any, z: Tensor, h: Tensor) -> Tensor:
        y, mask = z.tanh(), h > 0
        y[mask] = picks(z, h, y, mask)
        return y + h

    return step


def rows(picks: Callable[..., Any]) -> Callable[..., Tensor]:
    return put(lambda z, h, y, mask: picks(y[h[:, 0] > 0]))


def mask_written(z: Tensor, h: Tensor, y: Tensor, mask: Tensor) -> Any:
    picked = h[mask]
    mask.logical_and_(z > 0)
    return picked


def values_written(z: Tensor, h: Tensor, y: Tensor, mask: Tensor) -> Any:
    picked = h[y > 0]
    y.mul_(-1)
    return picked + h[y > 0]


def switched(z: Tensor, h: Tensor, y: Tensor, mask: Tensor) -> Any:
    picked = h[mask]
    with torch.no_grad():
        picked *= 2
    return picked


def shared(z: Tensor, h: Tensor, y: Tensor, mask: Tensor) -> Any:
    picked = h[mask]
    other = picked.detach()
    picked *= 2
    return other


def asked(z: Tensor, h: Tensor, y: Tensor, mask: Tensor) -> Any:
    return y[mask] if torch.is_tensor(y[mask]) and y[mask].numel() else 0.0


UNKNOWN = "indexing by a mask cannot be compiled: .*how many it picks is not known"
REFUSED: dict[str, Callable[..., Any]] = {
    "a sum": put(lambda z, h, y, m: y[m].sum()),
    "a mean by a function": put(lambda z, h, y, m: torch.mean(y[m])),
    "a norm of all": put(lambda z, h, y, m: y[m] / y[m].norm()),
    "a softmax": put(lambda z, h, y, m: y[m].softmax(0)),
    "put elsewhere": put(lambda z, h, y, m: h[z > 0]),
    "two masks": put(lambda z, h, y, m: h[m] + h[z > 0]),
    "two masks by a function": put(lambda z, h, y, m: torch.add(h[z > 0], h[m])),
    "beside rows": rows(lambda picked: picked * torch.ones(2, 5, dtype=torch.float64)),
    "beside units": put(lambda z, h, y, m: y[m] * torch.ones(5, dtype=torch.float64)),
    "beside all": put(lambda z, h, y, m: y + y[m]),
    "joined": put(lambda z, h, y, m: torch.cat([y[m], y[m]])),
    "multiplied": put(lambda z, h, y, m: y[m] @ torch.eye(5, dtype=torch.float64)),
    "multiplied by rows": rows(lambda picked: picked @ picked),
    "an axis in front": rows(lambda picked: picked.unsqueeze(0)),
    "a layer of units": put(lambda z, h, y, m: F.linear(y[m], torch.eye(5, dtype=torch.float64))),
    "compared": put(lambda z, h, y, m: (y[m] > 0) * 1.0),
    "counted": put(lambda z, h, y, m: y[m].shape[0]),
    "counted by Python": put(lambda z, h, y, m: len(y[m])),
    "a branch": put(lambda z, h, y, m: 1.0 if y[m] else 2.0),
    "asked": put(asked),
    "in place": put(lambda z, h, y, m: y[m].tanh_()),
    "in place by a function": put(lambda z, h, y, m: F.relu(y[m], inplace=True)),
    "out": put(lambda z, h, y, m: torch.add(y[m], 1, out=y[m])),
    "a layer norm": put(lambda z, h, y, m: F.layer_norm(y[m], (5,))),
    "told": put(lambda z, h, y, m: float(f"{y[m]}")),
    "a mask that is written to": put(mask_written),
    "a mask of what is written to": put(values_written),
    "another number": put(lambda z, h, y, m: h[h > 0.5]),
    "gradients switched": put(switched),
    "memory that is shared": put(shared),
    "returned": lambda c, z, h: z[h > 0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_choice_is_refused(name: str, refuses: Callable[..., None]) -> None:
    refuses(REFUSED[name], UNKNOWN)
