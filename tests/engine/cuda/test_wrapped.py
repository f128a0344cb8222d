"""A source as a person reads it is the one that is launched, but for where its lines end."""

import ast

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda.emit.wrapped import wrapped
from flexrnn.engine.cuda.plan import plan_of

LAYERS = [flexrnn.LSTM, flexrnn.GRU, flexrnn.LayerNormLSTM]


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [5, 300])
def test_nothing_but_the_ends_of_lines_is_changed(kind: type, size: int) -> None:
    program = flexrnn.explain(kind(3, size), torch.randn(2, 2, 3)).steps[0].program
    assert program is not None
    plan = plan_of(program, program.fields[:1], torch.float32)
    assert plan.backward is not None
    for loop in (plan.forward.source(), plan.backward.source()):
        for text in (loop.sequence.text, loop.grid.text, loop.steps.text):
            short = wrapped(text)
            assert ast.dump(ast.parse(short)) == ast.dump(ast.parse(text))
            assert len(text.splitlines()) < len(short.splitlines())
            heads = [line for line in short.splitlines() if line.lstrip().startswith("def ")]
            assert max(map(len, heads)) <= 100


def test_an_argument_stays_in_one_piece() -> None:
    line = f"    a = f({', '.join(f'x{k} + {k} * y' for k in range(20))})"
    first, *rows, last = wrapped(line).split("\n")
    assert (first, last) == ("    a = f(", "    )")
    assert all(row.startswith("        x") and len(row) <= 100 for row in rows)
    assert wrapped("short(a, b)") == "short(a, b)"
