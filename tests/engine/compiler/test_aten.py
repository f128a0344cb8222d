"""What a person may write in a step beside elementwise operations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn import cells

from .written import Cell, halves


def written_slice(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = x @ c.W
    z[:, 1:3] = h[:, :2]
    z[:, 0] = 0.5
    z[..., 3] *= 2
    z[:, 1:2].sigmoid_()
    return z


def written_mask(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z = x @ c.W + h
    z[z > 0] = 0.25
    return z.masked_fill_(h < 0, -0.5)


def written_all(c: Any, x: Tensor, h: Tensor) -> Tensor:
    z, y = x @ c.W, torch.empty_like(h)
    y.copy_(z)
    y.zero_().add_(h)
    z.fill_(0.5)
    return y * z + x @ c.W


def masked_rows(c: Any, x: Tensor, h: Tensor) -> Tensor:
    """One query has nothing to look at, as a mask that is added says it."""
    q, k, none = halves(h), halves(x @ c.W), torch.zeros_like(h[:, None, :2])
    added = none.masked_fill(h[:, None, :2] < 0, -math.inf)
    y = F.scaled_dot_product_attention(q, k, k, added)
    return (y + F.scaled_dot_product_attention(q, k, q, is_causal=True)).flatten(1)


def without_gradients(c: Any, x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = 1 + (h * c.b).abs().amax(-1, keepdim=True)
        with torch.enable_grad():
            z = x @ c.W * h
    return z / scale + h.tanh()


def matrices(c: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A vector for each of two heads, and a matrix: its outer product with another, by `@`."""
    k, v = halves(x @ c.W), halves(h)
    return k, k[..., None] @ v[..., None, :]


def read_matrices(c: Any, x: Tensor, h: Tensor) -> Tensor:
    k, m = matrices(c, x, h)
    return ((m @ k[..., None])[..., 0] + (k[..., None, :] @ m)[..., 0, :]).flatten(1)


def squared_matrices(c: Any, x: Tensor, h: Tensor) -> Tensor:
    k, m = matrices(c, x, h)
    return (m @ (m.mT + k[..., None])).sum(-1).flatten(1)


def aside(c: Any, x: Tensor, h: Tensor) -> Tensor:
    e = (x @ c.W - h).detach()
    return h + e * 3.0 + e @ c.U


def numbers_multiplied(c: Any, x: Tensor, h: Tensor) -> Tensor:
    u = torch.zeros_like(h)
    u[:, :2] = 0.5
    return x @ c.W + h + u @ c.U + torch.zeros_like(h)[:, :2] @ c.high + torch.ones_like(h) @ c.V


def matrices_by_einsum(c: Any, x: Tensor, h: Tensor) -> Tensor:
    k, m = matrices(c, x, h)
    one = torch.einsum("bhij,bhj->bhi", m, k) + torch.einsum("bhij, bhi -> bjh", [m, k]).mT
    two = (
        torch.einsum("bhij,bhjk->bhk", m, m) + torch.einsum("bhij,bhi,bhj->bh", m, k, k)[..., None]
    )
    return (one + two).flatten(1)


def gated(gates: Any, x: Tensor) -> Tensor:
    i, g = gates
    return i.sigmoid() * g.tanh() + x.sum(-1, keepdim=True)


WRITTEN: dict[str, Callable[..., Any]] = {
    # products and weights
    "weight normalised": lambda c, x, h: x @ c.W @ (c.V / c.V.norm(dim=0)) + h,
    "weight normalised by rows": lambda c, x, h: x @ c.W @ F.normalize(c.V, dim=1) + h,
    "weight normalised as a whole": lambda c, x, h: x @ c.W + h @ (c.V / c.V.norm()),
    "sum of a weight": lambda c, x, h: x @ c.W * c.V.sum() + h * c.V.mean(),
    "largest of a weight": lambda c, x, h: x @ c.W * c.V.max() + h * (c.U.min() + c.V.amax()),
    "number as a parameter": lambda c, x, h: x @ c.W * c.one.exp() + h * c.one,
    "row as a parameter": lambda c, x, h: x @ c.W * c.row + h,
    "low rank": lambda c, x, h: x @ c.W + h @ (c.low @ c.high),
    "low rank, the other way": lambda c, x, h: x @ c.W + (h @ c.low) @ c.high,
    "weight of weights": lambda c, x, h: x @ c.W + h @ torch.tanh(c.U * c.V + c.row),
    "product with a vector": lambda c, x, h: x @ c.W + h * (h @ c.b).unsqueeze(-1),
    "linear without bias": lambda c, x, h: F.linear(h, c.U) + x @ c.W,
    "addmm": lambda c, x, h: torch.addmm(c.b, h, c.U, beta=0.5, alpha=2) + x @ c.W,
    "einsum": lambda c, x, h: torch.einsum("bi,ji->bj", h, c.U) + x @ c.W,
    "transposed": lambda c, x, h: h @ c.U.T + h @ c.V.mT + x @ c.W,
    "concatenation": lambda c, x, h: torch.cat([h, x @ c.W], -1) @ c.wide.T,
    "inner product of rows": lambda c, x, h: x @ c.W * (h * h).sum(-1, keepdim=True),
    # constants
    "a column of a parameter": lambda c, x, h: x @ c.W + h * c.U[:, 1] + c.U.T[2] * c.wide[:, 5],
    "columns of a parameter": lambda c, x, h: (
        x @ c.W + h * c.wide[:, 2:3].reshape(4) * c.low.mT.reshape(8)[2:6]),
    "a part of a parameter as another": lambda c, x, h: (
        x @ c.W + h * c.wide[1:3, ::4].flatten() + h * c.wide[2:3, 1:5].reshape(4)),
    "a parameter stretched and reshaped": lambda c, x, h: (
        x @ c.W + h * c.low[:2, :1].expand(2, 2).reshape(4)
        + h * c.b[:2].detach().expand(2, 2).reshape(-1)),
    "parts of heads without their derivative": lambda c, x, h: (
        x @ c.W + h + halves(h)[..., 1:].detach().reshape(-1, 2).repeat(1, 2)
        + halves(h)[:, :1].expand(-1, 2, 2).detach().flatten(1)),
    "a value without its derivative, beside a product of it": aside,
    "attention without its derivative, beside a product of it": lambda c, x, h: (
        x @ c.W + h.softmax(-1).detach() * h
        + h.softmax(-1).detach() @ c.U),
    "a stretched unit multiplied": lambda c, x, h: (
        h + (x @ c.W)[:, :1].expand(-1, 4)[:, :2] @ c.high
        + h[:, :1].expand(-1, 4).detach() @ c.U
        + h.mean(1, keepdim=True).expand_as(h).chunk(2, 1)[1] @ c.high
        + c.one.expand_as(h)[:, :2] @ c.high),
    "numbers multiplied": numbers_multiplied,
    "a part of a choice that is none": lambda c, x, h: (
        x @ c.W * torch.where(h > 0, h, h)[:, :1] + torch.where(h > 0, h @ c.U, h @ c.U)[:, 1:2]),
    "ones and zeros of float32": lambda c, x, h: (
        x @ c.W * torch.ones(h.shape[0], 4) + torch.full((h.shape[0], 1), 0.5) * h
        + torch.cat([h, torch.zeros(h.size(0), 2)], 1)[:, 2:]
        + torch.zeros(h.size(0), 4).type_as(h)),
    "new tensors": lambda c, x, h: x @ c.W * h.new_ones(4) + h.new_full((1,), 2.0) * h,
    "zeros of the batch": lambda c, x, h: x @ c.W + h + h.new_zeros(x.shape[0], 4),
    "a tensor of a number": lambda c, x, h: x @ c.W + h * torch.tensor(0.1, dtype=h.dtype),
    "minus zero": lambda c, x, h: (
        (1 / torch.full_like(h, -0.0)).clamp(min=-1) + (1 / h.new_zeros(4)).clamp(max=2) + x @ c.W
    ),
    # truth values
    "a mask as a buffer": lambda c, x, h: torch.where(c.mask, x @ c.W, h) + h * c.mask,
    "a mask as numbers": lambda c, x, h: h * (h > 0).to(h.dtype) + x @ c.W,
    "truth values added": lambda c, x, h: h * ((h > 0) + (h < -1)) + x @ c.W,
    "truth values multiplied": lambda c, x, h: h * ((h > 0) * (h < 1)) + x @ c.W,
    "logic of numbers": lambda c, x, h: h * torch.logical_and(h.relu(), h > -1) + x @ c.W,
    "exclusive or": lambda c, x, h: h * torch.logical_xor(h > 0, h > 0.5) + x @ c.W,
    "where, as a method": lambda c, x, h: h.where(h > 0, 0.5) + x @ c.W,
    "masked_fill": lambda c, x, h: h.masked_fill(h > 0, 0.3) + x @ c.W,
    "ones of another dtype": lambda c, x, h: (
        torch.cat([h[:, :3], (h[:, 3:] > 0).double()], 1) * torch.ones(4) + x @ c.W
    ),
    "numbers of no dtype": lambda c, x, h: (
        h * torch.where(h > 0, 1.0, -1.0) + (h > 0.5).float() * h
        + h * torch.where(h > 0, (h > 1).float(), 0.1) + x @ c.W
    ),
    "a spike, straight through": lambda c, x, h: (
        (h > 0).float().detach()[:, :4] - (5 * h).sigmoid().detach() + (5 * h).sigmoid() + x @ c.W
    ),
    "any and all": lambda c, x, h: (
        h * (h > 0).any(-1, keepdim=True) - h * (h > 0).all(1)[:, None] + x @ c.W
        + halves(h > 1).any(1).repeat(1, 2) * h.relu().all(-1, keepdim=True)
    ),
    # elementwise, spelt by others
    "celu": lambda c, x, h: F.celu(h * 3, 2.0) + x @ c.W,
    "prelu": lambda c, x, h: F.prelu(h, c.b) + x @ c.W,
    "softplus with beta": lambda c, x, h: F.softplus(h, beta=2) + x @ c.W,
    "softplus far out": lambda c, x, h: F.softplus((h + x @ c.W) * 30) / 30,
    "threshold": lambda c, x, h: F.threshold(h, 0.1, 2.0) + x @ c.W,
    "shrinks": lambda c, x, h: (
        F.hardshrink(h) + F.softshrink(h, 0.2) + F.tanhshrink(h) + x @ c.W
    ),
    "addcdiv": lambda c, x, h: torch.addcdiv(x @ c.W, h, h * h + 1, value=0.5),
    "logit": lambda c, x, h: torch.logit(h.sigmoid(), 1e-3) + x @ c.W,
    "base 2": lambda c, x, h: 2**h + x @ c.W,
    "power of zero": lambda c, x, h: h.relu() ** c.b.abs() + (h * 0) ** 0 + x @ c.W,
    "xlogy": lambda c, x, h: (
        torch.xlogy(h.relu(), h) + torch.special.xlogy(h, c.b.abs()) + torch.xlogy(2, h.exp())
        + x @ c.W
    ),
    "xlog1py": lambda c, x, h: (
        torch.special.xlog1py(h.relu(), h) + torch.special.xlog1py(h, c.b.abs() / 2**30)
        + torch.special.xlog1py(2, h.exp()) + torch.special.xlog1py(h, 0.5)
        + torch.special.xlog1py(h - h.detach(), -1 - h.exp()) + x @ c.W
    ),
    "softplus with a threshold": lambda c, x, h: (
        F.softplus(h + torch.where(h > 0.5, math.inf, 0.0).to(h.dtype), 1, 0.5).clamp(max=2)
        + F.softplus(h, 2, 0.3) + F.softplus(40 * h, threshold=30) + x @ c.W
    ),
    "fmax and fmin": lambda c, x, h: (
        torch.fmax(h, x @ c.W) + torch.fmin(h.log(), h) + torch.fmin(h.relu(), c.b * 0)
    ),
    "copysign": lambda c, x, h: (
        torch.copysign(h, x @ c.W) + torch.copysign(x @ c.W, -h.relu()) + h.copysign(-2.0)
    ),
    "xlogy at zero": lambda c, x, h: (
        torch.xlogy(h - h.detach(), c.b.exp()) + torch.xlogy(h - h.detach(), -h.exp()) + x @ c.W
    ),
    "signs and angles": lambda c, x, h: (
        h * torch.signbit(h) + torch.signbit(-h.relu()) * h + h.sgn() * h + torch.rad2deg(h) / 50
        + torch.deg2rad(h) + torch.logaddexp2(h, x @ c.W)
    ),
    "which are close": lambda c, x, h: (
        h * torch.isclose(h, h.relu()) + h * h.isclose(x @ c.W, atol=0.3) + x @ c.W
        + h * torch.isclose(h.log(), h.log()) - h * h.log().isclose(h.log(), equal_nan=True)
        + h * torch.isclose(h.relu().log(), h.relu().log()) + h * torch.isinf(h.relu().log())
    ),
    "addmv and addr": lambda c, x, h: (
        h * torch.addmv(h[:, 0], h, c.b)[:, None] + torch.addr(x @ c.W, h[:, 0], c.b, beta=0.5)
    ),
    "sinc": lambda c, x, h: torch.sinc(h) + torch.sinc(h.relu()) * h + x @ c.W,
    "even power": lambda c, x, h: h**4 + x @ c.W,
    "division rounded": lambda c, x, h: (
        h + torch.div(h, 0.1, rounding_mode="floor") + torch.div(h, 0.3, rounding_mode="trunc")
    ),
    "xlogy of nothing": lambda c, x, h: torch.xlogy(h.relu(), h.abs() + 1) + x @ c.W,
    "bounds that cross, at one": lambda c, x, h: (
        torch.where(h > 0, h, -0.5).clamp(0.5, -0.5) * h + x @ c.W),
    "cosine along a stretched axis": lambda c, x, h: (
        F.cosine_similarity(h, c.single, dim=-1).unsqueeze(-1) + x @ c.W
        + F.cosine_similarity(x.unsqueeze(-1), h.unsqueeze(1), dim=1)),
    "a number in a row on the left of a product": lambda c, x, h: (
        torch.cat([h[:, :1], torch.full((h.shape[0],), 0.5, dtype=h.dtype)[:, None], h[:, 2:]], 1)
        @ c.U + torch.full((h.shape[0],), 0.5, dtype=h.dtype).unsqueeze(1) @ c.row + x @ c.W),
    "a row times columns": lambda c, x, h: (c.b @ h.T).unsqueeze(1) + x @ c.W,
    "celu far away": lambda c, x, h: F.celu(h * 1e4, 2.0) + F.celu(h * 1e4) + x @ c.W,
    "bounds that meet": lambda c, x, h: h.clamp(-c.b.relu(), c.b.relu()) * h + x @ c.W,
    "bounds that meet for some": lambda c, x, h: x @ c.W + torch.clamp(h, -h.relu(), h.relu()),
    "bounds that cross": lambda c, x, h: h.clamp(0.5, -0.5) + x @ c.W,
    "nan_to_num": lambda c, x, h: torch.nan_to_num(h.log(), 0.5, 1.0, -1.0) + x @ c.W,
    # gradients
    "detach": lambda c, x, h: h.detach() * h + (x @ c.W).detach() * c.b,
    "data": lambda c, x, h: h.data * h + (x @ c.W).data * c.b.data + x @ c.W,
    "straight through": lambda c, x, h: (h.sign() - h).detach() + h + x @ c.W,
    # writes to tensors of the step's own
    "a written slice": written_slice,
    "a written mask": written_mask,
    "a tensor written over": written_all,
    # products of rows, and axes that move
    "attention by bmm": lambda c, x, h: torch.bmm(
        torch.bmm(halves(x @ c.W), halves(h).transpose(1, 2)).softmax(-1), halves(h)
    ).flatten(1),
    "attention by torch": lambda c, x, h: F.scaled_dot_product_attention(
        halves(x @ c.W), halves(h), halves(h), c.mask[1:3]
    ).flatten(1) + F.scaled_dot_product_attention(
        halves(h), halves(x @ c.W), halves(h), c.U[:2, :2], scale=0.3
    ).flatten(1) + F.scaled_dot_product_attention(
        halves(h), halves(h), halves(x @ c.W), ~c.mask[2:]
    ).flatten(1),
    "attention to nothing": masked_rows,
    "attention among parameters": lambda c, x, h: h * F.scaled_dot_product_attention(
        c.U, c.V, c.U, torch.where(c.mask[:, None], 0.0, -math.inf).to(h.dtype).expand(4, 4)
    )[1] + x @ c.W,
    "attention by heads": lambda c, x, h: F.scaled_dot_product_attention(
        (x @ c.W).view(-1, 2, 1, 2), (h @ c.wide).view(-1, 2, 2, 2), (h @ c.wide).view(-1, 2, 2, 2)
    ).flatten(1),
    "attention by einsum": lambda c, x, h: torch.einsum(
        "bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", halves(x @ c.W), halves(h)), halves(h)
    ).flatten(1),
    "matrices of heads": read_matrices,
    "products of matrices of heads": squared_matrices,
    "matrices of heads by einsum": matrices_by_einsum,
    "inner product by einsum": lambda c, x, h: (
        torch.einsum("bh,bh->b", h, x @ c.W)[:, None] * h
    ),
    "outer product by einsum": lambda c, x, h: (
        torch.einsum("bi,bj->bij", h[:, :2], (x @ c.W)[:, 2:]).flatten(1)
    ),
    "gates first": lambda c, x, h: gated(torch.einsum("ghi,bi->gbh", c.wide.view(2, 4, 4), h), x),
    "gates second": lambda c, x, h: gated(
        torch.einsum("bi,ghi->bgh", h, c.wide.view(2, 4, 4)).unbind(1), x
    ),
    "columns": lambda c, x, h: (c.U @ h.mT).mT + (c.V.T @ h.T * 2).T + x @ c.W,
    "columns by t": lambda c, x, h: (c.U.t() @ h.t()).t() + x @ c.W + c.b.t(),
    # gradients switched off
    "no_grad": without_gradients,
    # written by others than the table
    "a column": lambda c, x, h: (c.U @ h.unsqueeze(-1)).squeeze(-1) + x @ c.W,
    "a linear layer by heads": lambda c, x, h: (
        F.linear(halves(h), c.U[:2, :2], c.b[:2]).flatten(1) + x @ c.W
    ),
    "one weight for all heads": lambda c, x, h: (halves(h) @ c.U[:2, :2]).flatten(1) + x @ c.W,
    "bilinear": lambda c, x, h: (
        F.bilinear(x, h, c.U.view(4, 1, 4).expand(4, 3, 4), c.b)
        + torch.bilinear(h, x @ c.W, c.wide.view(2, 4, 4)).repeat(1, 2)
    ),
    "baddbmm": lambda c, x, h: (
        torch.baddbmm(c.low[:2, None], halves(h).transpose(0, 1), c.U.view(4, 2, 2)[:2])
        .transpose(0, 1).flatten(1) + x @ c.W
    ),
    "pad": lambda c, x, h: F.pad(h[:, 1:], (1, 0)) + F.pad(h, (-1, 1), value=0.5) + x @ c.W,
    "pad before the last axis": lambda c, x, h: (
        F.pad(halves(h), (0, 0, 1, -1)).flatten(1) + x @ c.W
    ),
    "a lerp that stretches": lambda c, x, h: (
        torch.lerp(h, x @ c.W, c.b.sigmoid()) + c.b.lerp(h, h[:, :1].sigmoid())
        + h.lerp(end=c.b, weight=0.3)
    ),
    "a stretched part of a parameter that is computed": lambda c, x, h: (
        torch.cat([h[:, :2], (c.b * 2 + 1)[:2].expand(h.shape[0], 2)], 1) + x @ c.W
    ),
    # values that nobody needs
    "an argmax for nobody": lambda c, x, h: (h.argmax(-1), h.sort(0), h + x @ c.W)[2],
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_person_writes_is_the_reference(name: str, judge: Callable[..., None]) -> None:
    judge(WRITTEN[name])


def test_nothing_beside_the_state_is_nothing(judge: Callable[..., None]) -> None:
    judge(lambda c, x, h: torch.cat([h, h @ c.U[:, :0]], 1) + x @ c.W)


def test_a_sum_of_nothing_is_left_to_the_reference() -> None:
    layer = flexrnn.FlexRNN(
        Cell, 3, 4, function=lambda c, x, h: (h @ c.U[:, :0]).sum(1, True) + x @ c.W + h
    )
    x = torch.randn(2, 3, 3)
    with pytest.warns(flexrnn.FallbackWarning, match="a number in a row"):
        output, _ = layer(x)
    with flexrnn.backend("reference"):
        torch.testing.assert_close(output, layer(x)[0])


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(7, 4),
        nn.Sequential(nn.Linear(7, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 4), nn.Dropout(0)),
        nn.Sequential(nn.Linear(7, 4), nn.RMSNorm(4), nn.PReLU(), nn.Hardtanh()),
        nn.Sequential(nn.Linear(7, 4), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Softmax(-1)),
        nn.Sequential(nn.Linear(7, 4), nn.Dropout(0.5).eval(), nn.CELU(0.5), nn.Identity()),
    ],
    ids=["linear", "sequential", "rms", "group", "eval"],
)
def test_a_module_inside_a_cell_is_the_reference(
    module: nn.Module, same_by_program: Callable[..., None]
) -> None:
    class Inside(flexrnn.Cell):
        State = cells.HiddenState

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)
            self.inner = module.to(dtype)

        def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
            return cells.HiddenState(self.inner(torch.cat([x, state.h], -1)))

    layer = flexrnn.FlexRNN(Inside, 3, 4, dtype=torch.float64)
    same_by_program(layer, torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("torchs", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_torchs_cells_inside_a_cell_are_two_products(
    torchs: Any, same_by_program: Callable[..., None]
) -> None:
    lstm = torchs is nn.LSTMCell

    class Inside(flexrnn.Cell):
        State = cells.LSTMState if lstm else cells.HiddenState

        def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
            super().__init__(input_size, hidden_size)
            self.inner = torchs(input_size, hidden_size, bias, device=device, dtype=dtype)

        def step(self, x: Tensor, state: Any) -> Any:
            new = self.inner(x, tuple(state) if lstm else state.h)
            return self.State(*new) if lstm else self.State(new)

    layer = flexrnn.FlexRNN(Inside, 3, 4, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    graph, plan = program
    assert [graph.nodes[i].op for i in plan.hoisted].count("product") == 1
    assert [graph.nodes[i].op for i in plan.loop].count("product") == 1
    same_by_program(layer, x)
