"""What is found to be drawn ahead, and what a step is left to draw itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.signs import may_draw

from .noisy import DOUBLE, B, H, I, Noisy, T, assert_the_same_anew, layer_of


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
def test_what_nobody_can_draw_ahead_runs_by_the_reference() -> None:
    def shared(c: Any, z: Tensor, h: Tensor) -> Tensor:  # one noise for all rows
        return torch.tanh(z + torch.randn(5, dtype=z.dtype) * c.drop(h))

    layer, x = layer_of(shared), torch.randn(T, B, I, dtype=DOUBLE)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="it draws random numbers, at"):
        layer(x)
    assert_the_same_anew(layer)


def drawn_inside_a_checkpoint(c: Any, z: Tensor, h: Tensor) -> Tensor:
    noisy: Any = checkpoint(lambda z: z * torch.randn_like(z), z, use_reentrant=False)
    return torch.tanh(noisy + z)


def now_and_then(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return c.drop(z) if h.detach().any() else z.tanh()


def where_gradients_are(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return z.tanh() * torch.rand_like(z) if torch.is_grad_enabled() else z


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize(
    "how",
    [
        *(
            lambda c, z, h, n=n: torch.tanh(z + torch.randn(n, dtype=z.dtype).sum() * c.drop(h))
            for n in (7, 11, 14, 77)
        ),
        drawn_inside_a_checkpoint,
        now_and_then,
        where_gradients_are,
        lambda c, z, h: torch.poisson(z.exp().detach()) + z.tanh(),
    ],
)
def test_what_the_step_draws_itself_is_the_same_when_it_is_computed_anew(how: Any) -> None:
    assert_the_same_anew(layer_of(how))


def test_a_step_that_draws_now_and_then_is_the_references() -> None:
    def sometimes(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return c.drop(z) if not h.detach().any() else z.tanh() + torch.rand_like(h)

    layer, x = layer_of(sometimes), torch.randn(T, B, I, dtype=DOUBLE)
    with pytest.warns(flexrnn.FallbackWarning, match="takes a number out of a tensor"):
        assert layer(x)[0].isfinite().all()


def test_rows_of_a_vmap_inside_a_step_differ() -> None:
    def several(c: Any, z: Tensor, h: Tensor) -> Tensor:
        ones = torch.ones(20, *z.shape, dtype=z.dtype)
        many = torch.func.vmap(lambda v: F.dropout(v, 0.5), randomness="different")(ones)
        assert 0 < many.mean() < 2
        return z.tanh() + many.std(0)

    with flexrnn.backend("reference"):
        assert layer_of(several)(torch.zeros(T, B, I, dtype=DOUBLE))[1].min() > 0


def test_a_seed_inside_a_step_counts() -> None:
    masks = []

    def one_mask(c: Any, z: Tensor, h: Tensor) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            masks.append(torch.rand_like(z))
        return z * masks[-1]

    with flexrnn.backend("reference"):
        layer_of(one_mask)(torch.randn(T, B, I, dtype=DOUBLE))
    assert torch.equal(masks[-1], masks[-2])


class Delayed(flexrnn.Cell):
    """Keeps things outside of the state, as only the reference lets it."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, **_):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.line: Any = [None]
        self.count = [0]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.inner.weight, -0.1, 0.1)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(x)
        before = z if self.line[0] is None else self.line[0]
        self.line[0] = z
        self.count[0] += 1
        return HiddenState(state.h + before)


def test_a_step_that_draws_nothing_is_not_run_to_find_that_out() -> None:
    layer = flexrnn.FlexRNN(Delayed, I, H, backend="reference")
    layer(torch.randn(T, B, I))
    cell: Any = layer.cells[0]
    assert cell.count == [T]


@pytest.mark.parametrize(
    ("draws", "how"),
    [
        (True, lambda c, z, h: torch.distributions.Normal(z, 1).rsample()),
        (True, lambda c, z, h: sum(F.dropout(row) for row in (z, h))),
        (False, lambda c, z, h: z.tanh() + h.sigmoid()),
    ],
)
def test_names_in_the_code_of_a_cell_are_signs(draws: bool, how: Any) -> None:
    cell = Delayed(I, H)
    assert not may_draw(cell)
    cell.__dict__["how"] = how
    assert may_draw(cell) == draws
    cell.__dict__["how"] = [{"inside": lambda z: how(None, z, z)}]
    assert may_draw(cell) == draws


def test_widths_of_parameters_are_seen() -> None:
    def as_wide(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return z.tanh() + torch.rand(z.size(0), c.inner.weight.shape[1], dtype=z.dtype).sum(1, True)

    for width in (I, 2 * I):
        layer = flexrnn.FlexRNN(Noisy, width, H, how=as_wide, dtype=DOUBLE, backend="interpreter")
        layer(torch.randn(T, B, width, dtype=DOUBLE))


def test_a_generator_of_ones_own_is_not_taken_from_anybody() -> None:
    own = torch.Generator().manual_seed(0)

    def drawn(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return z.tanh() + torch.randn(z.shape, generator=own, dtype=z.dtype)

    with flexrnn.backend("reference"):
        outputs = [layer_of(drawn)(torch.zeros(T, B, I, dtype=DOUBLE))[0] for _ in range(2)]
    assert not torch.equal(outputs[0][0], outputs[0][1])
