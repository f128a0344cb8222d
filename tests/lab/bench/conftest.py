"""A wrong engine, cells to be named, and the smallest runs of `flexrnn bench`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from flexrnn.engine import engines, interpreter
from flexrnn.lab.bench import apart, flops
from flexrnn.lab.cli import app

CELLS = """
from torch import tanh
import torch, flexrnn
from flexrnn.cells import HiddenState, LSTMCell, RNNCell


class Leaky(RNNCell):
    def step(self, x, state):
        new = tanh(x @ self.weight_ih.T + state.h @ self.weight_hh.T)
        return HiddenState(h=0.5 * state.h + 0.5 * new)


class Branching(RNNCell):  # no program
    def step(self, x, state):
        h = state.h if x.sum() > 0 else -state.h
        return HiddenState(h=tanh(x @ self.weight_ih.T + h @ self.weight_hh.T))


class Broken(RNNCell):
    def step(self, x, state):
        raise ArithmeticError("no such step")


number = 3
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither processes of their own nor large products: they take seconds."""

    def memory(case: Any, who: int, *_: Any) -> dict[str, Any]:
        return {"bytes": (3 if who else 1) << 20}

    def times(
        case: Any, size: Any, mode: str, dtype: Any, backend: str, seconds: float, seed: int
    ) -> dict[str, Any]:
        return apart._timed(case, size, mode, dtype, seconds, seed)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(apart, "times", times)
    monkeypatch.setattr(apart, "side_by_side", lambda *_: True)
    monkeypatch.setattr(apart, "memory", memory)
    monkeypatch.setattr(apart, "first_use", lambda *_: {"empty": 2.0, "full": 1.0})
    monkeypatch.setattr(flops, "EDGES", (64,))
    monkeypatch.setattr(flops, "PEAK_SECONDS", 0.0)


@pytest.fixture
def invoke(small: None) -> Callable[..., Result]:
    """Run `flexrnn bench` in this process, by the interpreter and for no time."""

    def call(*arguments: Any) -> Result:
        given = [str(argument) for argument in arguments]
        for name, value in (
            ("--size", "2,3,4,5"), ("--seconds", "0"), ("--backend", "interpreter")
        ):  # fmt: skip
            if name not in given:
                given += [name, value]
        return CliRunner().invoke(app, ["bench", *given], env={"COLUMNS": "80"})

    return call


@pytest.fixture
def found(invoke: Callable[..., Result], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run it and read its JSON, which must be the strictest JSON."""

    def call(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
        result = invoke("--out", tmp_path / "out", *arguments)
        assert result.exit_code == exit_code, result.output
        (path,) = (tmp_path / "out").glob("*.json")
        return json.loads(path.read_text(), parse_constant=pytest.fail)

    return call


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with cells of a person's own, from which the command is typed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_cells.py").write_text(CELLS)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_cells", raising=False)
    return folder


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plant a mistake into the interpreter: in `forward`, or in the gradient of one operand."""

    def plant(where: str, by: float = 1e-4) -> None:
        def twisted(tensor: Tensor) -> Tensor:
            return tensor + by * torch.ones_like(tensor)

        class Wrong:
            prepare = staticmethod(interpreter.prepare)
            saved_like = staticmethod(interpreter.saved_like)

            @staticmethod
            def forward(*args: Any, **kwargs: Any) -> Any:
                run = interpreter.forward(*args, **kwargs)
                if where != "forward":
                    return run
                return run._replace(final=tuple(map(twisted, run.final)))

            @staticmethod
            def backward(*args: Any, **kwargs: Any) -> Any:
                gradients = interpreter.backward(*args, **kwargs)
                return {n: twisted(g) if n == where else g for n, g in gradients.items()}

        monkeypatch.setitem(engines.ENGINES, "interpreter", Wrong())

    return plant
