"""Carrying weights between the naive LSTM, the vectorised one and `torch.nn.LSTM`."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexrnn.fromscratch import (
    CustomLSTM,
    NaiveCustomLSTM,
    from_torch,
    to_naive,
    to_torch,
    to_vectorized,
)

I, H = 3, 5


def make_torch() -> nn.LSTM:
    return nn.LSTM(I, H, batch_first=True)


# Every edge of the triangle: where it starts, the function that carries, where it ends.
CARRIES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module], type[nn.Module]]] = {
    "naive to torch": (lambda: NaiveCustomLSTM(I, H), to_torch, nn.LSTM),
    "vectorised to torch": (lambda: CustomLSTM(I, H), to_torch, nn.LSTM),
    "torch to naive": (make_torch, lambda m: from_torch(m, NaiveCustomLSTM), NaiveCustomLSTM),
    "torch to vectorised": (make_torch, lambda m: from_torch(m, CustomLSTM), CustomLSTM),
    "naive to vectorised": (lambda: NaiveCustomLSTM(I, H), to_vectorized, CustomLSTM),
    "vectorised to naive": (lambda: CustomLSTM(I, H), to_naive, NaiveCustomLSTM),
}

every_carry = pytest.mark.parametrize(("make", "carry", "cls"), CARRIES.values(), ids=CARRIES)


def weights(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


@every_carry
def test_the_function_is_carried(
    make: Callable[[], nn.Module], carry: Callable[[Any], nn.Module], cls: type[nn.Module]
) -> None:
    source = make().double()
    carried = carry(source)
    assert type(carried) is cls
    x = torch.randn(2, 7, I, dtype=torch.float64)
    ours, theirs = source(x), carried(x)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(ours[1], theirs[1], strict=True):  # torch's states have a leading 1
        torch.testing.assert_close(a.reshape(2, H), b.reshape(2, H), rtol=1e-12, atol=1e-12)


@every_carry
def test_weights_are_copied_not_shared(
    make: Callable[[], nn.Module], carry: Callable[[Any], nn.Module], cls: type[nn.Module]
) -> None:
    source = make()
    kept = [w.clone() for w in weights(source)]
    carried = carry(source)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in carried.parameters())
    with torch.no_grad():
        for parameter in carried.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(weights(source), kept, strict=True))
    # nor do two parameters of the result share: an update of one would move the other
    storages = [p.untyped_storage().data_ptr() for p in carried.parameters()]
    assert len(set(storages)) == len(storages)
    assert all(p.is_contiguous() for p in carried.parameters())


@every_carry
def test_random_state_is_left_alone(
    make: Callable[[], nn.Module], carry: Callable[[Any], nn.Module], cls: type[nn.Module]
) -> None:
    source = make()
    before = torch.get_rng_state()
    carry(source)
    assert torch.equal(torch.get_rng_state(), before)


@every_carry
@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_carried(
    make: Callable[[], nn.Module],
    carry: Callable[[Any], nn.Module],
    cls: type[nn.Module],
    training: bool,
) -> None:
    assert carry(make().train(training)).training is training


@every_carry
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtype_is_carried(
    make: Callable[[], nn.Module],
    carry: Callable[[Any], nn.Module],
    cls: type[nn.Module],
    dtype: torch.dtype,
) -> None:
    carried = carry(make().to(dtype))
    assert all(p.dtype == dtype and p.isfinite().all() for p in carried.parameters())


@every_carry
def test_device_is_carried(
    make: Callable[[], nn.Module], carry: Callable[[Any], nn.Module], cls: type[nn.Module]
) -> None:
    assert all(p.device.type == "cpu" for p in carry(make()).parameters())
    assert all(p.device.type == "meta" for p in carry(make().to("meta")).parameters())
    source = make()
    with torch.device("meta"):  # a default device elsewhere changes nothing
        assert all(p.device.type == "cpu" for p in carry(source).parameters())


@every_carry
def test_carried_layer_trains(
    make: Callable[[], nn.Module], carry: Callable[[Any], nn.Module], cls: type[nn.Module]
) -> None:
    carried = carry(make())
    before = [w.clone() for w in weights(carried)]
    carried(torch.randn(2, 7, I))[0].square().sum().backward()
    torch.optim.SGD(carried.parameters(), lr=0.1).step()
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(carried), strict=True))


ROUND_TRIPS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "naive, vectorised": (lambda: NaiveCustomLSTM(I, H), lambda m: to_naive(to_vectorized(m))),
    "vectorised, naive": (lambda: CustomLSTM(I, H), lambda m: to_vectorized(to_naive(m))),
    "naive, torch": (
        lambda: NaiveCustomLSTM(I, H),
        lambda m: from_torch(to_torch(m), NaiveCustomLSTM),
    ),
    "vectorised, torch": (lambda: CustomLSTM(I, H), lambda m: from_torch(to_torch(m))),
    "naive, vectorised, torch": (
        lambda: NaiveCustomLSTM(I, H),
        lambda m: from_torch(to_torch(to_vectorized(m)), NaiveCustomLSTM),
    ),
}


@pytest.mark.parametrize(("make", "there_and_back"), ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_gives_the_same_bits(
    make: Callable[[], nn.Module], there_and_back: Callable[[Any], nn.Module]
) -> None:
    source = make()
    back = there_and_back(source)
    assert list(back.state_dict()) == list(source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights(back), weights(source), strict=True))


@pytest.mark.parametrize("cls", [CustomLSTM, NaiveCustomLSTM])
def test_from_torch_and_back_keeps_weights_and_the_sum_of_biases(
    cls: type[CustomLSTM] | type[NaiveCustomLSTM],
) -> None:
    source = make_torch()
    back = to_torch(from_torch(source, cls))
    w_ih, w_hh, b_ih, b_hh = weights(source)
    expected = [w_ih, w_hh, b_ih + b_hh, torch.zeros(4 * H)]
    assert all(torch.equal(a, b) for a, b in zip(weights(back), expected, strict=True))


def test_our_bias_is_the_sum_of_torchs_two() -> None:
    source = make_torch()
    _, _, b_ih, b_hh = weights(source)
    assert torch.equal(from_torch(source).bias, b_ih + b_hh)


def test_to_torch_is_one_plain_layer() -> None:
    lstm = to_torch(CustomLSTM(I, H))
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (I, H, 1)
    assert lstm.batch_first
    assert lstm.bias
    assert not lstm.bidirectional
    assert list(lstm.state_dict()) == list(make_torch().state_dict())


def test_without_bias_ours_is_zero() -> None:
    source = nn.LSTM(I, H, bias=False, batch_first=True)
    ours = from_torch(source)
    assert torch.equal(ours.bias, torch.zeros(4 * H))
    x = torch.randn(2, 7, I)
    torch.testing.assert_close(ours(x)[0], source(x)[0])


def test_time_first_lstm_is_carried_as_batch_first() -> None:
    source = nn.LSTM(I, H)
    x = torch.randn(2, 7, I)
    torch.testing.assert_close(
        from_torch(source)(x)[0], source(x.transpose(0, 1))[0].transpose(0, 1)
    )


def test_parametrized_lstm_is_carried_as_it_computes() -> None:
    source = make_torch()
    nn.utils.parametrizations.weight_norm(source, "weight_hh_l0")
    with torch.no_grad():
        source.parametrizations.weight_hh_l0.original0.mul_(2)  # type: ignore[union-attr]
    x = torch.randn(2, 7, I)
    torch.testing.assert_close(from_torch(source)(x)[0], source(x)[0])


@pytest.mark.parametrize("carry", [to_torch, to_naive])
def test_peephole_is_refused(carry: Callable[[Any], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^layer: expected peephole=False; .*another function"):
        carry(CustomLSTM(I, H, peephole=True))


@pytest.mark.parametrize("cls", [CustomLSTM, NaiveCustomLSTM])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2}, "lstm: expected num_layers=1, "),
        ({"bidirectional": True}, "lstm: expected bidirectional=False, "),
        ({"proj_size": 2}, "lstm: expected proj_size=0, "),
    ],
)
def test_larger_lstms_are_refused(
    cls: type[CustomLSTM] | type[NaiveCustomLSTM], options: dict[str, Any], message: str
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*, got {name}={value}$"):
        from_torch(nn.LSTM(I, H, **options), cls)


OTHERS: dict[str, Any] = {
    "gru": nn.GRU(I, H),
    "cell": nn.LSTMCell(I, H),
    "state_dict": CustomLSTM(I, H).state_dict(),
    "none": None,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_modules_are_refused(other: Any) -> None:
    came = re.escape(f"got {type(other).__name__}")
    with pytest.raises(TypeError, match=f"^lstm: expected a torch.nn.LSTM, {came}$"):
        from_torch(other)
    with pytest.raises(TypeError, match=f"^layer: expected a NaiveCustomLSTM or .*, {came}$"):
        to_torch(other)
    with pytest.raises(TypeError, match=f"^layer: expected a NaiveCustomLSTM, {came}$"):
        to_vectorized(other)
    with pytest.raises(TypeError, match=f"^layer: expected a CustomLSTM, {came}$"):
        to_naive(other)


def test_classes_of_ours_are_refused_in_the_wrong_place() -> None:
    wrong: Any = CustomLSTM(I, H)
    with pytest.raises(TypeError, match=r"^layer: expected a NaiveCustomLSTM, got CustomLSTM$"):
        to_vectorized(wrong)
    wrong = NaiveCustomLSTM(I, H)
    with pytest.raises(TypeError, match=r"^layer: expected a CustomLSTM, got NaiveCustomLSTM$"):
        to_naive(wrong)
    with pytest.raises(TypeError, match=r"^lstm: expected a torch.nn.LSTM, got NaiveCustomLSTM$"):
        from_torch(wrong)


def test_unknown_target_class_is_refused() -> None:
    target: Any = nn.LSTM
    with pytest.raises(
        TypeError, match=r"^cls: expected CustomLSTM or NaiveCustomLSTM, got <class"
    ):
        from_torch(make_torch(), target)
