"""What a person reads of a program: every stage, whole, on one screen."""

import re
from typing import Any

import torch

import flexrnn
from flexrnn import cells
from flexrnn.engine.compiler.pretty import pretty

STAGES = ["trace", "merge", "split", "autodiff", "schedule"]
NO_NAMES = r"\w+(?=\()|\w+(?==)|(?<![\w.])\d[\d.]*(?:e[+-]\d+)?"  # functions, options, numbers


def stages_of(cell: Any) -> dict[str, str]:
    layer = flexrnn.FlexRNN(cell, 3, 5)
    return dict(flexrnn.explain(layer, torch.randn(4, 2, 3), stages=True).steps[0].stages)


def test_the_program_of_an_lstm_fits_on_one_screen() -> None:
    lines = stages_of(cells.LSTMCell)["schedule"].splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 88


def test_no_formula_is_longer_than_a_line(cell_class: Any) -> None:
    for text in stages_of(cell_class).values():
        assert max(map(len, text.splitlines())) <= 100


def test_the_text_of_an_explanation_has_every_stage_of_every_step_in_order() -> None:
    layer = flexrnn.LSTM(3, 5, num_layers=2, bidirectional=True)
    text = str(flexrnn.explain(layer, torch.randn(4, 2, 3), stages=True))
    heads = re.findall(r"^(layer .*), after (\w+) -+$", text, re.MULTILINE)
    steps = ["layer 0", "layer 0 reverse", "layer 1", "layer 1 reverse"]
    assert heads == [(step, stage) for step in steps for stage in STAGES]


def test_a_name_is_explained_before_it_is_used(cell_class: Any) -> None:
    """By an earlier formula, or it is an input, a state, a parameter or a derivative of these."""
    cell = cell_class(3, 5)
    parameters = {name for name, _ in cell.named_parameters()}
    fields = cell.State._fields
    given = {"x", *fields, *(f"d{field}" for field in fields), *parameters}
    for stage, text in stages_of(cell_class).items():
        known = set(given)
        for row in (row.strip() for row in text.splitlines()):
            if " = " not in row:
                continue
            *names, formula = row.removesuffix("(saved)").rstrip().split(" = ")
            formula = re.sub(r"\([\w, ]*\)$", "", formula)  # the shape
            used = set(
                re.findall(r"[A-Za-z_][\w.]*", re.sub(NO_NAMES, "", formula.replace(".T", "")))
            )
            assert used - {"B"} <= known, (stage, row)
            known.update(names)


def test_saved_values_are_marked_and_counted(cell_class: Any, program_of: Any) -> None:
    program = program_of(cell_class(3, 5))
    text = pretty(program)
    loop = re.search(r"^the loop, step by step\n((?:    .*\n)+)", text, re.MULTILINE)
    assert loop
    marked = [row for row in loop[1].splitlines() if row.endswith("(saved)")]
    in_loop = set(program.schedule.saved) & set(program.schedule.loop)
    assert len(marked) == len(in_loop)
    count = re.search(r"saved for the backward pass: (\d+) numbers a step$", text)
    assert count
    widths = (program.graph.nodes[i].shape[1:] for i in program.schedule.saved)
    assert int(count[1]) == sum(int(torch.Size(map(int, w)).numel()) for w in widths)


def test_formulas_keep_their_brackets(function_layer: Any) -> None:
    layer = function_layer(lambda c, z, h: (h - (z - h)) * -(z + h) / ((z * h) / (h * h) + 1))
    (step,) = flexrnn.explain(layer, torch.randn(4, 2, 3).double(), stages=True).steps
    text = dict(step.stages)["trace"].splitlines()[-1]
    assert text.startswith("h' = (h - (z - h)) * (-(z + h)) / (z * h / (h * h) + 1)")
