# pyright: reportPrivateUsage=false
"""What the operator returns by this engine: memory of its own, as promised, for every kind of call.

Torch warns at the first call of compiled code where two results of an operator lie in one memory.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine import operator
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import dumps
from flexrnn.engine.cpu import plan

from ...quickly import compile_quickly

T, I, H = 9, 4, 5
DOUBLE = torch.float64


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class GateOfInputCell(flexrnn.Cell):
    """`a ← tanh(x W ∘ a)`, `b ← b ∘ x W + a`: the input's product is saved, and no weight's."""

    State = Pair

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.W = nn.Parameter(torch.randn(input_size, hidden_size, device=device, dtype=dtype))

    def step(self, x: Tensor, state: Pair) -> Pair:
        p, (a, b) = x @ self.W, state
        return Pair(torch.tanh(p * a), b * p + a)


class ProductIsStateCell(GateOfInputCell):
    """`a ← x W`, `b ← a ∘ b`: the input's product is saved as a state."""

    def step(self, x: Tensor, state: Pair) -> Pair:
        return Pair(x @ self.W, state.a * state.b)


CELLS = [
    cells.LSTMCell,
    cells.GRUCell,
    cells.LayerNormLSTMCell,
    GateOfInputCell,
    ProductIsStateCell,
]


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose memory results are does not depend on how fast their loop is."""
    compile_quickly(monkeypatch)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def arguments(cell_class: Any, B: int, keep: tuple[int, ...]) -> tuple[Any, list[Tensor]]:
    cell = cell_class(I, H, dtype=DOUBLE)
    step, x = CellStep(cell), torch.randn(T, B, I, dtype=DOUBLE)
    state = tuple(torch.randn_like(s) for s in cell.initial_state((B,), DOUBLE))
    row = [t.detach().requires_grad_() for t in (x, *state, *step.tensors.values())]
    wanted = ("x0", *(f"state.{f}" for f in step.fields), *(f"param.{n}" for n in step.tensors))
    text = dumps(compile_step(step, (x,), state, wanted))
    fields = dict.fromkeys(step.fields[k] for k in keep)  # some have only one
    return (text, [*fields]), row


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("keep", [(0,), (-1,), (-1, 0), ()])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("cell_class", CELLS)
def test_results_are_as_promised_and_share_no_memory(
    cell_class: Any, B: int, keep: tuple[int, ...], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_SMALL", 0)  # a single row's products are torch's
    (text, fields), row = arguments(cell_class, B, keep)
    found = []
    for engine in ("cpu", "interpreter"):
        outputs = operator.scan(text, engine, reverse, fields, row)
        places = [t.untyped_storage().data_ptr() for t in (*outputs, *row)]
        assert len({*places}) == len(places)
        told = operator._scan_like(text, engine, reverse, fields, row)
        assert [(o.shape, o.stride()) for o in outputs] == [(o.shape, o.stride()) for o in told]
        results = [o for o in outputs if o.requires_grad]
        loss = sum((o.square().sum() for o in results), torch.zeros((), dtype=DOUBLE))
        found.append((results, torch.autograd.grad(loss, row, materialize_grads=True)))
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


LAYERS: dict[str, Any] = {
    "LSTM": flexrnn.LSTM,
    "layers and directions": partial(flexrnn.LSTM, num_layers=2, bidirectional=True),
    "GRU": partial(flexrnn.GRU, batch_first=True),
    "layer norm": partial(flexrnn.LayerNormLSTM, num_layers=2, zoneout=0.1),
    "checkpointed": partial(flexrnn.LSTM, checkpoint_every=4),
    "the input's product": partial(flexrnn.FlexRNN, GateOfInputCell),
}
EXTRAS: dict[str, Any] = {
    "plain": dict,
    "states": lambda: {"return_states": True},
    "lengths": lambda: {"lengths": torch.tensor([2, T, 3])},
}


# Of all layers a plain call, and some of the others.
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *((name, "plain") for name in LAYERS),
        *(("LSTM", extra) for extra in EXTRAS if extra != "plain"),
        ("layers and directions", "lengths"),
        ("layer norm", "states"),
        ("checkpointed", "lengths"),
        ("the input's product", "lengths"),
    ],
)
def test_compiled_layers_do_without_a_warning_of_torch(name: str, extra: str) -> None:
    """Every warning is an error in tests, and torch looks at the first call of each graph."""
    layer = LAYERS[name](I, H, dtype=DOUBLE)
    layer.eval()  # no chance
    x, options = torch.randn(T, 3, I, dtype=DOUBLE), EXTRAS[extra]()
    if layer.batch_first:
        x = x.transpose(0, 1)
    found = []
    for call, engine in (
        (torch.compile(layer, fullgraph=True, backend="aot_eager"), "cpu"),
        (layer, "reference"),
    ):
        with flexrnn.backend(engine), torch.no_grad():
            without = call(x, **options)[0]
        with flexrnn.backend(engine):
            output = call(x, **options)[0]
        found.append((without, torch.autograd.grad(output.square().sum(), [*layer.parameters()])))
    assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, T, 3])])
@pytest.mark.parametrize("width", [1, H])
@pytest.mark.parametrize("cell_class", CELLS)
def test_what_hooks_hand_over_may_lie_otherwise(
    cell_class: Any, width: int, lengths: Tensor | None, hand_over: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(cell_class, I, width, bidirectional=True, dtype=DOUBLE)
    hand_over("cpu", layer, torch.randn(T, 3, I, dtype=DOUBLE), lengths=lengths)
