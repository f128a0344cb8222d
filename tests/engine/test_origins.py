"""The source that a person reads says of its formulas from which of their lines they are."""

import ast
import re
from inspect import getsourcelines
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import flexrnn
from flexrnn import Cell
from flexrnn.engine import engines
from flexrnn.engine.compiler.called import with_names
from flexrnn.engine.compiler.program import Program, dumps, loads
from flexrnn.engine.cpu import cpp
from flexrnn.engine.cpu.build import toolchain
from flexrnn.engine.cpu.build.isa import machine
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


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
class TestNames:
    def test_values_have_the_names_of_the_step(self, engine: str, program: Program) -> None:
        source, mark = engines.source(engine, program, torch.float32), MARKS[engine]
        there, back = source.split("The backward loop")
        # In C++ the frame is `f` and the units of a tail are `n`: another gets a number.
        f, n = ("f_1", "n_1") if engine == "cpu" else ("f", "n")
        assert re.search(
            rf"\b{f} = sigmoid\(\w+\);?  {mark} line {LINE['f']}$", there, re.MULTILINE
        )
        assert re.search(rf"\b{n} = tanh\(\w+\);?  {mark} line {LINE['n']}$", there, re.MULTILINE)
        assert re.search(
            rf"\bh(_1)? = \w+ \+ \w+;?  {mark} line {LINE['return']}$", there, re.MULTILINE
        )
        for name in ("df", "dn"):
            assert re.search(rf"\b{name}(_\d)? = ", back)


def test_what_a_person_reads_could_be_compiled() -> None:
    """C++, whatever the step calls its variables."""
    layer = flexrnn.FlexRNN(Reserved, 3, 5)
    source = flexrnn.explain(layer, torch.randn(4, 2, 3)).steps[0].source
    isa = machine()
    common = cpp.common("float", isa, ())
    for loop in re.split(r"^// The backward loop\.$", source, flags=re.MULTILINE):
        toolchain.library(cpp.prologue("float", isa) + "\n" + loop, common=common)


def test_python_reads_the_triton_that_a_person_reads() -> None:
    layer = flexrnn.FlexRNN(Reserved, 3, 5)
    program = flexrnn.explain(layer, torch.randn(4, 2, 3)).steps[0].program
    assert program is not None
    ast.parse(engines.source("cuda", program, torch.float32))


class Reserved(Minimal):
    """Whose variables have names that mean something else in the languages, or in their sources."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(input_size, hidden_size, *args, **kwargs)
        self.add_module("0", torch.nn.Linear(hidden_size, hidden_size))

    def step(self, x: torch.Tensor, state: MinimalState) -> MinimalState:
        f, REAL = torch.cat([self.gate(torch.cat([x, state.h], 1)), state.h], 1).chunk(2, 1)
        double = f * 2.0
        new = double.tanh()
        new += REAL
        tl, r, tile = new.exp(), new * f, new + f
        σ = torch.sigmoid(tl + r + tile)
        friend, __typeof__ = self.get_submodule("0")(σ), σ.cos()
        return MinimalState(friend * new * __typeof__)


def test_a_variable_is_called_as_who_called_knows_it() -> None:
    def halved(given: torch.Tensor) -> torch.Tensor:
        return given * 0.5 + 1.0

    def step(x: torch.Tensor, state: MinimalState) -> MinimalState:
        total = x + state.h
        half = halved(total)
        left, right = half.sin(), half.cos()
        return MinimalState((left * right).tanh())

    layer = flexrnn.FlexRNN(Stepping, 5, 5, function=step)
    source = flexrnn.explain(layer, torch.randn(4, 2, 5)).steps[0].source
    told = ("total = x + h", "half = v3 + broadcast(1)", "left = sin(half)", "right = cos(half)")
    for formula in (*told, "h_1 = tanh(v7)"):
        assert f"const vec {formula};" in source, formula
    assert "vec given" not in source


def test_a_step_that_reads_its_variables_is_not_disturbed() -> None:
    def step(x: torch.Tensor, state: MinimalState) -> MinimalState:
        own = locals()
        y = (x * 2).sin()
        return MinimalState(y * len(own) + state.h)

    layer, x = flexrnn.FlexRNN(Stepping, 5, 5, function=step), torch.randn(4, 2, 5)
    found = []
    for engine in ("cpu", "reference"):
        with flexrnn.backend(engine):
            found.append(layer(x)[0])
    torch.testing.assert_close(*found)


def test_odd_files_and_variables_are_no_matter() -> None:
    class Gone:
        """Stands for something that is there no more."""

        @property
        def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise ReferenceError("it is gone")

    there: dict[str, Any] = {"State": MinimalState, "Gone": Gone}
    text = "def step(x, state):\n    odd = Gone()\n    y = x.sin()\n    return State(y * state.h)\n"
    exec(compile(text, "/nowhere/a\tv2.py", "exec"), there)
    layer = flexrnn.FlexRNN(Stepping, 5, 5, function=there["step"])
    (step,) = flexrnn.explain(layer, torch.randn(4, 2, 5)).steps
    assert "const vec y = sin(x);  // line 3" in step.source


def test_names_stay_out_of_remarks() -> None:
    text = "v0 = v1 * line  // v1.py:3, line"
    names = {"v0": "line", "v1": "h", "acc": "c", "v2": "1a"}
    assert with_names(text, names, ["h"], "// ") == "line_1 = h_1 * line  // v1.py:3, line"


def test_results_of_unlike_kinds_have_no_names() -> None:
    """In which order a cell of torch's computes its two states is not known."""
    layer = flexrnn.FlexRNN(Inner, 5, 5)
    source = flexrnn.explain(layer, torch.randn(4, 2, 5)).steps[0].source
    assert not re.search(r"vec [hc]y(_\d)? =", source)
    assert "vec both = " in source


class Inner(Minimal):
    """With a cell of torch's."""

    def __init__(self, input_size: int, hidden_size: int, **_: Any):
        super().__init__(input_size, hidden_size)
        self.cell = torch.nn.LSTMCell(input_size, hidden_size)

    def step(self, x: torch.Tensor, state: MinimalState) -> MinimalState:
        hy, cy = self.cell(x, (state.h, state.h))
        both = hy + cy * 0.5
        return MinimalState(both.tanh())


class Stepping(Cell):
    """A cell of a function."""

    State = MinimalState

    def __init__(self, input_size: int, hidden_size: int, function: Any = None, **_: Any):
        super().__init__(input_size, hidden_size)
        self.function = function

    def step(self, x: torch.Tensor, state: MinimalState) -> MinimalState:
        return self.function(x, state)


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
