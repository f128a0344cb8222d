"""Faults are planted into generated kernels, and the judge has to notice every one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import kernels

FAULTS = {
    "another function": ("sigmoid(", "tanh(", 9),
    "a gate's derivative": (" * v", " + v", 9),
    "a product too few": ("product(a, ", "product(a * 0.0, ", 9),
    "the state of the step before last": ("(B - old)", "old", 40),
    "rows of another step": ("t if REVERSE else T - 1 - t", "t", 9),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_notices(
    fault: str, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    right, wrong, H = FAULTS[fault]
    planted: list[str] = []
    module = kernels.module

    def faulty(text: str) -> Any:
        if right in text and not planted:
            planted.append(text)
        return module(text.replace(right, wrong, 1) if text in planted else text)

    monkeypatch.setattr(kernels, "module", faulty)
    layer = flexrnn.LSTM(5, H, dtype=torch.float64, device=device)
    x = torch.randn(3, 3, 5, dtype=torch.float64, device=device)
    state = torch.randn(2, 1, 3, H, dtype=torch.float64, device=device)
    with pytest.raises(AssertionError):
        judge(layer, x, tuple(state))
    assert planted


def test_the_judge_is_content_without_a_fault(judge: Callable[..., None], device: str) -> None:
    for H in (9, 40):
        layer = flexrnn.LSTM(5, H, dtype=torch.float64, device=device)
        x = torch.randn(3, 3, 5, dtype=torch.float64, device=device)
        judge(layer, x, tuple(torch.randn(2, 1, 3, H, dtype=torch.float64, device=device)))
