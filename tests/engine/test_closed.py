"""A step of `scan` may close over tensors and modules, or be a method of one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from flexrnn import backend, scan
from flexrnn.engine import closed
from flexrnn.engine.compiler import passes
from flexrnn.engine.compiler.refusal import CannotCompileError

T, B, I, H = 4, 3, 2, 5
Made = tuple[Callable[..., Any], list[Tensor]]  # a step, and the tensors that it learns


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


class Reservoir(nn.Module):
    """What keeps its weights in all the places where modules do."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = weight_norm(nn.Linear(I, H, dtype=torch.float64))
        self.gains = nn.ParameterList([torch.ones(H, dtype=torch.float64) for _ in range(2)])
        self.plain = [randn(H, H)]
        self.mask = torch.ones(H, dtype=torch.float64)
        self.act = self.squash
        self.register_buffer("scale", torch.full((H,), 0.7, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2))
        self.leak, self.last, self.seen = 0.5, None, 0

    def squash(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale) if self.training else x * self.scale

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        new = self.act(self.inner(x) + h @ self.plain[0] * self.gains[1])
        return self.leak * h * self.mask + new * self.gains[0]

    def counting(self, x: Tensor, h: Tensor) -> Tensor:
        self.seen += 1
        return self.step(x, h)


def weights() -> Made:
    w, u, lists = randn(I, H), randn(H, H), {"b": [randn(H)]}

    def squash(z: Tensor) -> Tensor:
        return torch.tanh(z + lists["b"][0])

    return lambda x, h: squash(x @ w + h @ u), [w, u, lists["b"][0]]


def bound() -> Made:
    made = Reservoir()
    learnt = [p for name, p in made.named_parameters() if name != "unused"]
    return made.step, [*learnt, made.plain[0]]


def partially() -> Made:
    w, u = randn(I, H), randn(H, H)

    def step(x: Tensor, h: Tensor, w: Tensor, *, u: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(x @ w + h @ u + bias)

    made: Any = partial(lambda w, x, h, u, bias: step(x, h, w, u=u, bias=bias), w, u=u, bias=u[0])
    return made, [w, u]


def of_module(make: Callable[[], nn.Module]) -> Made:
    module = make().double()
    return (lambda x, h: module(x, h)), [*module.parameters()]


def twice() -> Made:
    linear, inner = nn.Linear(H, H).double(), nn.Linear(I, H).double()
    both = nn.Sequential(linear, nn.Tanh(), linear)
    return (lambda x, h: both(h) + inner(x) + linear(h)), [*both.parameters(), *inner.parameters()]


def layers() -> Made:
    inner = nn.LSTM(I, H, num_layers=2, bias=False).double()
    return (lambda x, h: inner(x[None])[0][0] + h / 2), [
        *(p for name, p in inner.named_parameters() if "hh" not in name)
    ]


STEPS: dict[str, Callable[[], Made]] = {
    "weights": weights,
    "a method": bound,
    "partial": partially,
    "a module": lambda: of_module(lambda: nn.GRUCell(I, H)),
    "a module twice": twice,
    "layers of torch's": layers,
}


def called(step: Any, learnt: list[Tensor], rows: int = B) -> list[Tensor]:
    torch.manual_seed(1)
    x, h = randn(T, rows, I), randn(rows, H)
    states, final = scan(step, h, x)
    loss = states.square().sum() + final.sum()
    return [states, final, *torch.autograd.grad(loss, [x, h, *learnt])]


@pytest.mark.parametrize("name", STEPS)
def test_what_a_step_closes_over_is_as_params_are(name: str) -> None:
    for _ in range(2):  # others of the same kind
        step, learnt = STEPS[name]()
        for rows in (B, 1, H):
            with backend("reference"):
                right = called(step, learnt, rows)
            for engine in ("interpreter", "cpu"):
                with backend(engine):
                    assert_close(called(step, learnt, rows), right, rtol=1e-11, atol=1e-11)


def test_a_module_may_be_the_step_and_what_it_does_not_use_has_no_gradient() -> None:
    cell, made = nn.RNNCell(I, H).double(), Reservoir()
    with backend("cpu"):
        states, _ = scan(cell, randn(B, H), randn(T, B, I))
        others, _ = scan(made.step, randn(B, H), randn(T, B, I))
    (states.sum() + others.sum()).backward()
    assert cell.weight_hh.grad is not None
    assert made.unused.grad is None


def test_modes_and_options_of_a_module_count() -> None:
    made = Reservoir()
    x, h = randn(T, B, I), randn(B, H)
    for change in (made.eval, made.train, lambda: setattr(made, "leak", 0.2)):
        change()
        with backend("reference"):
            right = scan(made.step, h, x)
        with backend("interpreter"):
            assert_close(scan(made.step, h, x), right, rtol=1e-12, atol=1e-12)


def test_one_tensor_at_two_places_is_another_step_than_two() -> None:
    def sums(w: Tensor, u: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, h: x * w + h * u

    one, other, x, h = randn(H), randn(H), randn(T, B, H), randn(B, H)
    for pair in ((one, one), (one, other), (other, other), (other, one)):
        with backend("reference"):
            right = scan(sums(*pair), h, x)
        with backend("interpreter"):
            assert_close(scan(sums(*pair), h, x), right, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::flexrnn.engine.fallback.FallbackWarning")
def test_a_row_for_every_sequence_is_no_parameter() -> None:
    """What has the batch's size meets rows, and is left to the reference, or right."""
    for rows in (B, 1, H):
        memory, x, h = randn(rows, H), randn(T, rows, H), randn(rows, H)
        with backend("reference"):
            right = scan(lambda x, h, m=memory: torch.tanh(x + h * m), h, x)
        ours = scan(lambda x, h, m=memory: torch.tanh(x + h * m), h, x)
        assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_a_step_that_sets_an_attribute_is_left_to_the_reference() -> None:
    made = Reservoir()
    with backend("interpreter"), pytest.raises(CannotCompileError, match="sets seen of Reservoir"):
        scan(made.counting, randn(B, H), randn(T, B, I))
    assert made.seen == 0
    with backend("reference"):
        scan(made.counting, randn(B, H), randn(T, B, I))
    assert made.seen == T


def test_what_autograd_made_for_another_call_is_not_read() -> None:
    made, x, h = Reservoir(), randn(T, B, I), randn(B, H)
    with backend("cpu"):
        for _ in range(3):
            made.last, _ = scan(made.step, h, x)
            made.last.sum().backward()


def test_a_function_that_is_made_again_is_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, calls = nn.RNNCell(I, H).double(), []
    compiled = passes._compiled  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(passes, "_compiled", lambda *a: calls.append(a) or compiled(*a))
    with backend("interpreter"):
        for _ in range(3):
            scan(lambda x, h: cell(x, h) * 0.5, randn(B, H), randn(T, B, I))
    assert len(calls) == 1


def test_what_is_another_at_every_call_is_not_compiled_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closed, "_MOST", 2)
    made, x, h = Reservoir(), randn(T, B, I), randn(B, H)
    with backend("interpreter"):
        for made.leak in (0.1, 0.2, 0.1):
            scan(made.step, h, x)
        made.leak = 0.3
        with pytest.raises(CannotCompileError, match="a tensor is used that is neither input"):
            scan(made.step, h, x)


def test_functions_of_one_line_are_the_same_as_long_as_the_same_are_one() -> None:
    def make() -> Callable[[Tensor], Tensor]:
        return lambda h: torch.tanh(h)

    def step(chosen: int) -> Callable[[Tensor, Tensor], Tensor]:
        both = (make(), make())
        this = both[chosen]
        return lambda x, h: x + this(h) * (2 if this is both[0] else 3)

    def grows(by: float) -> Callable[[Tensor, Tensor], Tensor]:
        scaled: Callable[[Tensor], Tensor] = lambda h: h * by  # noqa: E731
        return lambda x, h: x + scaled(h)

    x, h = randn(T, B, H), randn(B, H)
    for made in (step(0), step(1), step(0), grows(0.5), grows(0.25), grows(1), grows(True)):
        with backend("reference"):
            right = scan(made, h, x)
        with backend("interpreter"):
            assert_close(scan(made, h, x), right, rtol=1e-12, atol=1e-12)
    assert closed.likeness(grows(1)) != closed.likeness(grows(True))
    assert closed.likeness(step(0)) == closed.likeness(step(0)) != closed.likeness(step(1))
