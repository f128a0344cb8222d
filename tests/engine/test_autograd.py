"""Eager calls as any operation of torch's: graphs, hooks, threads, modes, processes."""

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import flexrnn
from flexrnn.cells import HiddenState

T, B, I, H = 4, 3, 2, 5
pytestmark = pytest.mark.usefixtures("by_program")


def make(**options: Any) -> flexrnn.LSTM:
    return flexrnn.LSTM(I, H, dtype=torch.float64, **options)


def sequence() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)


def gradients(loss: Tensor, layer: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *layer.parameters()], **options))


def expected(layer: nn.Module, x: Tensor) -> list[Tensor]:
    with flexrnn.backend("reference"):
        return gradients(layer(x)[0].square().sum(), layer, x)


def test_a_retained_graph_gives_the_same_again_and_one_that_is_not_an_error() -> None:
    layer, x = make(num_layers=2, bidirectional=True), sequence()
    loss = layer(x)[0].square().sum()
    first = gradients(loss, layer, x, retain_graph=True)
    assert_close(first, expected(layer, x), rtol=1e-12, atol=1e-12)
    assert_close(gradients(loss, layer, x), first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, layer, x)


def test_two_graphs_live_side_by_side() -> None:
    layer, x, y = make(), sequence(), sequence()
    a, b = layer(x)[0].square().sum(), layer(y)[0].square().sum()
    assert_close(gradients(b, layer, y), expected(layer, y), rtol=1e-12, atol=1e-12)
    assert_close(gradients(a, layer, x), expected(layer, x), rtol=1e-12, atol=1e-12)


def test_backward_on_another_thread() -> None:
    layer, x = make(), sequence()
    loss, found = layer(x)[0].square().sum(), []
    thread = threading.Thread(target=lambda: found.append(gradients(loss, layer, x)))
    thread.start()
    thread.join()
    assert_close(found[0], expected(layer, x), rtol=1e-12, atol=1e-12)


def test_several_threads_at_once() -> None:
    layer, inputs = make(num_layers=2), [sequence() for _ in range(8)]

    def work(x: Tensor) -> list[Tensor]:
        return gradients(layer(x)[0].square().sum(), layer, x)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, inputs))
    for got, x in zip(found, inputs, strict=True):
        assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", ["x", "weight_hh_l0", "bias_ih_l0", "output", "h_0"])
def test_a_write_to_what_backward_needs_is_refused(what: str) -> None:
    layer, x = make(), sequence()
    state = (torch.zeros(1, B, H, dtype=torch.float64), torch.zeros(1, B, H, dtype=torch.float64))
    given = x * 1
    output, _ = layer(given, state)
    loss = output.sum()
    target = {"x": given, "output": output, "h_0": state[0], **dict(layer.named_parameters())}[what]
    with torch.no_grad():
        target.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    layer, x = make(), sequence()
    output = checkpoint(lambda x: layer(x)[0], x, use_reentrant=reentrant)
    assert isinstance(output, Tensor)
    output.square().sum().backward()
    got = [x.grad, *(p.grad for p in layer.parameters())]
    assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inside", [False, True])
def test_the_first_call_of_a_layer_may_be_in_a_checkpoint(inside: bool) -> None:
    """Tracing is no part of what a checkpoint does again, and counts."""

    class Turning(flexrnn.cells.RNNCell):
        def step(self, x: Tensor, state: Any) -> Any:
            turn = torch.matrix_exp(self.weight_hh - self.weight_hh.T)  # made ahead
            return type(state)(torch.tanh(x @ self.weight_ih.T + state.h @ turn))

    options: Any = {"bias": False, "dtype": torch.float64}
    layer = flexrnn.FlexRNN(Turning, I, H, checkpoint_every=2 if inside else None, **options)
    x = sequence()
    output = layer(x)[0] if inside else checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    got = gradients(output.square().sum(), layer, x)
    assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)


def test_checkpoint_every_of_a_layer(by_program: list[str]) -> None:
    layer, x = make(checkpoint_every=2), sequence()
    got = gradients(layer(x)[0].square().sum(), layer, x)
    assert by_program.count("forward") == 4  # two segments, and each again
    assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)


def test_hooks_and_saved_tensor_hooks(by_program: list[str]) -> None:
    layer, x = make(), sequence()
    seen: list[Tensor] = []
    layer.get_parameter("weight_hh_l0").register_hook(seen.append)
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.numel())
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = layer(x)[0].square().sum()
    got = gradients(loss, layer, x)
    assert packed
    assert by_program == ["forward", "backward"]
    assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)
    assert_close(seen[0], got[2], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
def test_anomaly_mode_names_the_operation() -> None:
    layer, x = make(), sequence()
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").fill_(float("nan"))
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="_ScanBackward"):
        layer(x)[0].sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(mode: Any, by_program: list[str]) -> None:
    layer, x = make(), sequence()
    right = layer(x)[0].detach()
    with mode():
        output, _ = layer(x)
    assert by_program == ["forward", "forward"]
    assert not output.requires_grad
    assert_close(output, right, rtol=1e-12, atol=1e-12)


def test_a_frozen_layer_and_a_frozen_input() -> None:
    layer, x = make(), sequence()
    layer.get_parameter("bias_ih_l0").requires_grad_(False)
    loss = layer(x.detach())[0].square().sum()
    loss.backward()
    assert layer.get_parameter("bias_ih_l0").grad is None
    with flexrnn.backend("reference"):
        right = torch.autograd.grad(layer(x)[0].square().sum(), layer.get_parameter("weight_hh_l0"))
    assert_close(layer.get_parameter("weight_hh_l0").grad, right[0], rtol=1e-12, atol=1e-12)
    layer.requires_grad_(False)
    assert not layer(x.detach())[0].requires_grad


class Signs(flexrnn.Cell):
    """Only the signs of its weights count, and these have no derivative."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.weight = nn.Parameter(torch.randn(hidden_size, input_size, dtype=dtype))

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(torch.tanh(x @ self.weight.sign().T + state.h))


def test_weights_without_a_derivative_are_trained_without_an_error() -> None:
    layer = flexrnn.FlexRNN(Signs, I, H, dtype=torch.float64)
    layer(sequence().detach())[0].sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_run_on_their_own(again: Callable[[Any], Any]) -> None:
    layer, x = make(), sequence()
    right = layer(x)[0]
    other = again(layer)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").zero_()
    assert_close(other(x)[0], right, rtol=0, atol=0)
    assert_close(
        gradients(other(x)[0].square().sum(), other, x), expected(other, x), rtol=1e-12, atol=1e-12
    )


def test_distributed_data_parallel(tmp_path: Any) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        layer, x = make(num_layers=2), sequence()
        parallel = nn.parallel.DistributedDataParallel(layer)
        parallel(x)[0].square().sum().backward()
        got = [x.grad, *(p.grad for p in layer.parameters())]
        assert_close(got, expected(layer, x), rtol=1e-12, atol=1e-12)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("engine", ["interpreter", "cpu"])
def test_a_backward_pass_under_autocast_computes_in_the_dtype_of_its_forward_pass(
    engine: str,
) -> None:
    layer, x = flexrnn.LSTM(I, H, backend=engine), torch.randn(T, B, I, requires_grad=True)
    found = []
    for enabled in (False, True):
        loss = layer(x)[0].square().sum()
        with torch.autocast("cpu", enabled=enabled):
            found.append(gradients(loss, layer, x))
    assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["LSTM", "RNN", "PeepholeLSTM"])
@pytest.mark.parametrize("backend", ["interpreter", "cpu"])
def test_no_two_gradients_share_memory(form: str, backend: str) -> None:
    layer, x = getattr(flexrnn, form)(I, H, dtype=torch.float64, backend=backend), sequence()
    for _ in range(4):  # later calls are written down
        found = gradients(layer(x)[0].sum(), layer, x)
        before = [gradient.clone() for gradient in found]
        for gradient in found:
            gradient.mul_(0.5)  # clipped by hand, say
        assert_close(found, [gradient * 0.5 for gradient in before], rtol=0, atol=0)
