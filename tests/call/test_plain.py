# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
"""Plain calls of sequences: what is remembered gives the numbers of the long way, bit by bit."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import graph
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.call import quick
from flexrnn.engine.compiler import passes
from flexrnn.engine.cpu import plan

pytestmark = pytest.mark.usefixtures("by_the_engine")
T, B, I, H = 6, 2, 3, 5


KINDS: dict[str, Any] = {
    "lstm": cells.LSTMCell,
    "gru": cells.GRUCell,
    "peephole": cells.PeepholeLSTMCell,
    "layer norm": cells.LayerNormLSTMCell,
    "own": None,
}


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def is_taken(layer: FlexRNN, x: Any, hx: Any = None) -> bool:
    return quick.call(layer, x, hx) is not None


def flat(result: Any) -> list[Tensor]:
    output, state = result
    return [output, *((state,) if isinstance(state, Tensor) else state)]


def lying(shape: tuple[int, ...], how: str, dtype: torch.dtype) -> Tensor:
    """An input of this shape whose numbers lie in one piece, or otherwise."""
    if how == "crosswise":
        return randn(*shape[::-1], dtype=dtype).permute(2, 1, 0)
    if how == "with gaps":
        return randn(shape[0], 2 * shape[1], shape[2] + 1, dtype=dtype)[:, ::2, 1:]
    return randn(*shape, dtype=dtype)


@pytest.mark.parametrize("how", ["in one piece", "crosswise", "with gaps"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients_are_those_of_the_long_way(
    kind: str, how: str, long: Callable[..., Any], own_cell: Any
) -> None:
    dtype = torch.float32 if kind == "lstm" else torch.float64
    layer = FlexRNN(KINDS[kind] or own_cell, I, H, dtype=dtype)
    for seen in range(3):  # the first finds out, the others remember; with a state, and without
        x = lying((T, B, I), how, dtype).requires_grad_(seen != 1)
        fields = len(flat(layer(x))) - 1
        state = tuple(randn(1, B, H, dtype=dtype).requires_grad_() for _ in range(fields))
        hx = None if seen == 2 else state if fields > 1 else state[0]
        leaves = [*([x] if x.requires_grad else []), *(state if seen < 2 else ()),
                  *layer.parameters()]  # fmt: skip
        weight = randn(T, B, H, dtype=dtype)

        def trained(x: Tensor = x, hx: Any = hx, leaves: Any = leaves, w: Any = weight) -> Any:
            found = flat(layer(x, hx))
            loss = (found[0] * w).sum() + found[-1].sin().sum()
            return [*found, *torch.autograd.grad(loss, leaves)]

        def inferred(x: Tensor = x, hx: Any = hx) -> Any:
            with torch.no_grad():
                return flat(layer(x, hx))

        for run in (trained, inferred):
            assert_close(run(), long(run), rtol=0, atol=0)
        assert is_taken(layer, x, hx)


HALVES: dict[str, tuple[Any, Any, Any]] = {  # of parameters, of the input, and autocast's
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "float16": (torch.float16, torch.float16, None),
    "autocast": (torch.float32, torch.float32, torch.bfloat16),
    "autocast of what is cast": (torch.float32, torch.bfloat16, torch.bfloat16),
    "autocast to float16": (torch.float32, torch.float32, torch.float16),
}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("both", [{}, {"num_layers": 2, "bidirectional": True}], ids=["1", "2 x 2"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "own"])
def test_half_types_are_rounded_as_on_the_long_way(
    kind: str, both: dict[str, Any], half: str, long: Callable[..., Any], own_cell: Any
) -> None:
    own, of_x, to = HALVES[half]
    layer = FlexRNN(KINDS[kind] or own_cell, I, H, dtype=own, **both)
    for steps in (T, 1):
        x = randn(steps, 9, I, dtype=of_x).requires_grad_()
        with torch.autocast("cpu", to, enabled=to is not None):
            _, state = layer(x)
        bare = isinstance(state, Tensor)
        given = state.detach() if bare else tuple(field.detach() for field in state)
        for hx in (None, given):

            def called(x: Tensor = x, hx: Any = hx) -> list[Tensor]:
                with torch.autocast("cpu", to, enabled=to is not None):
                    return flat(layer(x, hx))

            def trained(x: Tensor = x, called: Any = called) -> Any:
                found = called()
                loss = found[0].float().square().sum() + found[-1].float().sin().sum()
                return [*found, *torch.autograd.grad(loss, [x, *layer.parameters()])]

            inferred = torch.no_grad()(called)
            for run in (trained, inferred):
                right = long(run)
                for _ in range(4):  # found out, prepared, and from then on remembered
                    assert_close(run(), right, rtol=0, atol=0)
            assert {tensor.dtype for tensor in inferred()} == {to or own}
            with torch.autocast("cpu", to, enabled=to is not None):
                assert is_taken(layer, x, hx)


@pytest.mark.parametrize(
    ("own", "of_x", "of_state"),
    [
        (torch.float32, torch.bfloat16, None),  # learned
        (torch.float32, torch.float16, None),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_under_autocast_states_travel_in_the_dtype_of_parameters(
    own: torch.dtype, of_x: torch.dtype, of_state: Any, long: Callable[..., Any]
) -> None:
    layer = FlexRNN(KINDS["lstm"], I, H, dtype=own, learn_initial_state=of_state is None)
    with torch.no_grad():
        for parameter in layer.parameters():  # of a learned state, too, no digit is 0
            parameter.copy_(randn(*parameter.shape, dtype=own))
    x = randn(T, 9, I, dtype=of_x)
    hx = of_state and tuple(randn(1, 9, H, dtype=of_state) for _ in range(2))

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            found = flat(layer(x, hx))
        loss = torch.stack([tensor.float().square().sum() for tensor in found]).sum()
        return [*found, *torch.autograd.grad(loss, [*layer.parameters()])]

    right = long(run)
    for _ in range(4):
        assert_close(run(), right, rtol=0, atol=0)


ORDER = torch.tensor([2, 0, 1])


@pytest.mark.parametrize("order", [None, ORDER], ids=["as they came", "sorted"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_sequences_of_one_length_are_plain(
    kind: str, batch: int, order: Tensor | None, long: Callable[..., Any]
) -> None:
    order = order if batch == 3 or order is None else torch.tensor([0])
    back = None if order is None else order.argsort()
    layer = FlexRNN(KINDS[kind], I, H, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    sizes = torch.full((T,), batch)
    for given in (False, False, True, True):
        packed = PackedSequence(randn(T * batch, I).requires_grad_(), sizes, order, back)
        fields = [randn(4, batch, H), randn(4, batch, H)]
        hx = (tuple(fields) if kind == "lstm" else fields[0]) if given else None

        def inferred(x: PackedSequence = packed, hx: Any = hx) -> list[Tensor]:
            with torch.no_grad():
                (output, *more), state = layer(x, hx)
            expected = (sizes, order, back)
            assert all(a is b for a, b in zip(more, expected, strict=True))
            return flat((output, state))

        def trained(x: PackedSequence = packed, hx: Any = hx) -> list[Tensor]:
            (output, *_), state = layer(x, hx)
            found = flat((output, state))
            weights = (torch.arange(f.numel()).view_as(f) for f in found)
            loss = sum(
                ((f * w).sum() for f, w in zip(found, weights, strict=True)), torch.zeros(())
            )
            return [*found, *torch.autograd.grad(loss, [x.data, *layer.parameters()])]

        for run in (inferred, trained):
            assert_close(run(), long(run), rtol=0, atol=0)
        assert is_taken(layer, packed, hx) == (order is None or not given)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_packed_sequences_of_other_lengths_and_wrong_ones_are_not_plain() -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    unlike = PackedSequence(randn(5, I), torch.tensor([2, 2, 1]))
    for x in (unlike, unlike._replace(data=randn(5, I + 1)), unlike._replace(data=randn(5))):
        assert not is_taken(layer, x)
    few = PackedSequence(randn(5, I), torch.tensor([2, 1, 2]))
    with pytest.raises(ValueError, match="positive and decreasing, got"):
        layer(few)
    narrow = PackedSequence(randn(4, I - 1), torch.tensor([2, 2]))
    with pytest.raises(RuntimeError, match="Expected 3, got 2"):
        layer(narrow)
    with pytest.raises(RuntimeError, match="Expected 3, got 2"):  # the first mistake is told first
        layer(few._replace(data=randn(4, I - 1)))
    nested = torch.nested.nested_tensor([randn(I) for _ in range(4)])
    with pytest.raises(TypeError, match="got a nested one"):
        layer(narrow._replace(data=nested))


@pytest.mark.parametrize("options", [
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "proj_size": 2},
    {"num_layers": 2, "learn_initial_state": True},
    {"bias": False, "batch_first": True},
], ids=str)  # fmt: skip
def test_every_form_of_a_layer_has_the_numbers_of_the_long_way(
    options: dict[str, Any], long: Callable[..., Any]
) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    x = randn(B, T, I) if layer.batch_first else randn(T, B, I)

    def trained() -> Any:
        found = flat(layer(x))
        return [*found, *torch.autograd.grad(found[0].sum() + found[2].prod(),
                                             list(layer.parameters()))]  # fmt: skip

    for _ in range(2):
        assert_close(trained(), long(trained), rtol=0, atol=0)
    assert is_taken(layer, x)
    state = layer(x)[1]
    assert type(state) is type(long(lambda: layer(x))[1])
    assert_close(layer(x, state), long(lambda: layer(x, state)), rtol=0, atol=0)


def checkpointed(layer: FlexRNN, x: Tensor) -> Any:
    return checkpoint(layer, x, use_reentrant=False)


def checkpointed_within(layer: FlexRNN, x: Tensor) -> Any:
    return checkpoint(layer, x, use_reentrant=True)


def plainly(layer: FlexRNN, x: Tensor) -> Any:
    return layer(x)


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.parametrize(("call", "around"), [
    (checkpointed, nullcontext),
    (checkpointed_within, nullcontext),
    (plainly, graph.save_on_cpu),
    (plainly, lambda: graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor)),
    (plainly, torch.autograd.detect_anomaly),
], ids=["checkpoint", "reentrant", "saved elsewhere", "hooks", "anomaly"])  # fmt: skip
def test_what_torch_does_with_saved_tensors_finds_the_same(
    call: Callable[..., Any], around: Callable[[], Any], long: Callable[..., Any]
) -> None:
    layer = flexrnn.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()

    def trained() -> Any:
        with around():
            found = flat(call(layer, x))
            loss = found[0].square().sum() + found[2].sum()
            layer.zero_grad()
            x.grad = None
            loss.backward()
            return [*found, x.grad, *(p.grad for p in layer.parameters())]

    for _ in range(2):
        assert_close(trained(), long(trained), rtol=0, atol=0)


@pytest.mark.parametrize("inference", [False, True])
def test_an_empty_batch_and_inference_mode_are_what_they_are_on_the_long_way(
    inference: bool, long: Callable[..., Any]
) -> None:
    layer, x = flexrnn.GRU(I, H, 2, dtype=torch.float64), randn(T, B, I)

    def called() -> list[Tensor]:
        with torch.inference_mode(inference):
            return [tensor for x_ in (x, x[:, :0]) for tensor in flat(layer(x_))]

    for _ in range(2):
        found, expected = called(), long(called)
        assert_close(found, expected, rtol=0, atol=0)
        for a, b in zip(found, expected, strict=True):
            assert (a.requires_grad, a.is_inference()) == (b.requires_grad, b.is_inference())


def test_what_is_remembered_dies_with_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_programs", {})
    gc.collect()
    programs, memories = len(plan._known), len(quick._memories)
    layer = flexrnn.GRU(I, 7, dtype=torch.float64)
    layer(randn(T, B, I))[0].sum().backward()
    assert len(quick._memories) == memories + 1
    passes._programs.clear()
    assert len(plan._known) == programs + 1
    died = weakref.ref(layer)
    del layer
    gc.collect()
    assert died() is None
    assert len(quick._memories) == memories
    assert len(plan._known) == programs


def test_no_call_leaves_a_tensor_behind() -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), randn(T, B, I)

    def tensors() -> int:
        for _ in range(5):
            layer(x)[0].sum().backward()
            with torch.no_grad():
                layer(x)
        gc.collect()
        return sum(type(found) is Tensor for found in gc.get_objects())

    tensors()
    assert tensors() == tensors()


def test_results_are_nobody_elses_memory() -> None:
    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), randn(T, B, I)
    with torch.no_grad():
        output, state = layer(x)
        kept = [output.clone(), *(s.clone() for s in state)]
        again = layer(x)
        for tensor in flat(again):
            tensor.fill_(7)
        layer(x)
    assert_close([output, *state], kept, rtol=0, atol=0)


def test_layers_are_called_from_several_threads(own_cell: Any, on_four_threads: Any) -> None:
    layers = [FlexRNN(own_cell, I, H, dtype=torch.float64) for _ in range(2)]
    xs = [randn(T + k, B + k, I) for k in range(4)]
    with flexrnn.backend("reference"):
        expected = [[m(x)[0].detach() for x in xs] for m in layers]
    wrong: list[Any] = []

    def run(k: int) -> None:
        with flexrnn.backend("cpu"):
            for n in range(30):
                which = (n + k) % 2
                found = layers[which](xs[(n + k) % 4])[0].detach()
                if not torch.allclose(found, expected[which][(n + k) % 4], rtol=1e-12, atol=1e-13):
                    wrong.append((k, n))

    on_four_threads(run)
    assert not wrong
