"""Drop-ins are torch's layers and cells: construction, parameters, kinds of number, copies."""

import copy
import inspect
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close

import flexrnn

Classes = tuple[Any, Any]
Twins = Callable[..., tuple[Any, Any]]
Same = Callable[..., Any]


def options_of(classes: Classes) -> list[dict[str, Any]]:
    """Every combination of a constructor's options that changes parameters."""
    ours, _ = classes
    grid: dict[str, tuple[Any, ...]] = {"bias": (True, False)}
    if issubclass(ours, flexrnn.FlexRNN):
        grid |= {"num_layers": (1, 3), "bidirectional": (False, True)}
    if ours is flexrnn.LSTM:
        grid["proj_size"] = (0, 2)
    if ours in (flexrnn.RNN, flexrnn.RNNCell):
        grid["nonlinearity"] = ("tanh", "relu")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def test_the_same_seed_draws_the_same_parameters_in_the_same_order(classes: Classes) -> None:
    for options in options_of(classes):
        drawn = []
        for cls in classes:
            torch.manual_seed(3)
            module = cls(4, 5, **options)
            drawn.append((module.state_dict(), dict(module.named_parameters()), torch.rand(3)))
        (ours, our_parameters, after), (theirs, their_parameters, expected_after) = drawn
        assert list(ours) == list(theirs)
        assert list(our_parameters) == list(their_parameters)
        assert_close(ours, theirs, rtol=0, atol=0)
        assert torch.equal(after, expected_after)  # nothing more was drawn


def test_reset_parameters_draws_as_torch_does(classes: Classes) -> None:
    for options in options_of(classes):
        modules = [cls(4, 5, **options) for cls in classes]
        for module in modules:
            torch.manual_seed(7)
            module.reset_parameters()
        ours, theirs = modules
        assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_state_dicts_load_both_ways(classes: Classes) -> None:
    for options in options_of(classes):
        ours, theirs = (cls(4, 5, **options) for cls in classes)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        assert_close(dict(theirs.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)
        theirs.reset_parameters()
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert_close(dict(theirs.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_a_state_dict_of_another_form_is_refused(layers: Classes) -> None:
    ours, theirs = layers
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"weight_ih_l1\""):
        ours(4, 5).load_state_dict(theirs(4, 5, num_layers=2).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        ours(4, 5).load_state_dict(theirs(3, 5).state_dict())


def test_all_weights_lists_the_parameters_as_torch_does(layers: Classes, twins: Twins) -> None:
    for options in options_of(layers):
        ours, theirs = twins(layers, 4, 5, **options)
        assert_close(ours.all_weights, theirs.all_weights, rtol=0, atol=0)
        listed = [weight for weights in ours.all_weights for weight in weights]
        parameters = list(ours.parameters())
        assert all(a is b for a, b in zip(listed, parameters, strict=True))


def test_flatten_parameters_changes_nothing(layers: Classes) -> None:
    ours = layers[0](4, 5)
    before = dict(ours.named_parameters())
    x = torch.randn(3, 2, 4)
    expected = ours(x)
    assert ours.flatten_parameters() is None
    assert all(before[name] is parameter for name, parameter in ours.named_parameters())
    assert_close(ours(x), expected, rtol=0, atol=0)


def test_positional_arguments_stand_in_torchs_order(twins: Twins, assert_same: Same) -> None:
    positions = {
        (flexrnn.LSTM, nn.LSTM): (4, 5, 2, False, True, 0.5, True, 3, "cpu", torch.float64),
        (flexrnn.GRU, nn.GRU): (4, 5, 2, False, True, 0.5, True),
        (flexrnn.RNN, nn.RNN): (4, 5, 2, "relu", False, True, 0.5, True),
        (flexrnn.LSTMCell, nn.LSTMCell): (4, 5, False, "cpu", torch.float64),
        (flexrnn.GRUCell, nn.GRUCell): (4, 5, False, "cpu", torch.float64),
        (flexrnn.RNNCell, nn.RNNCell): (4, 5, False, "relu", "cpu", torch.float64),
    }
    for classes, arguments in positions.items():
        kwargs = {} if torch.float64 in arguments else {"dtype": torch.float64}
        ours, theirs = (cls(*arguments, **kwargs) for cls in classes)
        ours.load_state_dict(theirs.state_dict())
        is_cell = issubclass(classes[0], flexrnn.Cell)
        assert_same(ours, theirs, torch.randn((2, 4) if is_cell else (2, 3, 4)).double())


def test_overloads_that_torch_documents_are_our_signature() -> None:
    for ours, theirs in ((flexrnn.LSTMCell, nn.LSTMCell), (flexrnn.RNNCell, nn.RNNCell)):
        expected = list(inspect.signature(theirs).parameters)
        assert list(inspect.signature(ours).parameters)[: len(expected)] == expected
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", "proj_size", "device", "dtype"]
    assert list(inspect.signature(flexrnn.LSTM).parameters)[:10] == names
    names.remove("proj_size")
    assert list(inspect.signature(flexrnn.GRU).parameters)[:9] == names
    names.insert(3, "nonlinearity")
    assert list(inspect.signature(flexrnn.RNN).parameters)[:10] == names


def test_attributes_and_extra_repr_are_torchs(layers: Classes, twins: Twins) -> None:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    names += ("bidirectional", "proj_size")
    each = [*options_of(layers), {"batch_first": True}, {"num_layers": 2, "dropout": 0.25}]
    for options in each:
        ours, theirs = twins(layers, 4, 5, **options)
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name)
            assert type(getattr(ours, name)) is type(getattr(theirs, name))
        assert ours.mode == theirs.mode
        assert ours.extra_repr() == theirs.extra_repr()
        assert repr(ours).startswith(type(theirs).__name__ + "(")


def test_a_cells_repr_is_torchs(cells: Classes) -> None:
    for options in options_of(cells):
        ours, theirs = (cls(4, 5, **options) for cls in cells)
        assert repr(ours) == repr(theirs)
        assert (ours.input_size, ours.hidden_size, ours.bias) == (4, 5, theirs.bias)


def test_dropout_in_a_single_layer_warns_as_torch_does(layers: Classes) -> None:
    for cls in layers:
        with pytest.warns(UserWarning, match="expects num_layers greater than 1"):
            cls(4, 5, dropout=0.5)


# Devices and kinds of number


def test_a_layer_on_meta_has_shapes_and_no_numbers(layers: Classes) -> None:
    ours, theirs = (cls(4, 5, 2, bidirectional=True, device="meta") for cls in layers)
    assert all(parameter.is_meta for parameter in ours.parameters())
    x = torch.empty(3, 2, 4, device="meta")
    assert_close(ours(x), theirs(x))  # of meta tensors this compares shapes, dtypes and devices
    on_cpu = ours.to_empty(device="cpu")
    on_cpu.reset_parameters()
    assert all(torch.isfinite(out).all() for out in on_cpu(torch.randn(3, 2, 4))[0])


def test_a_cell_on_meta_has_shapes_and_no_numbers(cells: Classes) -> None:
    with torch.device("meta"):
        ours, theirs = (cls(4, 5) for cls in cells)
        assert_close(ours(torch.empty(2, 4)), theirs(torch.empty(2, 4)))


def test_every_cell_is_built_on_the_device_and_in_the_dtype_asked_for() -> None:
    for name in flexrnn.cells.__all__:
        cls = getattr(flexrnn.cells, name)
        if name.endswith("Cell"):
            layer = flexrnn.FlexRNN(cls, 4, 5, 2, device="meta", dtype=torch.float16)
            assert {(p.device.type, p.dtype) for p in layer.parameters()} == {
                ("meta", torch.float16)
            }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_err_no_more_than_twice_as_much_as_torch(
    classes: Classes, twins: Twins, dtype: torch.dtype
) -> None:
    is_cell = issubclass(classes[0], flexrnn.Cell)
    ours, theirs = twins(classes, 16, 16, dtype=dtype)
    golden = copy.deepcopy(theirs).double()
    x = torch.randn((64, 16) if is_cell else (20, 64, 16)).to(dtype)
    for got, reference, exact in zip(*map(flat, (ours(x), theirs(x), golden(x.double())))):  # noqa: B905
        assert got.dtype == dtype
        error, allowed = ((t.double() - exact).norm() / exact.norm() for t in (got, reference))
        assert error <= 2 * allowed + 4 * torch.finfo(dtype).eps


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


def test_a_complex_layer_is_torchs(twins: Twins) -> None:
    for classes in ((flexrnn.LSTM, nn.LSTM), (flexrnn.GRUCell, nn.GRUCell)):
        ours, theirs = twins(classes, 4, 5, dtype=torch.complex128)
        shape = (2, 4) if classes[0] is flexrnn.GRUCell else (3, 2, 4)
        x = torch.randn(shape, dtype=torch.complex128)
        assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


every_cell = pytest.mark.parametrize(
    "cell", [getattr(flexrnn.cells, n) for n in flexrnn.cells.__all__ if n.endswith("Cell")]
)


@every_cell
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_under_autocast_every_result_is_of_autocasts_dtype(
    cell: type[flexrnn.Cell], packed: bool
) -> None:
    layer = flexrnn.FlexRNN(cell, 4, 5, num_layers=2, bidirectional=True)
    rows = [torch.randn(3, 4), torch.randn(2, 4)]
    x = pack_sequence(rows) if packed else torch.randn(3, 2, 4)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = layer(x)
        again = layer(x, results[1])  # what comes out may go in
    for got, exact in zip(*map(numbers, (results, expected)), strict=True):
        assert got.dtype == torch.bfloat16
        # Eight steps at most lie between x and a result, each a few roundings to bfloat16.
        assert (got.float() - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()
    assert all(got.dtype == torch.bfloat16 for got in numbers(again))
    torch.stack([got.sum() for got in numbers(results)]).sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


def numbers(value: Any) -> list[Tensor]:
    """The floating-point tensors of a result, also of one with a packed sequence in it."""
    output, state = value
    return [output if isinstance(output, Tensor) else output.data, *flat(state)]


@every_cell
def test_autocast_takes_a_cell_as_it_takes_a_layer(cell: type[flexrnn.Cell]) -> None:
    module = cell(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = module(torch.randn(2, 4))
        again = module(torch.randn(2, 4, dtype=torch.bfloat16), state)
    assert {t.dtype for t in (*flat(state), *flat(again))} == {torch.bfloat16}


@every_cell
def test_autocast_leaves_float64_alone(cell: type[flexrnn.Cell]) -> None:
    layer, module = flexrnn.FlexRNN(cell, 4, 5).double(), cell(4, 5).double()
    x = torch.randn(3, 2, 4).double()
    expected, expected_step = layer(x), module(x[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(layer(x), expected, rtol=0, atol=0)
        assert_close(module(x[0]), expected_step, rtol=0, atol=0)


# Copies


def copies(module: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]


def test_copies_are_independent_and_compute_the_same(classes: Classes, twins: Twins) -> None:
    is_cell = issubclass(classes[0], flexrnn.Cell)
    kwargs = {} if is_cell else {"num_layers": 2, "bidirectional": True}
    ours, _ = twins(classes, 4, 5, **kwargs)
    x = torch.randn((2, 4) if is_cell else (3, 2, 4)).double()
    expected = ours(x)
    for copied in copies(ours):
        assert list(copied.state_dict()) == list(ours.state_dict())
        with torch.no_grad():
            ours_before = [p.clone() for p in ours.parameters()]
            assert_close(copied(x), expected, rtol=0, atol=0)
            for parameter in copied.parameters():
                parameter.zero_()
        assert_close(list(ours.parameters()), ours_before, rtol=0, atol=0)
        assert not torch.equal(flat(copied(x))[0], flat(expected)[0])


def test_a_copy_keeps_parameters_that_were_tied(twins: Twins) -> None:
    ours, _ = twins((flexrnn.LSTM, nn.LSTM), 5, 5, num_layers=2)
    ours.weight_hh_l1 = ours.weight_hh_l0
    for copied in copies(ours):
        assert copied.weight_hh_l1 is copied.weight_hh_l0
        x = torch.randn(3, 2, 5).double()
        assert_close(copied(x), ours(x), rtol=0, atol=0)
