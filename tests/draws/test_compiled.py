# pyright: reportPrivateUsage=false
# Caches of Dynamo have no public names.
"""Steps that draw, inside of `torch.compile` and `torch.export`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.testing import assert_close

import flexrnn
from flexrnn import bind

from ..graphs import compiled
from .noisy import DOUBLE, DRAWN, B, I, T, layer_of


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def seeded(layer: Any, x: Tensor) -> list[Tensor]:
    """The output from a seed, and gradients of the weights, if there are any."""
    torch.manual_seed(3)
    output = layer(x)[0]
    if not output.requires_grad:
        return [output]
    weights = torch.linspace(-1, 2, output.numel(), dtype=DOUBLE).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), [*layer.parameters()])]


@pytest.mark.parametrize("how", ["several", "multinomial"])
def test_one_node_has_the_numbers_of_a_plain_call(how: str) -> None:
    layer, x = layer_of(DRAWN[how]), torch.randn(T, B, I, dtype=DOUBLE)
    call, graphs = compiled(layer)
    assert_close(seeded(call, x), seeded(layer, x))
    more = torch.randn(T + 3, B + 2, I, dtype=DOUBLE)
    assert_close(seeded(call, more), seeded(layer, more))
    again = torch.randn(T + 1, B + 1, I, dtype=DOUBLE)
    assert_close(seeded(call, again), seeded(layer, again))
    assert graphs.scans == [1, 1]  # for one size, then for any


def test_a_change_of_what_is_drawn_is_noticed() -> None:
    layer, x = layer_of(DRAWN["nn.Dropout"]), torch.randn(T, B, I, dtype=DOUBLE)
    call, _ = compiled(layer)
    assert not torch.equal(call(x)[0], call(x)[0])
    with torch.no_grad():
        assert_close(seeded(call, x), seeded(layer, x))
    drop: Any = layer.cells[0].drop
    drop.p = 0.6
    assert_close(seeded(call, x), seeded(layer, x))
    layer.eval()
    assert_close(call(x)[0], layer(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["p", "dropped"])
@pytest.mark.parametrize("lists", [True, False], ids=["by a list", "by name"])
def test_an_attribute_that_comes_to_hide_the_classs_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str, lists: bool
) -> None:
    class Dropping(nn.Module):
        p = 0.2

        def dropped(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.p)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropped(x)

    if lists and not bind._LISTS:
        pytest.skip("Dynamo of this torch does not list attributes")
    monkeypatch.setattr(bind, "_LISTS", lists)

    layer = layer_of(lambda c, z, h: c.inside(z) + h.tanh())
    cell: Any = layer.cells[0]
    cell.inside = Dropping()
    x = torch.randn(T, B, I, dtype=DOUBLE)
    call, _ = compiled(layer)
    assert_close(seeded(call, x), seeded(layer, x))
    setattr(cell.inside, name, {"p": 0.6, "dropped": torch.sin}[name])
    assert_close(seeded(call, x), seeded(layer, x))


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
def test_what_nobody_can_draw_ahead_is_drawn_step_by_step() -> None:
    def shared(c: Any, z: Tensor, h: Tensor) -> Tensor:  # behind it, nothing is drawn ahead
        return c.drop(torch.tanh(z + h) + torch.randn(5, dtype=z.dtype))

    layer, x = layer_of(shared), torch.randn(T, B, I, dtype=DOUBLE)
    call, graphs = compiled(layer)
    assert_close(seeded(call, x), seeded(layer, x))
    assert graphs.scans == [0]


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    layer, x = layer_of(DRAWN["several"]), torch.randn(T, B, I, dtype=DOUBLE)
    sizes = ({0: torch.export.Dim("t", min=2), 1: torch.export.Dim("b", min=2)},)
    exported = torch.export.export(layer, (x,), strict=strict, dynamic_shapes=sizes).module()
    more = torch.randn(T + 3, B + 2, I, dtype=DOUBLE)
    for given in (x, more):
        assert_close(seeded(exported, given)[0], seeded(layer, given)[0])


def test_the_reference_draws_step_by_step() -> None:
    layer, x = layer_of(DRAWN["uniform_"]), torch.randn(T, B, I, dtype=DOUBLE)
    with torch.no_grad(), flexrnn.backend("reference"):
        call, _ = compiled(layer)
        assert_close(seeded(call, x), seeded(layer, x))
