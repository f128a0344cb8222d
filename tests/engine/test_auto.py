"""`auto`: the fastest engine that can, the reference with one warning; and `explain`."""

import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn import FallbackWarning, cells
from flexrnn.engine import engines, interpreter
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.step import CannotRunError

T, B, I, H = 4, 3, 2, 5
pytestmark = pytest.mark.usefixtures("by_program")


class SortingCell(flexrnn.Cell):
    """Does what no program can say."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState((state.h.tanh() / 2).erfinv() + x.sum(-1, True))  # the line


LINES = Path(__file__).read_text().splitlines()
LINE = next(k for k, line in enumerate(LINES, 1) if "# the line" in line)


@pytest.fixture
def missing(by_program: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine `broken`, first in the order, which finds no compiler."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise CannotRunError("no C++ compiler was found")

    broken = SimpleNamespace(**{**vars(interpreter), "forward": refuse, "prepare": refuse})
    monkeypatch.setitem(engines.ENGINES, "broken", broken)
    monkeypatch.setattr(engines, "AUTO", ("broken", "reference"))


def test_a_step_that_is_a_program_runs_by_the_first_engine(by_program: list[str]) -> None:
    layer, x = flexrnn.LSTM(I, H), torch.randn(T, B, I)
    output, _ = layer(x)
    assert by_program == ["forward"]
    with flexrnn.backend("reference"):
        assert_close(layer(x)[0], output)
    assert by_program == ["forward"]


def test_one_warning_for_one_cause_that_names_operation_and_line() -> None:
    layer, x = flexrnn.FlexRNN(SortingCell, I, H), torch.randn(T, B, I)
    with pytest.warns(FallbackWarning) as caught:  # noqa: PT031
        output, _ = layer(x)
        layer(x)
        flexrnn.FlexRNN(SortingCell, I, H)(x)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "aten.erfinv.default cannot be compiled" in text
    assert f"at {__file__}:{LINE}" in text
    assert 'backend="reference"' in text
    assert caught[0].filename == __file__  # the caller's line, not the library's
    with flexrnn.backend("reference"):
        assert_close(layer(x)[0], output, rtol=0, atol=0)


def test_no_warning_for_whoever_asks_for_the_reference() -> None:
    x = torch.randn(T, B, I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flexrnn.FlexRNN(SortingCell, I, H, backend="reference")(x)
        with flexrnn.backend("reference"):
            flexrnn.FlexRNN(SortingCell, I, H)(x)


def test_a_named_engine_raises_with_operation_file_and_line() -> None:
    layer, x = flexrnn.FlexRNN(SortingCell, I, H, backend="interpreter"), torch.randn(T, B, I)
    with pytest.raises(CannotCompileError, match=rf"erfinv.*at {__file__}:{LINE}"):
        layer(x)
    with flexrnn.backend("auto"), pytest.warns(FallbackWarning):
        layer(x)


def test_a_mistake_in_a_step_is_told_as_the_reference_tells_it() -> None:
    def wrong(x: Tensor, h: Tensor) -> Tensor:
        return h[:, :1]

    with pytest.raises(RuntimeError, match="to stay"):  # and no warning before it
        flexrnn.scan(wrong, torch.zeros(B, H), torch.zeros(T, B, I))


@pytest.mark.usefixtures("missing")
def test_an_engine_that_cannot_run_here() -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    with pytest.warns(FallbackWarning, match="no C\\+\\+ compiler was found") as caught:  # noqa: PT031
        layer(x)
        layer(x)
    assert len(caught) == 1
    with pytest.raises(CannotRunError, match="no C"), flexrnn.backend("broken"):
        layer(x)
    report = flexrnn.explain(layer, x)
    assert report.engine == "reference"
    assert "; not by broken: no C++ compiler was found" in str(report)
    with flexrnn.backend("broken"):
        assert flexrnn.explain(layer, x).engine == "none"


def test_the_next_engine_runs_silently(monkeypatch: pytest.MonkeyPatch, missing: None) -> None:
    monkeypatch.setattr(engines, "AUTO", ("broken", "interpreter", "reference"))
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    assert flexrnn.explain(layer, x).engine == "interpreter"


def test_explain_names_the_engine_or_why_not() -> None:
    x = torch.randn(T, B, I)
    assert "engine: interpreter" in str(flexrnn.explain(flexrnn.LSTM(I, H), x))
    text = str(flexrnn.explain(flexrnn.FlexRNN(SortingCell, I, H), x))
    assert "engine: reference" in text
    assert "aten.erfinv.default cannot be compiled" in text
    assert f"{__file__}:{LINE}" in text
    with flexrnn.backend("reference"):
        assert "engine: reference" in str(flexrnn.explain(flexrnn.LSTM(I, H), x))


class Marked(torch.Tensor):
    """A subclass; what it holds nobody else knows."""


def test_a_tensor_subclass_takes_the_reference() -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    right = layer(x)[0]
    with pytest.warns(FallbackWarning, match="got a .*Marked"):
        output, _ = layer(x.as_subclass(Marked))
    assert isinstance(output, Marked)
    assert_close(output.as_subclass(torch.Tensor), right)
    with pytest.raises(CannotRunError, match="Marked"), flexrnn.backend("interpreter"):
        layer(x.as_subclass(Marked))


def test_by_programs_of_one_dtype_autocast_takes_the_reference(by_program: list[str]) -> None:
    layer, x = flexrnn.GRU(I, H), torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.warns(FallbackWarning, match="bfloat16"):
            output, _ = layer(x)
        with flexrnn.backend("reference"):
            assert_close(output, layer(x)[0], rtol=0, atol=0)
    assert not by_program


def test_tensors_without_numbers_have_shapes() -> None:
    layer = flexrnn.LSTM(I, H, device="meta")
    output, _ = layer(torch.empty(T, B, I, device="meta"))
    assert (output.shape, output.device.type) == ((T, B, H), "meta")


def test_a_block_is_a_threads_own() -> None:
    seen: list[str] = []
    layer, x = flexrnn.FlexRNN(SortingCell, I, H), torch.randn(T, B, I)

    def elsewhere() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer(x)
            seen.extend(str(w.message) for w in caught)

    with flexrnn.backend("reference"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(seen) == 1


def test_explain_refuses_a_layer_of_torchs() -> None:
    with pytest.raises(TypeError, match=r"^layer: expected a FlexRNN, got LSTM$"):
        flexrnn.explain(torch.nn.LSTM(3, 4), torch.randn(5, 2, 3))
    model = torch.nn.Sequential(flexrnn.LSTM(3, 4))
    assert len(flexrnn.explain(model, torch.randn(5, 2, 3)).steps) == 1
