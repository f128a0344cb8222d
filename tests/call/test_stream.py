"""`layer.step` is the sequence call, step by step, resets included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN

Make = Callable[..., FlexRNN]
T, B, I, H = 6, 4, 3, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_it_is_the_sequence_call(make: Make, engine: str, learned: bool, batch_first: bool) -> None:
    layer = make(num_layers=2, learn_initial_state=learned, batch_first=batch_first)
    reset = torch.rand(T, B) < 0.3
    x = randn(T, B, I).requires_grad_()
    state, outputs = None, []
    for x_t, reset_t in zip(x, reset, strict=True):
        mark: Any = reset_t.numpy() if learned else reset_t
        output, state = layer.step(x_t, state, reset=mark)
        outputs.append(output)
    given, marks = (x.transpose(0, 1), reset.T) if batch_first else (x, reset)
    expected, final = layer(given, reset=marks)
    expected = expected.transpose(0, 1) if batch_first else expected
    assert_close((torch.stack(outputs), state), (expected, final), rtol=1e-12, atol=1e-13)
    weight, leaves = torch.randn_like(expected), [x, *layer.parameters()]
    grads = grad((torch.stack(outputs) * weight).sum(), leaves, materialize_grads=True,
                 allow_unused=True)  # fmt: skip
    wanted = grad((expected * weight).sum(), leaves, materialize_grads=True, allow_unused=True)
    assert_close(grads, wanted, rtol=1e-11, atol=1e-12)


def test_one_row_without_a_batch(make: Make) -> None:
    for batch_first in (False, True):
        layer, x = make(num_layers=2, batch_first=batch_first), randn(I)
        state = layer.step(x)[1]
        for flag in (True, False):
            output, _ = layer.step(x, state, reset=torch.tensor(flag))
            assert_close(output, layer.step(x, None if flag else state)[0], rtol=0, atol=0)
        assert output.shape == (layer.cells[0].output_size,)


def test_in_half_precision_it_keeps_to_the_tolerance_rule(make: Make) -> None:
    """Its error, measured by float64, is at most 1.2 times that of the sequence call."""
    exact = make(num_layers=2)
    layer = make(num_layers=2, dtype=torch.bfloat16)
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=torch.bfloat16)
    golden, state, outputs = exact(x.double())[0], None, []
    for x_t in x:
        output, state = layer.step(x_t, state)
        outputs.append(output)
    errors = [(o.double() - golden).norm() for o in (torch.stack(outputs), layer(x)[0])]
    assert errors[0] <= 1.2 * errors[1] + 4 * torch.finfo(torch.bfloat16).eps * golden.norm()


def test_zoneout_and_dropout_are_drawn_anew_at_every_step() -> None:
    layer = flexrnn.LSTM(I, H, num_layers=2, dropout=0.5, zoneout=0.5)
    x = torch.randn(B, I)
    assert not torch.equal(layer.step(x)[0], layer.step(x)[0])
    layer.eval()
    assert torch.equal(layer.step(x)[0], layer.step(x)[0])


@pytest.mark.parametrize("option", ["recurrent_dropout", "weight_drop"])
def test_masks_of_a_whole_sequence_are_refused_while_training(refused: Any, option: str) -> None:
    options: dict[str, Any] = {option: 0.5}
    layer = flexrnn.LSTM(I, H, **options)
    x = torch.randn(B, I)
    message = f"step: expected evaluation mode with {option}=0.5, whose masks are drawn once ..."
    refused(lambda: layer.step(x), RuntimeError, message)
    layer.eval()
    assert_close(layer.step(x)[0], layer(x[None])[0][0], rtol=0, atol=0)


def test_hooks_run(make: Make) -> None:
    layer, seen = make(batch_first=True), []
    layer.register_forward_hook(lambda _, args, result: seen.append((args[0], result[0])))
    x = randn(B, I)
    output, _ = layer.step(x)
    assert_close(seen, [(x[:, None], output[:, None])], rtol=0, atol=0)


def test_a_subclass_that_wraps_forward_streams_too() -> None:
    class Doubled(flexrnn.LSTM):
        def forward(self, input: Any, hx: Any = None, **options: Any) -> Any:
            return super().forward(2 * input, hx, **options)

    layer, x = Doubled(I, H), torch.randn(T, B, I)
    output, state = layer.step(x[0])
    second, _ = layer.step(x[1], state, reset=torch.zeros(B).bool())
    assert_close(torch.stack([output, second]), layer(x)[0][:2])


def test_a_subclass_whose_forward_carries_no_state_is_told_so(refused: Any) -> None:
    class Encoder(flexrnn.LSTM):
        def forward(self, input: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(input)[0]

    class Output(flexrnn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(input, hx)[0]

    x = torch.randn(B, I)
    refused(
        lambda: Encoder(I, H).step(x),
        TypeError,
        "step: expected a forward that takes (input, hx), got Encoder.forward(input: ...) -> ...",
    )
    refused(
        lambda: Output(I, H).step(x, reset=torch.zeros(B).bool()),
        TypeError,
        "step: expected a forward that takes (input, hx, reset=), got Output.forward(...",
    )
    refused(
        lambda: Output(I, H).step(x),
        TypeError,
        "step: expected a forward that returns (output, state), got a Tensor from Output.forward",
    )


def test_what_does_not_fit_is_refused(refused: Any) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(B, I)
    step: Any = layer.step
    for reset, error, message in (
        ([True] * B, TypeError, "reset: expected a tensor of torch.bool, got list"),
        (torch.zeros(B), TypeError, "reset: expected torch.bool, got torch.float32"),
        (
            torch.zeros(B, 1).bool(),
            ValueError,
            "reset: expected shape (4,), one for each row, got (4, 1)",
        ),
        (
            torch.zeros(B, device="meta").bool(),
            RuntimeError,
            "reset: expected it on the input's device cpu, got meta",
        ),
    ):
        refused(lambda reset=reset: step(x, reset=reset), error, message)
    refused(
        lambda: step(x[0], reset=torch.zeros(1).bool()),
        ValueError,
        "reset: expected shape (), one for each row, got (1,)",
    )
    refused(
        lambda: flexrnn.GRU(I, H, bidirectional=True).step(x),
        RuntimeError,
        "step: expected one direction; the second begins at the end",
    )
