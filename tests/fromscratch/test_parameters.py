"""Parameters: names, shapes, order, initial range. A layer is saved, copied, printed."""

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch

from flexrnn.fromscratch import CustomLSTM, NaiveCustomLSTM

Layer = NaiveCustomLSTM | CustomLSTM


def test_naive_parameters() -> None:
    expected = [
        (f"{kind}_{gate}", shape)
        for gate in "ifco"
        for kind, shape in (("U", (3, 5)), ("V", (5, 5)), ("b", (5,)))
    ]
    layer = NaiveCustomLSTM(3, 5)
    assert [(name, tuple(p.shape)) for name, p in layer.named_parameters()] == expected


@pytest.mark.parametrize("peephole", [False, True])
def test_vectorised_parameters(peephole: bool) -> None:
    layer = CustomLSTM(3, 5, peephole=peephole)
    expected = [("W", (3, 20)), ("U", (5, 20)), ("bias", (20,))]
    assert [(name, tuple(p.shape)) for name, p in layer.named_parameters()] == expected


def test_parameters_are_all_there_is(make: Callable[[int, int], Layer]) -> None:
    layer = make(3, 5)
    assert list(layer.state_dict()) == [name for name, _ in layer.named_parameters()]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in layer.parameters())


def test_constructor_arguments_by_name_and_place() -> None:
    for layer in (
        NaiveCustomLSTM(3, 5),
        NaiveCustomLSTM(input_sz=3, hidden_sz=5),
        CustomLSTM(3, 5, True),
        CustomLSTM(hidden_sz=5, input_sz=3, peephole=True),
    ):
        assert (layer.input_sz, layer.hidden_sz) == (3, 5)
    assert CustomLSTM(3, 5).peephole is False
    assert CustomLSTM(3, 5, True).peephole is True


@pytest.mark.parametrize("H", [1, 4, 100])
def test_initial_range(make: Callable[[int, int], Layer], H: int) -> None:
    """U(−1/√H, 1/√H): within the bound, and each large tensor spread over all of it."""
    layer, bound = make(50, H), 1 / math.sqrt(H)
    for parameter in layer.parameters():
        values = parameter.detach()
        assert values.abs().max() <= bound
        if values.numel() >= 1000:
            # of n uniform draws the extremes lie about 2·bound/n from the ends
            assert values.min() < -0.98 * bound
            assert values.max() > 0.98 * bound
            torch.testing.assert_close(values.mean().item(), 0.0, rtol=0, atol=0.1 * bound)
            torch.testing.assert_close(values.std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)


def test_reset_parameters_draws_from_the_seed(make: Callable[[int, int], Layer]) -> None:
    torch.manual_seed(7)
    layer = make(3, 5)
    first = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert all(not torch.equal(layer.state_dict()[name], first[name]) for name in first)
    torch.manual_seed(7)
    layer.reset_parameters()
    assert all(torch.equal(layer.state_dict()[name], first[name]) for name in first)


def through_state_dict(layer: Layer, fresh: Layer) -> Layer:
    fresh.load_state_dict(layer.state_dict(), strict=True)
    return fresh


def through_deepcopy(layer: Layer, fresh: Layer) -> Layer:
    return copy.deepcopy(layer)


def through_pickle(layer: Layer, fresh: Layer) -> Layer:
    return pickle.loads(pickle.dumps(layer))


def through_torch_save(layer: Layer, fresh: Layer) -> Layer:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return fresh


@pytest.mark.parametrize(
    "through", [through_state_dict, through_deepcopy, through_pickle, through_torch_save]
)
def test_a_copy_is_the_same_layer_and_its_own(
    make: Callable[[int, int], Layer], through: Callable[[Layer, Layer], Layer]
) -> None:
    layer, x = make(3, 5), torch.randn(2, 7, 3)
    expected = layer(x)[0]
    twin = through(layer, make(3, 5))
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x)[0], expected)
    twin.reset_parameters()
    assert torch.equal(layer(x)[0], expected)


def test_repr_names_the_sizes() -> None:
    assert repr(NaiveCustomLSTM(3, 5)) == "NaiveCustomLSTM(3, 5)"
    assert repr(CustomLSTM(3, 5)) == "CustomLSTM(3, 5)"
    assert repr(CustomLSTM(3, 5, peephole=True)) == "CustomLSTM(3, 5, peephole=True)"
