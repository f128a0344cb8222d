"""What a cell declares: state, widths, gates, torch's equivalent, and what `tap` is given."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flexrnn import FlexRNN, cells
from flexrnn.cells import HiddenState, LSTMState

I, H, B = 3, 5, 2
LSTMS = (
    cells.LSTMCell,
    cells.PeepholeLSTMCell,
    cells.ArticlePeepholeLSTMCell,
    cells.LayerNormLSTMCell,
    cells.NaiveLSTMCell,
)
ALL = (*LSTMS, cells.GRUCell, cells.RNNCell)


class Facts(NamedTuple):
    gates: tuple[str, ...]
    torch_equivalent: str | None
    parameters: dict[str, tuple[int, ...]]


TWO_BIASES = {
    "weight_ih": (4 * H, I),
    "weight_hh": (4 * H, H),
    "bias_ih": (4 * H,),
    "bias_hh": (4 * H,),
}
IFGO = ("i", "f", "g", "o")
FACTS = {
    cells.LSTMCell: Facts(IFGO, "lstm", TWO_BIASES),
    cells.PeepholeLSTMCell: Facts(IFGO, None, {**TWO_BIASES, "weight_ch": (3, H)}),
    cells.ArticlePeepholeLSTMCell: Facts(
        IFGO, None, {"weight_ih": (4 * H, I), "weight_ch": (4 * H, H), "bias_ih": (4 * H,)}
    ),
    cells.LayerNormLSTMCell: Facts(
        IFGO,
        None,
        {
            "weight_ih": (4 * H, I),
            "weight_hh": (4 * H, H),
            "bias": (4 * H,),
            "norm_ih.weight": (4 * H,),
            "norm_hh.weight": (4 * H,),
            "norm_c.weight": (H,),
            "norm_c.bias": (H,),
        },
    ),
    cells.NaiveLSTMCell: Facts(
        (),
        None,
        {f"{w}_{k}": s for k in "ifco" for w, s in (("U", (I, H)), ("V", (H, H)), ("b", (H,)))},
    ),
    cells.GRUCell: Facts(
        ("r", "z", "n"), "gru", {k: (3 * H, *s[1:]) for k, s in TWO_BIASES.items()}
    ),
    cells.RNNCell: Facts((), "rnn", {k: (H, *s[1:]) for k, s in TWO_BIASES.items()}),
}


def test_the_facts_cover_every_cell() -> None:
    exported = {getattr(cells, name) for name in cells.__all__ if name.endswith("Cell")}
    assert set(FACTS) == exported == set(ALL)


@pytest.mark.parametrize("cell", ALL)
def test_gates_and_torchs_equivalent_are_declared(cell: Any) -> None:
    assert (getattr(cell, "gates", ()), cell.torch_equivalent) == FACTS[cell][:2]


@pytest.mark.parametrize("cell", ALL)
def test_parameters_are_those_of_the_docstring(cell: Any) -> None:
    shapes = {name: tuple(p.shape) for name, p in cell(I, H).named_parameters()}
    assert shapes == FACTS[cell].parameters
    for name in (part.split(".")[0] for part in shapes):
        assert f"{name[0]}_k" in cell.__doc__ or name in cell.__doc__, name


@pytest.mark.parametrize("cell", ALL)
def test_without_bias_only_the_biases_are_missing(cell: Any) -> None:
    with_bias = [name for name, _ in cell(I, H).named_parameters()]
    expected = [n for n in with_bias if "bias" not in n and not n.startswith("b_")]
    assert [name for name, _ in cell(I, H, bias=False).named_parameters()] == expected
    assert cell(I, H, bias=False)(torch.randn(B, I)) is not None


@pytest.mark.parametrize("cell", ALL)
def test_state_fields_and_widths(cell: Any) -> None:
    assert cell.State is (LSTMState if cell in LSTMS else HiddenState)
    state = cell(I, H).initial_state((B,), torch.float64)
    assert state._asdict().keys() == ({"h", "c"} if cell in LSTMS else {"h"})
    for field in state:
        assert torch.equal(field, torch.zeros(B, H, dtype=torch.float64))


def test_a_projection_narrows_the_output_and_not_the_memory() -> None:
    cell = cells.LSTMCell(I, H, proj_size=2)
    assert cell.output_size == 2
    state = cell(torch.randn(B, I))
    assert (state.h.shape, state.c.shape) == ((B, 2), (B, H))
    assert cell.weight_hr is not None
    assert (cell.weight_hh.shape, cell.weight_hr.shape) == ((4 * H, 2), (2, H))


@pytest.mark.parametrize("cell", ALL)
def test_a_cell_draws_within_the_bound_of_torch_and_norms_start_at_one(cell: Any) -> None:
    for name, parameter in cell(I, 64).named_parameters():
        if name.startswith("norm"):
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        else:
            assert 0.8 / 8 < float(parameter.detach().abs().max()) <= 1 / 8


@pytest.mark.parametrize("cell", [cell for cell in ALL if cell is not cells.RNNCell])
def test_tap_is_given_the_gates_that_the_update_uses(cell: Any) -> None:
    """c = f∘c + i∘g of the five LSTMs and h = (1−z)∘n + z∘h of the GRU hold for what is tapped."""
    taps: dict[str, Tensor] = {}

    class Tapped(cell):
        def tap(self, **tensors: Tensor) -> None:
            taps.update(tensors)

    old = tuple(torch.randn(B, H, dtype=torch.float64) for _ in cell.State._fields)
    instance = Tapped(I, H, dtype=torch.float64)
    new = instance.step(torch.randn(B, I, dtype=torch.float64), cell.State(*old))
    assert set(taps) == set(getattr(cell, "gates", IFGO))
    if cell in LSTMS:
        expected, got = taps["f"] * old[1] + taps["i"] * taps["g"], new.c
    else:
        expected, got = (1 - taps["z"]) * taps["n"] + taps["z"] * old[0], new.h
    torch.testing.assert_close(got, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("cell", ALL)
def test_a_subclass_that_overrides_step_has_no_equivalent_in_torch(cell: Any) -> None:
    class Doubled(cell):
        def step(self, x: Tensor, state: Any) -> Any:
            return super().step(2 * x, state)

    class Renamed(cell):
        pass

    assert Doubled.torch_equivalent is None
    assert Renamed.torch_equivalent == cell.torch_equivalent


@pytest.mark.parametrize("cell", ALL)
def test_a_layer_takes_over_the_cells_draw(cell: Any) -> None:
    torch.manual_seed(3)
    one, two = cell(I, H), cell(H, H)
    torch.manual_seed(3)
    layer = FlexRNN(cell, I, H, num_layers=2)
    drawn = [*one.parameters(), *two.parameters()]
    for mine, theirs in zip(layer.parameters(), drawn, strict=True):
        assert torch.equal(mine, theirs)
        assert isinstance(mine, nn.Parameter)


@pytest.mark.parametrize(("nonlinearity", "shown"), [("tanh", ""), ("relu", ", nonlinearity=relu")])
def test_repr_is_torchs(nonlinearity: str, shown: str) -> None:
    theirs = nn.RNNCell(I, H, nonlinearity=nonlinearity)
    assert repr(cells.RNNCell(I, H, nonlinearity=nonlinearity)) == repr(theirs)
    assert shown in repr(theirs)


def test_an_unknown_nonlinearity_is_refused() -> None:
    with pytest.raises(ValueError, match="nonlinearity 'selu'"):
        cells.RNNCell(I, H, nonlinearity="selu")
