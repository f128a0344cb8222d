"""Faults are planted into generated kernels, and the judge has to notice every one.

They are planted into the text itself. Whatever is made of a text, kernels and recorded graphs, is
kept under it, so that no right one stands in for a faulty one, nor the other way round.
"""

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import engine
from flexrnn.engine.cuda.emit import Source
from flexrnn.engine.cuda.plan import Plan


class Fault(NamedTuple):
    loop: str  # of the plan
    right: str  # a pattern
    wrong: str
    hidden_size: int
    times: int = 1  # 0: everywhere, if it is in what launches stages, and that is written twice
    lengths: tuple[int, ...] | None = None
    layer: Any = flexrnn.LSTM
    T: int = 3


NARROW, TILED, TILES = 9, 40, 70  # units: of one kernel, of one tile, of several
FAULTS = {
    "another function": Fault("forward", r"sigmoid\(", "tanh(", NARROW),
    "a gate's derivative": Fault("backward", r"(= v\d+) \* v", r"\1 + v", NARROW),
    "a product too few": Fault("forward", r"= product\(", "= 0.0 * product(", NARROW),
    "a gradient's product too few": Fault("backward", r"= product\(", "= 0.0 * product(", NARROW),
    "the state of the step before last": Fault("forward", r"\(B - old\)", "old", TILED, 0),
    "rows of another step": Fault("backward", "t if REVERSE else T - 1 - t", "t", NARROW, 0),
    "a row too few": Fault("forward", r"(time \+ 1\) - at)", r"\1 - 1", 9, 0, (2, 3, 1)),
    "a gap between tiles": Fault(
        "forward", r"unit = tile \* (\d+)", r"unit = tile * 8 + tile * \1", TILES
    ),
    "a tile's share of a row": Fault(
        "forward", r"have = tl.minimum\((\d+) ", r"have = tl.minimum(1 + \1 ", TILES, 0,
        layer=flexrnn.LayerNormLSTM, T=1,  # one step shows it, and is long in coming
    ),
    "tiles divide by one": Fault(
        "forward", r"(row_moment\(\w+, \w+), (?:\d+|tl\.minimum\(.*?, \d+\))\)", r"\1, 1)", NARROW,
        layer=flexrnn.LayerNormLSTM,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_notices(
    fault: str, judge: Callable[..., None], monkeypatch: pytest.MonkeyPatch, device: str, tier: str
) -> None:
    where, right, wrong, H, times, lengths, layer_of, T = FAULTS[fault]
    marks = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    plan_of = engine.plan_of

    def faulty(*args: Any) -> Plan:
        plan = plan_of(*args)
        loop = getattr(plan, where)

        def source(*widths: Any, **even: bool) -> Source:
            source = loop.source(*widths, **even)
            written = getattr(source, tier)
            text, found = re.subn(right, wrong, written.text, count=times)
            assert found
            return source._replace(**{tier: written._replace(text=text)})

        changed = copy.copy(loop)
        changed.source, changed.chosen = source, {}
        return plan._replace(**{where: changed})

    layer = layer_of(5, H, dtype=torch.float64, device=device)
    x = torch.randn(T, 3, 5, dtype=torch.float64, device=device)
    state = torch.randn(2, 1, 3, H, dtype=torch.float64, device=device)
    judge(layer, x, tuple(state), **marks)  # now there is a right kernel, and a graph of it
    with monkeypatch.context() as patch:
        patch.setattr(engine, "plan_of", faulty)
        with pytest.raises(AssertionError, match="error"):
            judge(layer, x, tuple(state), **marks)
