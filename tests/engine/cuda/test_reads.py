"""What a step only reads comes first: among stores, each read would wait for the one before."""

import re

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import engine

BEGIN = re.compile(r"    for t in range\(T\):\n|def stage\d+\(.*\n")  # of a step, or of a stage
INPUT = re.compile(r"(\w+) = tl\.load\((?:hoisted|saved|grad_)\w* ")


def steps(layer: flexrnn.FlexRNN, dtype: torch.dtype) -> list[list[list[str]]]:
    """Lines of the step of a narrow loop, or of the stages of a wide one; forward, and backward."""
    program = flexrnn.explain(layer, torch.randn(2, 3, layer.input_size)).steps[0].program
    assert program is not None
    loops = engine.source(program, dtype).split("# The backward loop.")
    bodies = [[b.splitlines() for b in BEGIN.split(loop)[1:] if "tl.store" in b] for loop in loops]
    return [[b for b in found if any(map(INPUT.search, b))] for found in bodies]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("H", [64, 200])  # one in registers, one in tiles of 64 and 128
def test_inputs_are_read_before_all_else_and_as_they_lie(H: int, dtype: torch.dtype) -> None:
    for (lines,), inputs in zip(steps(flexrnn.LSTM(4, H), dtype), (4, 5), strict=True):
        read = {found[1]: at for at, line in enumerate(lines) if (found := INPUT.search(line))}
        others = ("product(", "tl.store(", *(f" {name}.to(" for name in read))
        assert len(read) == inputs
        assert max(read.values()) < min(
            at for at, line in enumerate(lines) if any(other in line for other in others)
        )
