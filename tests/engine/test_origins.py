"""The source that a person reads says of its formulas from which of their lines they are."""

import re
from inspect import getsourcelines
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import flexrnn
from flexrnn import Cell
from flexrnn.engine import engines
from flexrnn.engine.compiler.program import Program, dumps, loads
from flexrnn.engine.cpu.emit import Shape
from flexrnn.engine.cpu.kernel import Kernel
from flexrnn.engine.lowering.extract import extract

FILE = Path(__file__).name
MARKS = {"cpu": "//", "cuda": "#"}


class MinimalState(NamedTuple):
    h: torch.Tensor


class Minimal(Cell):
    """A minimal gated unit."""

    State = MinimalState

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, **kwargs: Any):
        super().__init__(input_size, hidden_size)
        self.gate = torch.nn.Linear(input_size + hidden_size, hidden_size, bias, **kwargs)
        self.new = torch.nn.Linear(input_size + hidden_size, hidden_size, bias, **kwargs)

    def step(self, x: torch.Tensor, state: MinimalState) -> MinimalState:
        h = state.h
        f = torch.sigmoid(self.gate(torch.cat([x, h], 1)))
        n = torch.tanh(self.new(torch.cat([x, f * h], 1)))
        return MinimalState((1 - f) * h + f * n)


LINES, FIRST = getsourcelines(Minimal.step)
LINE = {text.split()[0]: FIRST + k for k, text in enumerate(LINES)}  # of `f = ...`, `n = ...`


@pytest.fixture(scope="module")
def program() -> Program:
    layer = flexrnn.FlexRNN(Minimal, 3, 5)
    found = flexrnn.explain(layer, torch.randn(4, 2, 3)).steps[0].program
    assert found is not None
    return found


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
class TestSource:
    def test_a_formula_names_its_line(self, engine: str, program: Program) -> None:
        source, mark = engines.source(engine, program, torch.float32), MARKS[engine]
        there, back = source.split("The backward loop")
        for loop in (there, back):
            named = set(re.findall(rf"\S.*  {mark} line (\d+)$", loop, re.MULTILINE))
            assert {int(line) for line in named} == {LINE["f"], LINE["n"], LINE["return"]}
        assert re.search(rf"= sigmoid\(\w+\);?  {mark} line {LINE['f']}$", there, re.MULTILINE)
        assert re.search(rf"= tanh\(\w+\);?  {mark} line {LINE['n']}$", there, re.MULTILINE)

    def test_the_lines_stand_above(self, engine: str, program: Program) -> None:
        head = engines.source(engine, program, torch.float32).split("\n\n")[0].splitlines()
        texts = [LINES[LINE[word] - FIRST].strip() for word in ("f", "n", "return")]
        numbers = (LINE[word] for word in ("f", "n", "return"))
        rows = zip(numbers, texts, strict=True)
        assert f" the line of {FILE} that " in head[0]
        assert head[1:] == [f"{MARKS[engine]}     line {k}  {text}" for k, text in rows]

    def test_a_program_from_a_text_knows_none(self, engine: str, program: Program) -> None:
        source = engines.source(engine, loads(dumps(program)), torch.float32)
        assert source.startswith(f"{MARKS[engine]} The forward loop.")
        assert " line " not in source


class Helped(Minimal):
    """With a function of another file, which is gone."""

    def step(self, x: torch.Tensor, state: MinimalState) -> MinimalState:
        return MinimalState(GONE["halved"](super().step(x, state).h))


GONE: dict[str, Any] = {}
exec(compile("def halved(x):\n    return x * 0.5\n", "/nowhere/gone.py", "exec"), GONE)


def test_lines_of_two_files_have_names() -> None:
    layer = flexrnn.FlexRNN(Helped, 3, 5)
    (step,) = flexrnn.explain(layer, torch.randn(4, 2, 3)).steps
    head, *_ = step.source.split("\n\n")
    assert f"the line of gone.py, {FILE} that" in head
    assert "//     gone.py:2" in head.splitlines()
    assert re.search(r"\* broadcast\(0.5\);  // gone.py:2$", step.source, re.MULTILINE)
    assert f"  // {FILE}:{LINE['f']}" in step.source


def test_what_is_compiled_names_no_line(program: Program) -> None:
    """Else equal loops of two files would be two libraries."""
    assert program.graph.sources
    parts = extract(program, hoist=False, keep=program.fields[:1])
    for part, backward in ((parts.forward, False), (parts.backward, True)):
        assert part is not None
        kernel = Kernel(part.graph, shape=Shape.ROWS, dtype=torch.float32, backward=backward)
        assert "// line" not in kernel.text


def test_what_the_layer_adds_is_no_line_of_the_step() -> None:
    """Zoneout is no line of the step, and least of all the line that calls the layer."""
    layer = flexrnn.FlexRNN(Minimal, 3, 5, zoneout=0.1)
    (step,) = flexrnn.explain(layer, torch.randn(4, 2, 3)).steps
    named = {int(line) for line in re.findall(r"// line (\d+)$", step.source, re.MULTILINE)}
    assert named == {LINE["f"], LINE["n"], LINE["return"]}
