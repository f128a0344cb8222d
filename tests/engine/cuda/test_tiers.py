# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false, reportAssignmentType=false
# The recorded graphs, and the interpreter's types, have no public names.
"""Tiers: the same numbers by each, graphs that serve every T and tensor, offsets beyond 2**31."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import flexrnn
from flexrnn.engine.cuda import graphs, plan, tiers
from flexrnn.engine.cuda.calls import ROWS, Call

H = 24
CALL = Call(
    steps=2, batch=3, reverse=False, precision="ieee", itemsize=4, processors=132, shared=227 << 10
)
SEQUENCE, GRID, STEPS = tiers.TIERS


def written(cell: Any, hidden_size: int, dtype: torch.dtype = torch.float32) -> Any:
    layer = flexrnn.FlexRNN(cell, 4, hidden_size)
    program = flexrnn.explain(layer, torch.randn(2, 3, 4)).steps[0].program
    assert program is not None
    return plan.plan_of(program, program.fields[:1], dtype)


def results(layer: flexrnn.FlexRNN, x: torch.Tensor, engine: str) -> list[torch.Tensor]:
    with flexrnn.backend(engine):
        output, state = layer(x)
        gradients = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
    return [output, *state, *gradients]


def test_a_recorded_graph_serves_every_length_and_every_tensor(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "TIERS", (STEPS,))
    monkeypatch.setattr(graphs, "STEPS", 3)
    monkeypatch.setattr(graphs, "_graphs", {})
    layer = flexrnn.LSTM(4, H, dtype=torch.float64, device=device)
    for T in (1, 3, 7, 2):
        x = torch.randn(T, 2, 4, dtype=torch.float64, device=device, requires_grad=True)
        found, expected = results(layer, x, "cuda"), results(layer, x, "reference")
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert len(graphs._graphs) == 2  # one forward, one backward


def test_kernels_take_their_arguments_by_value_while_somebody_records(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "TIERS", (STEPS,))
    monkeypatch.setattr(graphs, "launch_by_table", None)
    monkeypatch.setattr(graphs, "is_recording", lambda device: True)
    layer = flexrnn.GRU(4, H, dtype=torch.float64, device=device)
    x = torch.randn(5, 2, 4, dtype=torch.float64, device=device)
    with torch.no_grad(), flexrnn.backend("cuda"):
        found = layer(x)
    with torch.no_grad(), flexrnn.backend("reference"):
        torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-13)


def test_a_recording_leaves_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may call CUDA meanwhile. No card is asked: what is recorded does nothing."""
    seen: list[dict[str, Any]] = []

    @contextmanager
    def graph(recording: Any, **options: Any) -> Iterator[None]:
        seen.append(options)
        yield

    source = written(flexrnn.cells.RNNCell, H).forward.source()
    nothing = defaultdict[str, Any](lambda: defaultdict(lambda: lambda *_, **__: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(graphs.kernels, "module", lambda text: nothing)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, dtype, device: zeros(size, dtype=dtype))
    graphs._recorded(source, CALL, torch.device("cuda"), 8)
    assert [options["capture_error_mode"] for options in seen] == ["thread_local"]


def test_the_table_prefers_what_reads_less() -> None:
    def chosen(cell: Any, hidden_size: int, **call: Any) -> tuple[str, int]:
        loop = written(cell, hidden_size, torch.bfloat16).forward
        choice = tiers.choose(loop, CALL._replace(**{"itemsize": 2, **call}))
        return choice.tier.name, choice.call.tall

    lstm, normed = flexrnn.cells.LSTMCell, flexrnn.cells.LayerNormLSTMCell
    assert chosen(lstm, 32) == ("sequence", 16)
    # A processor keeps what it reads, if there are processors for all rows and units.
    assert chosen(lstm, 768) == chosen(normed, 300) == ("grid", 16)
    assert chosen(lstm, 512, batch=128) == ("grid", 32)
    # More than all of them hold is read at every step, by as many as there are.
    assert chosen(lstm, 4096) == ("steps", 16)
    # Without matrix units a processor has no registers to multiply much of what it keeps.
    assert chosen(lstm, 512, itemsize=4)[0] == "steps"
    # Wide and many: measured, tiles of 64 rows and 32 units are the best of those that fit.
    assert chosen(lstm, 256, batch=4096) == ("steps", 64)


def test_narrow_tiles_are_taken_where_processors_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiers, "TIERS", (STEPS,))
    loop = written(flexrnn.cells.LSTMCell, 256, torch.bfloat16).forward
    calls = [CALL._replace(itemsize=2, batch=batch) for batch in (16, 4096)]
    assert [tiers.choose(loop, call).widest for call in calls] == [16, 32]


def test_a_card_without_room_gets_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    layer, x = flexrnn.LSTM(4, H, backend="cuda"), torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = layer(x)[0]
    tried: list[str] = []

    def refuse(source: Any, memory: Any, call: Call) -> None:
        tried.append("refused")
        raise OutOfResources(2**20, 2**10, "shared memory")

    full = GRID._replace(name="full", launch=refuse, cost=lambda *_: -1.0)
    monkeypatch.setattr(tiers, "TIERS", (full, STEPS))
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(layer(x)[0], expected)
        variants = 4 * 2 * 3  # widths, even or not, rows: each is another kernel
        assert len(tried) == variants
        monkeypatch.setattr(tiers, "TIERS", (full._replace(name="fuller"),))
        with pytest.raises(RuntimeError, match="has room for no kernel"):
            layer(x)


def test_tf32_is_torchs_to_allow(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    seen: list[str] = []
    tier = SEQUENCE

    def launch(source: Any, memory: Any, call: Call) -> None:
        seen.append(call.precision)
        tier.launch(source, memory, call)

    monkeypatch.setattr(tiers, "TIERS", (tier._replace(launch=launch),))
    layer, x = flexrnn.RNN(4, 5, device=device, backend="cuda"), torch.randn(2, 1, 4, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            with torch.no_grad():
                layer(x)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == ["ieee", "tf32"]


def test_what_tiles_have_found_lies_beyond_2_to_the_31() -> None:
    """Where one tile's begins is a product with the rows of the batch."""
    source = written(flexrnn.cells.LayerNormLSTMCell, 40).forward.source(16)
    for text in (source.sequence.text, source.grid.text, source.steps.text):
        assert re.search(r"partial\d.* \* B\b", text)
        assert not re.search(r"\* B\b(?!\.to\(tl\.int64\))", text)


@pytest.mark.parametrize("which", range(len(tiers.TIERS)))
def test_offsets_beyond_2_to_the_31(
    which: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch of which one step has 2**31 numbers, the last rows: what address is read?

    Nothing is read and written there; the interpreter computes addresses in the types of a card.
    """
    if device == "cuda":
        pytest.skip("there is an interpreter for this")
    from triton.runtime import interpreter

    units, size = 16, 2
    source = written(flexrnn.cells.RNNCell, units, torch.float16).forward.source()
    rows = 2**31 // units
    memory = {
        name: torch.zeros(64, dtype=getattr(torch, b.element.removeprefix("tl.")))
        for name, b in source.buffers.items()
    }
    begin = {name: tensor.data_ptr() for name, tensor in memory.items()}
    seen: list[Any] = []

    def load(ptrs: Any, mask: Any, other: Any, cache: Any, volatile: Any) -> Any:
        kind = ptrs.get_element_ty()
        if not kind.is_floating():  # of the table
            return real_load(ptrs, mask, other, cache, volatile)
        seen.append(ptrs.data.copy())
        zeros = np.zeros(ptrs.data.shape, interpreter._get_np_dtype(kind))
        return interpreter.TensorHandle(zeros, kind)

    real_load = interpreter.interpreter_builder.create_masked_load
    monkeypatch.setattr(interpreter.interpreter_builder, "create_masked_load", load)
    monkeypatch.setattr(
        interpreter.interpreter_builder,
        "create_masked_store",
        lambda ptrs, *_: seen.append(ptrs.data.copy()),
    )

    class LastTile(Call):
        rows = 1

    call = LastTile(*CALL._replace(batch=rows, itemsize=2))
    last = rows // ROWS[0] - 1
    set_index = interpreter.interpreter_builder.set_grid_idx
    monkeypatch.setattr(
        interpreter.interpreter_builder, "set_grid_idx", lambda x, y, z: set_index(last, y, z)
    )
    monkeypatch.setattr(graphs, "STEPS", call.steps)
    monkeypatch.setattr(graphs, "_graphs", {})
    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_dim", lambda *_: None)
    interpreter.interpreter_builder.grid_dim = (last + 1, 1, 1)
    tiers.TIERS[which].launch(source, memory, call)
    touched = np.unique(np.concatenate([s.ravel() for s in seen]).astype(np.uint64))
    for name in ("history.h", next(n for n in memory if n.startswith("hoisted"))):
        for t in range(2):
            first = begin[name] + size * (t * 2**31 + (rows - ROWS[0]) * units)
            expected = np.arange(first, first + size * ROWS[0] * units, size, dtype=np.uint64)
            assert np.isin(expected, touched).all(), (name, t)
