"""`compile`: afterwards no compiler runs, and nothing else has changed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler import passes
from flexrnn.engine.cpu import engine, kernel, plan
from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.toolchain import Toolchain

from .lru import LRUCell, UnitaryCell
from .quickly import OPTIONS

I, H = 3, 5


@pytest.fixture(autouse=True)
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is compiled yet. Yields the loops that are, which here need not be fast."""
    texts: list[str] = []
    toolchain, compile_object = Toolchain(), compiler.compile_object

    def noted(found: Any, isa: Any, source: str, folder: Path, name: str) -> Path:
        if name == "step":
            texts.append(source)
        return compile_object(found, isa, source, folder, name)

    monkeypatch.setenv("FLEXRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "OPTIONS", OPTIONS)
    monkeypatch.setattr(compiler, "compile_object", noted)
    monkeypatch.setattr(kernel, "library", toolchain.library)
    monkeypatch.setattr(engine, "library", toolchain.library)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    monkeypatch.setattr(passes, "_programs", {})
    return texts


def every_call(layer: flexrnn.FlexRNN, marks: Callable[[int, int], dict[str, Any]]) -> None:
    """Sizes, modes and gradients as a person may come with them."""
    dtype = layer.all_weights[0][0].dtype
    for T, B, x_learns, state_learns in [
        (20, 1, False, False),
        (3, 2, True, True),
        (9, 7, True, False),
        (3, 64, False, True),
    ]:
        axes = (B, T) if layer.batch_first else (T, B)
        x = torch.randn(*axes, I, dtype=dtype, requires_grad=x_learns)
        hx = torch.randn(len(layer.cells), B, H, dtype=dtype, requires_grad=state_learns)
        hx = hx if len(layer.cells[0].State._fields) == 1 else (hx, hx)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]  # a Cell
        for training in (False, True):
            layer.train(training)
            with torch.no_grad():
                layer(x)
            for state in (None, hx):
                output, *_ = layer(x, state, **marks(T, B))
                output.sum().backward()
    if not layer.bidirectional:
        state = None
        with torch.no_grad():
            for x in torch.randn(3, 2, I, dtype=dtype):
                _, state = layer.eval().step(x, state)
    if marks(2, 1):
        layer(pack_sequence([torch.randn(4, I, dtype=dtype)] * 2))


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, bool]]] = {
    "plain": (cells.LSTMCell, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}, {}),
    "regularized": (
        cells.GRUCell,
        {"zoneout": 0.2, "recurrent_dropout": 0.3, "learn_initial_state": True},
        {},
    ),
    "marked": (
        cells.RNNCell,
        {"batch_first": True, "dtype": torch.float64, "checkpoint_every": 2},
        {"lengths": True, "reset": True, "return_states": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cache", [0, 1])
def test_afterwards_no_call_runs_the_compiler(
    compiled: list[str], name: str, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "last_cache", lambda: cache)  # no weights are far, or all
    cell, options, asked = CASES[name]
    layer = flexrnn.FlexRNN(cell, I, H, backend="cpu", **options)
    assert flexrnn.compile(layer, **asked) is layer
    before = len(compiled)
    assert before >= 4  # forward and backward, for one row and for more
    assert len(set(compiled)) == before

    def marks(T: int, B: int) -> dict[str, Any]:
        given = {
            "lengths": torch.randint(1, T + 1, (B,)),
            "reset": torch.rand(B, T) < 0.5,
            "return_states": True,
        }
        return {key: value for key, value in given.items() if key in asked}

    every_call(layer, marks)
    assert len(compiled) == before


def test_without_it_the_first_calls_run_the_compiler(compiled: list[str]) -> None:
    layer = flexrnn.RNN(I, H, backend="cpu")
    layer(torch.randn(4, 2, I))
    assert compiled


class Counting(flexrnn.Cell):
    """A cell with a buffer, and a part that stays in evaluation mode."""

    State = cells.HiddenState
    scale: Tensor

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, device=device, dtype=dtype)
        self.drop = nn.Dropout(0.5).eval()
        self.register_buffer("scale", torch.rand(hidden_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState(torch.tanh(self.drop(self.inner(x)) + self.scale * state.h))


def test_nothing_else_changes() -> None:
    layer = flexrnn.FlexRNN(Counting, I, H, zoneout=0.5)
    model = nn.Sequential(layer, nn.Dropout())
    model[1].eval()
    met: list[str] = []
    layer.register_forward_hook(lambda *_: met.append("forward"))
    layer.register_full_backward_hook(lambda *_: met.append("backward"))
    for parameter in layer.parameters():
        parameter.register_hook(lambda _: met.append("gradient"))
    modes = [module.training for module in model.modules()]
    state, kept = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        assert flexrnn.compile(model) is model
        assert torch.is_inference_mode_enabled()
    assert met == []
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(kept, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())
    output, _ = layer(torch.randn(4, 2, I, requires_grad=True))  # nor is it spoilt
    output.sum().backward()
    assert set(met) == {"forward", "gradient", "backward"}


class Sorting(Counting):
    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState((state.h.tanh() / 2).erfinv() + x.sum(-1, True))  # the line


LINE = next(k for k, line in enumerate(Path(__file__).read_text().splitlines(), 1)
            if "# the line" in line)  # fmt: skip


def test_what_cannot_be_compiled_raises() -> None:
    complex_ = flexrnn.GRU(I, H)
    for p in complex_.parameters():
        p.data = p.data.to(torch.complex64)
    with pytest.raises(RuntimeError, match=rf"aten\.erfinv.*at {__file__}:{LINE}"):
        flexrnn.compile(flexrnn.FlexRNN(Sorting, I, H))
    with pytest.raises(RuntimeError, match=r"expected h to keep its dtype .* got torch\.complex64"):
        flexrnn.compile(complex_)  # it is given real input
    with pytest.raises(RuntimeError, match="runs on the CPU, got tensors on meta"):
        flexrnn.compile(flexrnn.GRU(I, H, device="meta"))


def test_a_missing_compiler_is_an_error_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="CXX: expected a C"):
        flexrnn.compile(flexrnn.GRU(I, H))


def test_frozen_parameters_need_no_backward(compiled: list[str]) -> None:
    flexrnn.compile(flexrnn.RNN(I, H).requires_grad_(False))
    assert compiled


def test_arguments_that_do_not_fit(refused: Callable[..., None]) -> None:
    without = "model: expected a FlexRNN or a module with one, got "
    for model, told in [(nn.Linear(2, 3), "a Linear without"), (torch.relu, "builtin_...")]:
        refused(lambda m=model: flexrnn.compile(m), TypeError, without + told)
    layer = flexrnn.GRU(I, H)
    wrong: Any = torch.tensor([1])
    refused(
        lambda: flexrnn.compile(layer, lengths=wrong),
        TypeError,
        "lengths: expected a bool, got Tensor",
    )


@pytest.mark.parametrize("cell", [LRUCell, UnitaryCell])
def test_complex_states_are_prepared(cell: Any, compiled: list[str]) -> None:
    layer = flexrnn.compile(flexrnn.FlexRNN(cell, I, H, num_layers=2))
    assert compiled
    compiled.clear()
    state = None
    for learns in (False, True):
        x = torch.randn(7, 2, I, requires_grad=learns)
        output, state = layer(x, state)
        output.abs().sum().backward()
        fields = (state,) if isinstance(state, Tensor) else state
        learned = [field.detach().requires_grad_(learns) for field in fields]
        state = learned[0] if len(learned) == 1 else tuple(learned)
    with torch.no_grad():
        layer.step(x[0])
    assert not compiled
