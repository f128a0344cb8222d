"""Learned initial states: parameters behind all others, used where nothing else is given."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import Cell, FlexRNN
from flexrnn.fields import field_names

Make = Callable[..., FlexRNN]
T, B, I, H = 6, 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_they_come_behind_all_others_and_begin_as_zeros(make: Make) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    torch.manual_seed(3)
    layer = make(learn_initial_state=True, **options)
    torch.manual_seed(3)
    plain = make(**options)
    names, fields = (
        [n for n, _ in layer.named_parameters()],
        field_names(cast(Cell, layer.cells[0])),
    )
    count = len(list(plain.parameters()))
    assert names[:count] == [n for n, _ in plain.named_parameters()]
    places = ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    assert names[count:] == [f"initial_{f}{place}" for place in places for f in fields]
    assert not any(p.any() for p in list(layer.parameters())[count:])
    assert len(layer.all_weights[0]) == len(plain.all_weights[0])
    x = randn(T, B, I)
    assert_close(layer(x), plain(x), rtol=0, atol=0)


def test_they_are_used_without_a_state_and_not_with_one(make: Make, engine: str, hand: Any) -> None:
    layer, x = make(num_layers=2, learn_initial_state=True), randn(T, B, I)
    learned: list[Tensor] = [p for n, p in layer.named_parameters() if n.startswith("initial")]
    with torch.no_grad():
        for parameter in learned:
            parameter.normal_()
    count = len(learned) // 2
    hx = tuple(
        torch.stack(learned[k::count])[:, None].expand(-1, B, -1).contiguous().detach()
        for k in range(count)
    )
    output, _ = layer(x)
    assert_close(output, layer(x, hand.given(hx))[0], rtol=0, atol=0)
    gradients = torch.autograd.grad(output.sum(), learned, allow_unused=True)
    assert gradients[-1] is not None  # the article's peephole does not look at h
    unused = torch.autograd.grad(layer(x, hand.given(hx))[0].sum(), learned, allow_unused=True)
    assert all(g is None for g in unused)


@pytest.mark.parametrize("engine", ["reference", "cpu"], indirect=True)
def test_finite_differences_agree_also_through_resets(make: Make, engine: str) -> None:
    layer, x = make(num_layers=2, bidirectional=True, learn_initial_state=True), randn(3, 2, I)
    names = [n for n, _ in layer.named_parameters() if n.startswith("initial")]
    reset = torch.tensor([[0, 1], [1, 0], [1, 0]]).bool()

    def call(*learned: Tensor) -> Any:
        weights = dict(zip(names, learned, strict=True))
        return torch.func.functional_call(layer, weights, (x,), {"reset": reset})[0]

    inputs = tuple(randn(*layer.get_parameter(n).shape).requires_grad_() for n in names)
    assert torch.autograd.gradcheck(call, inputs)


def test_they_are_saved_copied_and_reset(make: Make) -> None:
    layer, x = make(learn_initial_state=True), randn(T, B, I)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    other = make(learn_initial_state=True)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert_close(twin(x), layer(x), rtol=0, atol=0)
    layer.reset_parameters()
    assert not any(p.any() for n, p in layer.named_parameters() if n.startswith("initial"))


def test_a_pickled_layer_keeps_them() -> None:
    layer, x = flexrnn.LSTM(I, H, learn_initial_state=True), torch.randn(T, B, I)
    nn.init.normal_(layer.get_parameter("initial_h_l0"))
    assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x), rtol=0, atol=0)


def test_packed_and_unbatched_input_and_autocast() -> None:
    layer, x = flexrnn.GRU(I, H, 2, bidirectional=True, learn_initial_state=True), torch.randn(T, I)
    for k in range(2):
        nn.init.normal_(layer.get_parameter(f"initial_h_l{k}"))
    packed = nn.utils.rnn.pack_sequence([x[:2], x], enforce_sorted=False)
    padded, _ = nn.utils.rnn.pad_packed_sequence(layer(packed)[0])
    assert_close(padded[:, 1], layer(x)[0])
    with torch.autocast("cpu"):
        assert layer(x)[1].dtype == torch.bfloat16


def test_they_begin_where_the_cell_says() -> None:
    class Ones(flexrnn.GRUCell):
        def initial_state(self, *args: Any, **kwargs: Any) -> Any:
            return self.State(super().initial_state(*args, **kwargs).h + 1)

    layer = FlexRNN(Ones, I, H, learn_initial_state=True, dtype=torch.float64)
    assert torch.equal(layer.get_parameter("initial_h_l0").detach(), torch.ones(H).double())


def test_a_name_that_is_taken_is_refused(refused: Any) -> None:
    class Own(flexrnn.GRUCell):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.initial_h = nn.Parameter(torch.zeros(1))

    message = "learn_initial_state: expected the name initial_h_l0 to be free, got a Own with ..."
    refused(lambda: FlexRNN(Own, I, H, learn_initial_state=True), ValueError, message)


@pytest.mark.parametrize("method", ["half", "double"])
def test_they_follow_the_layer_to_other_dtypes(method: str) -> None:
    layer = getattr(flexrnn.LSTM(I, H, learn_initial_state=True), method)()
    assert layer.initial_c_l0.dtype == layer.weight_ih_l0.dtype
