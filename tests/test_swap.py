"""`replace` makes torch's layers in a model ours, and nothing else changes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import flexrnn

Same = Callable[..., Any]


class Tagger(nn.Module):
    """A model with layers at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(4, 5, 2, bidirectional=True, proj_size=2)})
        self.middle = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.blocks = nn.ModuleList([nn.GRU(5, 5, bias=False), nn.RNN(5, 5, nonlinearity="relu")])
        self.again = self.blocks[0]
        self.none = None
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.encoder["rnn"](x)[0])
        for block in (*self.blocks, self.again):
            x = block(x)[0]
        return x


def x_of(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_a_model_keeps_its_function_its_parameters_and_its_names(assert_same: Same) -> None:
    model = Tagger()
    theirs = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    assert flexrnn.replace(model) is model
    assert not any(isinstance(module, nn.RNNBase) for module in model.modules())
    assert type(model.encoder["rnn"]) is flexrnn.LSTM
    assert type(model.blocks[0]) is flexrnn.GRU
    assert type(model.blocks[1]) is flexrnn.RNN
    assert model.again is model.blocks[0]
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert list(dict(model.named_parameters())) == list(parameters)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert_same(model, theirs, x_of(6, 3, 4))


def test_the_root_itself_is_replaced() -> None:
    theirs = nn.GRU(4, 5, batch_first=True).double()
    ours = flexrnn.replace(theirs)
    assert type(ours) is flexrnn.GRU
    x = x_of(3, 6, 4)
    assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "theirs",
    [
        nn.LSTM(4, 6, 3, False, True, 0.25, True, 2),
        nn.GRU(4, 6, 3, False, True, 0.25, True),
        nn.RNN(4, 6, 3, "relu", False, True, 0.25, True),
        nn.RNN(4, 6),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_option_is_carried(theirs: nn.RNNBase, assert_same: Same) -> None:
    theirs = copy.deepcopy(theirs).double()
    ours: Any = flexrnn.replace(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)
    assert_same(ours, theirs, x_of(3, 7, 4))


def test_a_single_layer_with_dropout_is_replaced_without_a_second_warning() -> None:
    with pytest.warns(UserWarning, match="dropout option"):
        theirs = nn.LSTM(4, 5, dropout=0.5)
    assert type(flexrnn.replace(theirs)) is flexrnn.LSTM


def test_mode_dtype_and_frozen_parameters_are_kept() -> None:
    model = nn.ModuleList([nn.LSTM(4, 5).half().eval(), nn.LSTM(4, 5).requires_grad_(False)])
    model[1].weight_hh_l0.requires_grad_()
    flexrnn.replace(model)
    assert [layer.training for layer in model] == [False, True]
    assert {p.dtype for p in model[0].parameters()} == {torch.float16}
    wanted = [name for name, p in model[1].named_parameters() if p.requires_grad]
    assert wanted == ["weight_hh_l0"]


def test_an_optimizer_that_holds_the_parameters_stays_right() -> None:
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    flexrnn.replace(model)
    before = [p.detach().clone() for p in model.parameters()]
    model(x_of(6, 3, 4)).sum().backward()
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.grad is not None
        assert_close(new.detach(), old - 0.1 * new.grad, rtol=1e-12, atol=1e-12)


def test_two_layers_that_share_a_weight_share_it_afterwards() -> None:
    model = nn.ModuleList([nn.GRU(5, 5), nn.GRU(5, 5)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    flexrnn.replace(model)
    assert model[1].weight_hh_l0 is model[0].weight_hh_l0
    assert len(list(model.parameters())) == 7


def test_hooks_run_as_before() -> None:
    seen: dict[bool, list[str]] = {}
    x = x_of(6, 3, 4)
    for replaced in (False, True):
        model = nn.Sequential(nn.LSTM(4, 5).double())
        log = seen[replaced] = []
        layer: Any = model[0]
        layer.register_forward_pre_hook(lambda *_, log=log: log.append("before"))
        layer.register_forward_hook(lambda *_, log=log: log.append("after"))
        layer.register_forward_hook(lambda *_, log=log, **__: log.append("k"), with_kwargs=False)
        layer.register_state_dict_post_hook(lambda *_, log=log: log.append("saved"))
        layer.register_load_state_dict_post_hook(lambda *_, log=log: log.append("loaded"))
        layer.weight_hh_l0.register_hook(lambda _, log=log: log.append("weight"))
        if replaced:
            flexrnn.replace(model)
        model.load_state_dict(model.state_dict())
        model(x)[0].sum().backward()
    assert sorted(seen[True]) == sorted(seen[False])
    assert set(seen[True]) == {"before", "after", "k", "saved", "loaded", "weight"}


def test_a_full_backward_hook_stays_a_full_one() -> None:
    for replaced in (False, True):
        model = nn.Sequential(nn.GRU(4, 5).double())
        got: list[Any] = []
        model[0].register_full_backward_hook(lambda _, inputs, outs, got=got: got.append(inputs))
        if replaced:
            flexrnn.replace(model)
        x = x_of(6, 3, 4).requires_grad_()
        model(x)[0].sum().backward()
        (inputs,) = got
        assert_close(inputs[0], x.grad, rtol=1e-12, atol=1e-12)  # an old hook would get another


class MyLSTM(nn.LSTM):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inner = nn.GRU(4, 4)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(2 * self.inner(input)[0], hx)


def test_what_may_compute_something_else_is_left_with_a_warning() -> None:
    pruned = nn.LSTM(4, 5)
    prune.random_unstructured(pruned, "weight_hh_l0", amount=0.5)
    patched: Any = nn.LSTM(4, 5)
    patched.forward = lambda x: (x, None)
    buffered = nn.LSTM(4, 5)
    buffered.register_buffer("mask", torch.ones(1))
    model = nn.ModuleDict(
        {
            "subclass": MyLSTM(4, 5),
            "parametrized": parametrizations.weight_norm(nn.LSTM(4, 5), "weight_hh_l0"),
            "pruned": pruned,
            "patched": patched,
            "buffered": buffered,
        }
    )
    kept = dict(model.items())
    with pytest.warns(UserWarning, match="replace: left") as caught:
        flexrnn.replace(model)
    assert [str(w.message).split(" as it is")[0] for w in caught] == [
        f"replace: left {name}" for name in kept
    ]
    assert all(model[name] is module for name, module in kept.items())
    # What lies inside one that was left is still looked at.
    assert type(kept["subclass"].inner) is flexrnn.GRU


def test_a_root_that_is_left_is_returned_and_searched() -> None:
    model = MyLSTM(4, 5).double()
    theirs = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="replace: left the model as it is"):
        assert flexrnn.replace(model) is model
    assert type(model.inner) is flexrnn.GRU
    x = x_of(6, 3, 4)
    assert_close(model(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_a_model_without_recurrent_layers_is_untouched() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTMCell(4, 5), flexrnn.LSTM(3, 4))
    modules = list(model.modules())
    assert flexrnn.replace(model) is model
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


@pytest.mark.parametrize("model", [None, nn.LSTM, "model", [nn.LSTM(3, 4)]], ids=str)
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got "):
        flexrnn.replace(model)
