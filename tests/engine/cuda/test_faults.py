"""Faults are planted into generated kernels, and the judge has to notice every one.

They are planted into the text itself. Whatever is made of a text, kernels and recorded graphs, is
kept under it, so that no right one stands in for a faulty one, nor the other way round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import engine
from flexrnn.engine.cuda.plan import Plan


class Fault(NamedTuple):
    loop: str  # of the plan
    right: str
    wrong: str
    hidden_size: int
    times: int = 1  # everywhere, if it is in what launches stages, and that is written twice
    lengths: tuple[int, ...] | None = None


NARROW, TILED, TILES = 9, 40, 70  # units: of one kernel, of one tile, of several
FAULTS = {
    "another function": Fault("forward", "sigmoid(", "tanh(", NARROW),
    "a gate's derivative": Fault("backward", " * v", " + v", NARROW),
    "a product too few": Fault("forward", "product(a, ", "product(a * 0.0, ", NARROW),
    "a gradient's product too few": Fault("backward", "product(a, ", "product(a * 0.0, ", NARROW),
    "the state of the step before last": Fault("forward", "(B - old)", "old", TILED, -1),
    "rows of another step": Fault("backward", "t if REVERSE else T - 1 - t", "t", NARROW, -1),
    "a row too few": Fault("forward", "time + 1) - at", "time + 1) - at - 1", 9, -1, (2, 3, 1)),
    "a gap between tiles": Fault("forward", "tile * 64", "tile * 80", TILES),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_notices(
    fault: str, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch, device: str, tier: str
) -> None:
    where, right, wrong, H, times, lengths = FAULTS[fault]
    marks = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    plan_of = engine.plan_of

    def faulty(*args: Any) -> Plan:
        plan = plan_of(*args)
        loop = getattr(plan, where)
        written = getattr(loop.source, tier)
        assert right in written.text
        written = written._replace(text=written.text.replace(right, wrong, times))
        source = loop.source._replace(**{tier: written})
        return plan._replace(**{where: loop._replace(source=source)})

    layer = flexrnn.LSTM(5, H, dtype=torch.float64, device=device)
    x = torch.randn(3, 3, 5, dtype=torch.float64, device=device)
    state = torch.randn(2, 1, 3, H, dtype=torch.float64, device=device)
    judge(layer, x, tuple(state), **marks)  # now there is a right kernel, and a graph of it
    with monkeypatch.context() as patch:
        patch.setattr(engine, "plan_of", faulty)
        with pytest.raises(AssertionError, match="error"):
            judge(layer, x, tuple(state), **marks)
