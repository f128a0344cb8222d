# pyright: reportPrivateUsage=false
"""Training calls that come again are written down: the bits of those that are not."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import flexrnn
from flexrnn import FlexRNN, cells
from flexrnn.engine import again
from flexrnn.engine.replay import Replay, Result

T, B, I, H = 6, 2, 3, 5
Call = Callable[[], list[Any]]


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.fixture(autouse=True)
def by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By this engine, and the second call of a kind is written down."""
    monkeypatch.setattr(again, "_OFTEN", 1)
    monkeypatch.setattr(again, "_FREE", 1 << 30)
    with flexrnn.backend("cpu"):
        yield


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every pass that is one written down."""
    count: list[int] = []
    write = again.written

    def noted(function: Any, row: Any) -> tuple[Result, Replay | None]:
        result, replay = write(function, row)

        def counted(*row: Tensor) -> Result:
            count.append(1)
            assert replay is not None
            return replay(*row)

        return result, None if replay is None else counted

    monkeypatch.setattr(again, "written", noted)
    return count


@pytest.fixture
def afresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], list[Any]]:
    """A call of which nothing is known."""

    def run(call: Call) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(again.Again, "__call__", lambda _, function, row, sort: function(row))
            return call()

    return run


@pytest.fixture
def assert_same(afresh: Any) -> Callable[[Call], None]:
    """Assert that a call gives the bits of one of which nothing is known."""

    def check(call: Call) -> None:
        expected = afresh(call)
        for found in (call(), call(), call()):
            for a, b in zip(found, expected, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.stride() == b.stride()
                    assert torch.equal(a, b)

    return check


def leaves(layer: nn.Module, *others: Any) -> list[Tensor]:
    own = [other for other in others if isinstance(other, Tensor) and other.requires_grad]
    return [*own, *(p for p in layer.parameters() if p.requires_grad)]


def trained(layer: Any, x: Tensor, hx: Any = None, *, every: bool = True) -> list[Any]:
    """Output, last state and gradients."""
    output, state = layer(x, hx)
    fields = [state] if isinstance(state, Tensor) else [*state]
    loss = (output * torch.linspace(-1, 2, output.numel(), dtype=x.dtype).view_as(output)).sum()
    loss = loss + sum(field.sin().sum() for field in fields) if every else loss
    given = [] if hx is None else [hx] if isinstance(hx, Tensor) else [*hx]
    found = torch.autograd.grad(loss, leaves(layer, x, *given), allow_unused=True)
    return [output.detach(), *(f.detach() for f in fields), *found]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_bits_are_those_of_calls_that_are_not_written_down(
    kind: tuple[Any, dict[str, Any]],
    batch_first: bool,
    options: Any,
    replayed: list[int],
    assert_same: Any,
) -> None:
    cell, own = kind
    options = {**options, **own, "batch_first": batch_first}
    passes = 2 * (4 if "num_layers" in options else 1)
    for dtype in (torch.float32, torch.float64):
        layer = FlexRNN(cell, I, H, dtype=dtype, **options)
        for rows, steps in ((1, 1), (1, T), (B, T), (9, 40)):
            shape = (rows, steps) if batch_first else (steps, rows)
            x = randn(*shape, I, dtype=dtype).requires_grad_()
            state = layer(x)[1]
            given = [state] if isinstance(state, Tensor) else [*state]
            given = [field.detach().requires_grad_() for field in given]
            for hx in (None, given[0] if len(given) == 1 else tuple(given)):
                before = len(replayed)
                assert_same(lambda layer=layer, x=x, hx=hx: trained(layer, x, hx))
                assert len(replayed) >= before + passes


def test_a_single_row_whose_input_torch_multiplies(replayed: list[int], assert_same: Any) -> None:
    for cell in (cells.LSTMCell, cells.GRUCell):
        layer = FlexRNN(cell, 70, 300)
        for steps in (9, 900):  # in one chunk, in several
            x = torch.randn(steps, 1, 70, requires_grad=True)
            before = len(replayed)
            assert_same(lambda x=x, layer=layer: trained(layer, x))
            assert len(replayed) >= before + 2


def test_a_seldom_call_is_not_written_down(replayed: list[int], monkeypatch: Any) -> None:
    written: list[int] = []
    write = again.written
    monkeypatch.setattr(again, "written", lambda *a: (written.append(1), write(*a))[1])
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    for steps in range(2, 9):
        trained(layer, randn(steps, B, I))
    assert not written
    trained(layer, randn(8, B, I))
    assert len(written) == 2
    trained(layer, randn(8, B, I))
    assert len(replayed) == len(written) == 2


def test_numbers_are_read_where_they_lie_now(assert_same: Any, replayed: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    whole = randn(3 * T, B, I)
    assert_same(lambda: trained(layer, whole[:T]))
    for start in (1, T, 2 * T):  # of other memory, or another place in it
        assert_same(lambda start=start: trained(layer, whole[start : start + T]))
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(0.5)
    assert_same(lambda: trained(layer, whole[:T]))
    for p in layer.parameters():
        p.data = randn(p.numel() + 3)[3:].view_as(p)
    assert_same(lambda: trained(layer, whole[:T]))
    flat = randn(sum(p.numel() for p in layer.parameters()))
    at = 0
    for p in layer.parameters():
        p.data, at = flat[at : at + p.numel()].view_as(p), at + p.numel()
    before = len(replayed)
    assert_same(lambda: trained(layer, whole[:T]))
    assert len(replayed) >= before + 6


def test_kinds_that_change_are_noticed(assert_same: Any) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(T, B, I)
    leaf = x.clone().requires_grad_()
    crosswise = randn(B, T, I).transpose(0, 1)
    state = tuple(randn(1, B, H) for _ in range(2))
    turned = tuple(randn(1, H, B).transpose(1, 2) for _ in range(2))
    for _ in range(2):
        for a in (x, leaf, crosswise, x.float().double(), randn(T, B, 2 * I)[..., ::2]):
            for hx in (None, state, turned):
                assert_same(lambda a=a, hx=hx: trained(layer, a, hx))
                assert_same(lambda a=a, hx=hx: trained(layer, a, hx, every=False))
        layer.get_parameter("weight_hh_l0").requires_grad_(False)
        assert_same(lambda: trained(layer, x))
        layer.get_parameter("weight_hh_l0").requires_grad_(True)
    layer.requires_grad_(False)
    assert_same(lambda: trained(layer, leaf))


@pytest.mark.parametrize("steps", [1, T])
def test_cotangents_of_all_kinds(steps: int, assert_same: Any, replayed: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(steps, B, I).requires_grad_()
    losses: list[Callable[[Tensor, Any], Tensor]] = [
        lambda y, _: y.sum(),
        lambda y, _: y[0].sum(),
        lambda y, _: (y * y).mean(),
        lambda y, _: (y.transpose(0, 1) * randn_like(y.transpose(0, 1))).sum(),
        lambda _, s: s[0].sum(),
        lambda _, s: (s[1] * s[1]).sum(),
        lambda y, s: y.sum() + s[0].sum() + s[1].sin().sum(),
        lambda y, _: torch.complex(y, y.exp()).conj().imag.sum(),
    ]
    for _ in range(2):
        for loss in losses:
            assert_same(lambda loss=loss: [*torch.autograd.grad(loss(*layer(x)), leaves(layer, x))])
    assert len(replayed) > 20


def randn_like(tensor: Tensor) -> Tensor:
    return torch.linspace(0, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


def test_what_hooks_hand_over(assert_same: Any) -> None:
    """Between the passes: memory of another layout, dtype or offset."""
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()
    assert_same(lambda: trained(layer, x))

    def apart(tensor: Tensor) -> Tensor:
        whole = torch.full((*tensor.shape, 2), float("nan"), dtype=tensor.dtype)
        whole[..., 1] = tensor
        return whole[..., 1]

    def behind(tensor: Tensor) -> Tensor:
        whole = torch.full((tensor.numel() + 7,), float("nan"), dtype=tensor.dtype)
        whole[7:] = tensor.reshape(-1)
        return whole[7:].view(tensor.shape)

    for pack in (apart, behind, torch.clone):

        def call(pack: Any = pack) -> list[Any]:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: pack(t.detach()), lambda t: t):
                return trained(layer, x)

        assert_same(call)
    assert_same(lambda: trained(layer, x))


def test_what_is_in_force_is_noticed(assert_same: Any, afresh: Any) -> None:
    layer = flexrnn.LSTM(40, 20)
    x = torch.randn(T, 70, 40, requires_grad=True)
    assert_same(lambda: trained(layer, x))
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            assert_same(lambda: trained(layer, x))
        finally:
            torch.set_num_threads(threads)
    output = layer(x)[0]

    def cast() -> list[Any]:
        with torch.autocast("cpu"):
            return [*torch.autograd.grad(output.sum(), leaves(layer, x), retain_graph=True)]

    assert_same(cast)
    for call in (lambda: trained(layer, x), cast):
        expected = afresh(call)
        found: list[Any] = []
        thread = threading.Thread(target=lambda call=call, found=found: found.extend(call()))
        thread.start()
        thread.join()
        assert_close(found, expected, rtol=0, atol=0)


def test_a_mode_of_somebodys_sees_what_is_done(replayed: list[int]) -> None:
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 1
            return func(*args, **kwargs or {})

    layer, x = flexrnn.LSTM(I, H, dtype=torch.float64), randn(T, B, I)
    counts = []
    for _ in range(3):
        with Counting() as mode:
            trained(layer, x)
        counts.append(mode.calls)
    assert len(replayed) == 1  # the way back: torch puts modes aside in `autograd.grad`
    assert counts[1] == counts[2]


def test_derivatives_of_derivatives_and_graphs_that_stay(assert_same: Any) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()

    def twice() -> list[Any]:
        (first,) = torch.autograd.grad(layer(x)[0].pow(2).sum(), x, create_graph=True)
        return [first.detach(), *torch.autograd.grad(first.pow(2).sum(), leaves(layer, x))]

    def retained() -> list[Any]:
        a, b = layer(x)[0], layer(x * 2)[0]
        found = []
        for y in (a, b, a, b):
            found += torch.autograd.grad(y.sum(), leaves(layer, x), retain_graph=True)
        return found

    def checkpointed() -> list[Any]:
        y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
        return [*torch.autograd.grad(y.sin().sum(), leaves(layer, x))]

    for call in (twice, retained, checkpointed):
        assert_same(lambda: trained(layer, x))
        assert_same(call)


def test_results_are_nobody_elses_memory(replayed: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()
    results = [trained(layer, x) for _ in range(5)]
    assert len(replayed) == 6
    kept = [tensor.clone() for tensor in results[2]]
    for result in results[3:]:
        for tensor in result:
            tensor.fill_(7)
    assert_close(results[2], kept, rtol=0, atol=0)
    trained(layer, x)
    assert_close(results[2], kept, rtol=0, atol=0)
    output, (h, _) = layer(x)
    h.add_(1)
    output.sum().backward()
    layer(x)[0].mul_(2)


def test_memory_that_is_not_filled_is_filled_where_that_is_asked(assert_same: Any) -> None:
    """With a NaN wherever a result is forgotten."""
    layer = flexrnn.LSTM(I, H, 2, dtype=torch.float64)
    x = randn(T, B, I).requires_grad_()
    torch.use_deterministic_algorithms(False)
    try:
        for _ in range(5):
            trained(layer, x)
    finally:
        torch.use_deterministic_algorithms(True)  # as every test has it
    assert_same(lambda: trained(layer, x))
    assert all(tensor.isfinite().all() for tensor in trained(layer, x))


def test_several_threads_train_one_layer(on_four_threads: Any, replayed: list[int]) -> None:
    layer = flexrnn.LSTM(I, H, 2, dtype=torch.float64)
    xs = [randn(T, B, I).requires_grad_() for _ in range(4)]
    expected = [trained(layer, x) for x in xs]
    wrong: list[int] = []

    def run(k: int) -> None:
        with flexrnn.backend("cpu"):
            for n in range(50):
                found = trained(layer, xs[(n + k) % 4])
                if not all(map(torch.equal, found, expected[(n + k) % 4])):
                    wrong.append(n)

    on_four_threads(run)
    assert not wrong
    assert len(replayed) >= 700


def test_training_is_that_of_the_reference() -> None:
    torch.manual_seed(0)
    x, target = randn(T, B, I), randn(T, B, H)
    ends = []
    for engine in ("cpu", "reference"):
        torch.manual_seed(1)
        layer = flexrnn.LSTM(I, H, 2, dtype=torch.float64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        with flexrnn.backend(engine):
            for _ in range(20):
                optimizer.zero_grad()
                (layer(x)[0] - target).pow(2).mean().backward()
                optimizer.step()
        ends.append([p.detach() for p in layer.parameters()])
    assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-13)
