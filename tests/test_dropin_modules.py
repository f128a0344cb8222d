"""The drop-ins pass PyTorch's own descriptions of its module tests, in the place of torch's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close
from torch.testing._internal import (
    common_modules as described,
)

import flexrnn

OURS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.LSTM: flexrnn.LSTM,
    nn.GRU: flexrnn.GRU,
    nn.RNN: flexrnn.RNN,
    nn.LSTMCell: flexrnn.LSTMCell,
    nn.GRUCell: flexrnn.GRUCell,
    nn.RNNCell: flexrnn.RNNCell,
}
INFOS = [info for info in described.module_db if info.module_cls in OURS]
DTYPES = (torch.float32, torch.float64)
TOLERANCES: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1.3e-6, "atol": 1e-5},  # what PyTorch itself asks of these tests
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
}


def inputs(info: Any, dtype: torch.dtype, training: bool, requires_grad: bool = True) -> list[Any]:
    torch.manual_seed(0)
    return list(
        info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
        )
    )


def error_inputs(info: Any, dtype: torch.dtype, training: bool) -> list[Any]:
    return list(
        info.module_error_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=False, training=training
        )
    )


def test_every_description_is_counted() -> None:
    # LSTM: 2 biases × 2 layouts × 2 directions × 2 projections × with and without a state = 32;
    # RNN: as many, two nonlinearities in the place of projections = 32; GRU: neither = 16; cells:
    # LSTM 2, GRU 2, RNN 3. That is 87 a dtype and mode: 174 for float32 and float64. Errors: 14 for
    # each layer, 6 for GRUCell and RNNCell, 4 for LSTMCell: 58 a dtype and mode.
    assert {info.module_cls for info in INFOS} == set(OURS)
    assert {dtype for info in INFOS for dtype in info.dtypes} == set(DTYPES)
    for training in (True, False):
        assert sum(len(inputs(info, dtype, training)) for info in INFOS for dtype in DTYPES) == 174
        for dtype in DTYPES:
            assert sum(len(error_inputs(info, dtype, training)) for info in INFOS) == 58


cases = [
    pytest.param(info, dtype, training, id=f"{info.name}-{dtype}-{'train' if training else 'eval'}")
    for info in INFOS
    for dtype in DTYPES
    for training in (True, False)
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("info", "dtype", "training"), cases)
def test_values_and_gradients_are_those_of_torch(
    info: Any, dtype: torch.dtype, training: bool, assert_same: Callable[..., Any]
) -> None:
    for described_input in inputs(info, dtype, training):
        compare(assert_same, info.module_cls, described_input, dtype, training)


packing = [
    pytest.param(info, dtype, id=f"{info.name}-{dtype}")
    for info in INFOS
    for dtype in DTYPES
    if info.module_cls in (nn.GRU, nn.RNN)
]


@pytest.mark.parametrize(("info", "dtype"), packing)
def test_so_are_those_of_the_descriptions_with_packed_sequences(
    info: Any, dtype: torch.dtype, assert_same: Callable[..., Any]
) -> None:
    with_packed = [
        i
        for i in info.module_inputs_func(
            info,
            device="cpu",
            dtype=dtype,
            requires_grad=True,
            training=True,
            with_packed_sequence=True,
        )
        if isinstance(i.forward_input.args[0], PackedSequence)
    ]
    assert len(with_packed) == (32 if info.module_cls is nn.RNN else 16)
    for described_input in with_packed:
        compare(assert_same, info.module_cls, described_input, dtype, training=True)


def compare(
    assert_same: Callable[..., Any],
    cls: type[nn.Module],
    case: Any,
    dtype: torch.dtype,
    training: bool,
) -> None:
    build, call = case.constructor_input, case.forward_input
    assert not call.kwargs
    ours = OURS[cls](*build.args, **build.kwargs).to(dtype).train(training)
    theirs = cls(*build.args, **build.kwargs).to(dtype).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)

    got = assert_same(ours, theirs, *call.args, **TOLERANCES[dtype])
    if case.reference_fn is not None and not isinstance(call.args[0], PackedSequence):
        # torch's own oracle: the same module with a batch of one.
        expected = case.reference_fn(ours, *call.args)
        assert_close(got, expected, **TOLERANCES[dtype])


errors = [
    pytest.param(
        info, case, training, id=f"{info.name}-{dtype}-{'train' if training else 'eval'}-{k}"
    )
    for info in INFOS
    for dtype in DTYPES
    for training in (True, False)
    for k, case in enumerate(error_inputs(info, dtype, training))
]


@pytest.mark.parametrize(("info", "case", "training"), errors)
def test_the_same_mistake_is_the_same_exception(info: Any, case: Any, training: bool) -> None:
    build = case.module_error_input.constructor_input
    call = case.module_error_input.forward_input
    make = partial(OURS[info.module_cls], *build.args, **build.kwargs)
    if case.error_on is described.ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(case.error_type, match=case.error_regex) as caught:
            make()
    else:
        module = make().train(training)
        with pytest.raises(case.error_type, match=case.error_regex) as caught:
            module(*call.args, **call.kwargs)
    assert type(caught.value) is case.error_type
