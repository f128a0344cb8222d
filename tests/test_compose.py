"""What a layer adds to a step is a selection: what is not selected is not touched."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flexrnn import GRUCell, LSTMCell
from flexrnn.cells import HiddenState, LSTMState
from flexrnn.compose import CellStep

B, I, H = 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture
def cell() -> LSTMCell:
    return LSTMCell(I, H, dtype=torch.float64)


def state() -> LSTMState:
    return LSTMState(randn(B, H).requires_grad_(), randn(B, H).requires_grad_())


def test_without_lengths_it_is_the_cells_own_step(cell: LSTMCell) -> None:
    x, before = randn(B, I), state()
    after = CellStep(cell)((x,), before)
    assert isinstance(after, LSTMState)
    assert_close(after, cell.step(x, before), rtol=0, atol=0)


def test_a_row_behind_its_end_keeps_its_state_and_the_others_step(cell: LSTMCell) -> None:
    x, before = randn(B, I), state()
    valid = torch.tensor([True, False, True, False])[:, None]
    after = CellStep(cell, ragged=True)((x, valid), before)
    assert isinstance(after, LSTMState)
    stepped = cell.step(x, before)
    for new, there, old in zip(after, stepped, before, strict=True):
        assert_close(new[valid[:, 0]], there[valid[:, 0]], rtol=0, atol=0)
        assert torch.equal(new[~valid[:, 0]], old[~valid[:, 0]])


def test_rows_that_have_ended_may_hold_any_state(cell: LSTMCell) -> None:
    """Infinity in a held state is kept, and a row beside it is as if it were alone."""
    x = randn(B, I)
    valid = torch.tensor([True, False, True, True])[:, None]
    h, c = randn(B, H), randn(B, H)
    h[1], c[1] = torch.inf, -torch.inf
    after = CellStep(cell, ragged=True)((x, valid), LSTMState(h, c))
    assert torch.equal(after.h[1], h[1])
    assert torch.equal(after.c[1], c[1])
    alone = cell.step(x[2:3], LSTMState(h[2:3], c[2:3]))
    assert_close((after.h[2:3], after.c[2:3]), tuple(alone), rtol=1e-12, atol=1e-12)


def test_nothing_but_a_fitting_state_comes_out() -> None:
    class Wide(GRUCell):
        def step(self, x: Tensor, state: HiddenState) -> HiddenState:
            return HiddenState(torch.cat([state.h, state.h], -1))

    cell = Wide(I, H, dtype=torch.float64)
    before: Any = HiddenState(randn(B, H))
    for inputs in ((randn(B, I),), (randn(B, I), torch.ones(B, 1, dtype=torch.bool))):
        step = CellStep(cell, ragged=len(inputs) == 2)
        with pytest.raises(
            RuntimeError, match=r"^Wide.step: expected h to keep its shape \(4, 5\)"
        ):
            step(inputs, before)


def test_it_names_its_tensors_and_takes_others_in_their_place(cell: LSTMCell) -> None:
    step = CellStep(cell)
    tensors = dict(step.tensors)
    assert tensors.keys() == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert step.fields == ("h", "c")
    x, before = randn(B, I), state()
    halved = {name: tensor.detach() / 2 for name, tensor in tensors.items()}
    other = LSTMCell(I, H, dtype=torch.float64)
    other.load_state_dict(halved)
    result = step.pure((x,), tuple(before), halved)
    assert_close(result, tuple(other.step(x, before)), rtol=0, atol=0)
    assert all(cell.get_parameter(name) is tensor for name, tensor in tensors.items())


def test_its_key_tells_whatever_but_a_tensor_changes_the_computation(cell: LSTMCell) -> None:
    class Other(LSTMCell):
        pass

    same = LSTMCell(I, H, dtype=torch.float64)
    assert CellStep(cell).key() == CellStep(same).key()
    keys = {
        CellStep(cell).key(),
        CellStep(cell, ragged=True).key(),
        CellStep(LSTMCell(I, H, dtype=torch.float64).eval()).key(),
        CellStep(LSTMCell(I, H, bias=False, dtype=torch.float64)).key(),
        CellStep(LSTMCell(I, H, proj_size=2, dtype=torch.float64)).key(),
        CellStep(Other(I, H, dtype=torch.float64)).key(),
    }
    assert len(keys) == 6


def test_a_reset_behind_the_end_changes_nothing(cell: LSTMCell) -> None:
    """The state that is held is the one before the reset."""
    step = CellStep(cell, ragged=True, reset=True)
    own, initial = state(), (randn(B, H), randn(B, H))
    valid = torch.tensor([True, False, True, False])[:, None]
    reset = torch.tensor([True, True, False, False])[:, None]
    h, c, *handed_on = step((randn(B, I), valid, reset), (*own, *initial))
    assert torch.equal(h[~valid[:, 0]], own.h[~valid[:, 0]])
    assert torch.equal(c[~valid[:, 0]], own.c[~valid[:, 0]])
    assert all(a is b for a, b in zip(handed_on, initial, strict=True))


def test_fields_and_key_tell_the_features_apart(cell: LSTMCell) -> None:
    full = CellStep(cell, reset=True, masks=2)
    assert full.fields == ("h", "c", "initial.h", "initial.c", "mask.0", "mask.1")
    variants: list[dict[str, Any]] = [
        {}, {"ragged": True}, {"reset": True}, {"masks": 1}, {"masks": 2},
        {"zoned": (True, False)}, {"zoned": (True, True)}, {"expected": (0.1, 0.0)},
        {"expected": (0.2, 0.0)},
    ]  # fmt: skip
    assert len({CellStep(cell, **options).key() for options in variants}) == len(variants)
