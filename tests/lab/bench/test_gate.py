"""The gate of a bench: which results are right."""

import math
from typing import Any

import pytest
import torch

from flexrnn.lab.bench import gate
from flexrnn.lab.bench.cases import MORE, TABLE, Case, Size, find

SIZE = Size(2, 3, 4, 5)


@pytest.mark.parametrize("case", [*TABLE, *MORE], ids=lambda case: case.key)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_layer_is_right_by_the_interpreter(case: Case, dtype: torch.dtype):
    layer = case.build(case.ours, SIZE, dtype)
    verdict = gate.judge(case, layer, SIZE, dtype, "interpreter")
    assert verdict.right, str(verdict)
    assert verdict.allowed < 1e-5


def test_the_gate_looks_at_every_gradient():
    case = find("lstm")
    layer = case.build(case.ours, SIZE, torch.float64)
    names = set(gate.numbers(case, layer, case.given(SIZE, torch.float64), "reference"))
    weights = {f"the gradient of {name}" for name, _ in layer.named_parameters()}
    outputs = {"the output", "the output without gradients", "the final state"}
    assert names == {"the gradient of x"} | weights | outputs


@pytest.mark.parametrize(("error", "right"), [(1e-11, False), (1e-13, True)])
def test_float64_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch, error: float, right: bool):
    case, numbers = find("gru"), gate.numbers

    def off(case: Any, layer: Any, given: Any, backend: str) -> Any:
        found = numbers(case, layer, given, "reference")
        factor = 1 + error if backend == "interpreter" else 1
        return {name: tensor * factor for name, tensor in found.items()}

    monkeypatch.setattr(gate, "numbers", off)
    layer = case.build(case.ours, SIZE, torch.float64)
    assert gate.judge(case, layer, SIZE, torch.float64, "interpreter").right == right


@pytest.mark.parametrize(
    ("errors", "right", "draws"),
    [
        ([0.9], True, 1),
        ([1.1, 0.5, 0.6, 1.2, 0.7, 2.0, 0.9, 9.0, 0.1], True, 9),  # chance
        ([1.1, 0.5, 1.3, 1.2, 0.7, 2.0, 0.9, 9.0, 0.1], False, 9),
        ([1.1, 0.5, math.nan, 1.2, 0.7, 2.0, 0.9, 9.0, 0.1], False, 9),
        ([math.nan], False, 1),
    ],
)
def test_what_is_beyond_its_limit_is_judged_by_more_draws(
    monkeypatch: pytest.MonkeyPatch, errors: list[float], right: bool, draws: int
):
    seeds: list[int] = []

    def drawn(*args: Any) -> gate.Verdict:
        seeds.append(args[-1])
        error = errors[len(seeds) - 1]
        return gate.Verdict(error <= 1, "the output", error, 1.0)  # the reference's is none

    monkeypatch.setattr(gate, "_drawn", drawn)
    case = find("lstm")
    layer = case.build(case.ours, SIZE, torch.float32)
    assert gate.judge(case, layer, SIZE, torch.float32, "cpu", seed=3).right == right
    assert seeds == list(range(3, 3 + draws))


@pytest.mark.parametrize(
    ("own", "steps"),
    [([0.2, 0.2, 0.01], [100, 50, 25]), ([0.01], [100]), ([0.2] * 9, [100, 50, 25, 12])],
)
@pytest.mark.parametrize("wrong", [False, True])
def test_where_no_digit_is_left_fewer_steps_are_judged(
    monkeypatch: pytest.MonkeyPatch, own: list[float], steps: list[int], wrong: bool
):
    seen: list[int] = []

    def drawn(case: Any, layer: Any, size: Size, *_: Any) -> gate.Verdict:
        seen.append(size.steps)
        lost = own[min(len(seen), len(own)) - 1]
        right = size.steps == steps[-1] and not wrong
        return gate.Verdict(right, "the output", 2.0 - 1.5 * right, 1.0, lost)

    monkeypatch.setattr(gate, "_drawn", drawn)
    case = find("lstm")
    layer = case.build(case.ours, SIZE, torch.float32)
    size = SIZE._replace(steps=100)
    assert gate.judge(case, layer, size, torch.float32, "cpu").right != wrong
    assert list(dict.fromkeys(seen)) == steps
    assert len(seen) == len(steps) + (gate.DRAWS - 1) * wrong
