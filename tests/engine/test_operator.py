# pyright: reportPrivateUsage=false
# Caches and settings of Dynamo have no public names.
"""`flexrnn::scan`: an operator by torch's own rules, for whoever sees operators and not Python."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine import operator
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import dumps, loads
from flexrnn.engine.signature import signature

T, B, I, H = 4, 3, 2, 5

ENGINES = ["interpreter", "cpu"]
own_checks = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch looks
CELLS = [
    cells.LSTMCell,
    cells.GRUCell,
    cells.NaiveLSTMCell,
    cells.ArticlePeepholeLSTMCell,
    cells.LayerNormLSTMCell,
]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def arguments(
    cell_class: Any,
    *,
    keep: tuple[str, ...] = ("h",),
    reverse: bool = False,
    engine: str = "interpreter",
) -> Any:
    """Arguments of the operator, with every gradient."""
    cell = cell_class(I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    state = tuple(torch.randn_like(s) for s in cell.initial_state((B,), torch.float64))
    row = [t.detach().requires_grad_() for t in (x, *state, *CellStep(cell).tensors.values())]
    names = (f"param.{name}" for name in CellStep(cell).tensors)
    wanted = ("x0", *(f"state.{field}" for field in CellStep(cell).fields), *names)
    program = compile_step(CellStep(cell), (x,), state, wanted)
    return dumps(program), engine, reverse, list(keep), row


@own_checks
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell_class", CELLS)
def test_torchs_own_checks_of_operators(cell_class: Any, reverse: bool, engine: str) -> None:
    call = arguments(cell_class, reverse=reverse, engine=engine)
    checks = torch.library.opcheck(operator.scan, call)
    assert set(checks.values()) == {"SUCCESS"}


@own_checks
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("keep", [(), ("c", "h")])
def test_torchs_own_checks_with_any_fields_kept(keep: tuple[str, ...], engine: str) -> None:
    call = arguments(cells.PeepholeLSTMCell, keep=keep, engine=engine)
    torch.library.opcheck(operator.scan, call)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cell_class", CELLS)
def test_torchs_own_checks_of_the_backward_operator(cell_class: Any, engine: str) -> None:
    text, engine, reverse, keep, row = arguments(cell_class, engine=engine)
    row = [t.detach() for t in row]
    outputs = operator.scan(text, engine, reverse, keep, row)
    about, ends = signature(loads(text)), 1 + len(loads(text).fields)
    assert len(outputs) > ends
    places = [t.untyped_storage().data_ptr() for t in (*outputs, *row)]
    assert len(set(places)) == len(places)
    own = iter(outputs[ends:])
    whose = operator._whose(operator.ENGINES[engine], operator.loaded(text), ("h",))
    saved = [next(own) if field is None else outputs[0] for field in whose]
    cotangents = [torch.randn_like(o) for o in outputs[:ends]]
    call = (text, engine, reverse, keep, row, saved, cotangents)
    torch.library.opcheck(torch.ops.flexrnn.scan_backward.default, call)
    results = torch.ops.flexrnn.scan_backward(*call)
    assert len(results) == len(about.gradients)
    places = [t.untyped_storage().data_ptr() for t in (*results, *row, *saved, *cotangents)]
    assert len(set(places)) == len(places)


def test_nothing_is_saved_for_a_program_without_gradients() -> None:
    cell, x = cells.GRUCell(I, H), torch.randn(T, B, I)
    state = (torch.zeros(B, H),)
    program = compile_step(CellStep(cell), (x,), state)
    row = [x, *state, *CellStep(cell).tensors.values()]
    outputs = operator.scan(dumps(program), "interpreter", False, ["h"], row)
    assert len(outputs) == 2


def test_second_derivatives_through_the_operator() -> None:
    text, engine, reverse, keep, row = arguments(cells.LSTMCell)

    def call(*row: Tensor) -> Any:
        return tuple(operator.scan(text, engine, reverse, keep, row)[:3])

    assert torch.autograd.gradcheck(call, tuple(row), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tuple(row), fast_mode=True)


def test_outputs_that_nobody_reads_need_no_cotangent() -> None:
    text, engine, reverse, keep, row = arguments(cells.LSTMCell)
    outputs = operator.scan(text, engine, reverse, keep, row)
    (by_state,) = torch.autograd.grad(outputs[2].sum(), row[0], retain_graph=True)
    (by_all,) = torch.autograd.grad(outputs[2].sum() + 0 * outputs[0].sum(), row[0])
    assert_close(by_state, by_all, rtol=0, atol=0)


class Names(TorchDispatchMode):
    """Notes the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_one_operator_a_direction(by_program: list[str]) -> None:
    layer = flexrnn.LSTM(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    with Names() as names:
        output, _ = layer(x)
    assert names.seen.count("flexrnn.scan.default") == 4
    got = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
    with flexrnn.backend("reference"):
        right = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    assert_close(got, right, rtol=1e-12, atol=1e-12)


def test_fake_tensors_have_shapes_and_nothing_runs(by_program: list[str]) -> None:
    with FakeTensorMode() as mode:
        layer = flexrnn.GRU(I, H, num_layers=2)
        output, state = layer(mode.from_tensor(torch.randn(T, B, I)))
        output.sum().backward()
    assert (output.shape, state.shape) == ((T, B, H), (2, B, H))
    assert layer.get_parameter("weight_hh_l1").grad is not None
    assert by_program == []


def test_an_engine_that_is_not_here_gives_way_to_the_interpreter(by_program: list[str]) -> None:
    text, _, reverse, keep, row = arguments(cells.LSTMCell)
    right = operator.scan(text, "interpreter", reverse, keep, row)
    with pytest.warns(flexrnn.FallbackWarning, match="engine 'elsewhere' cannot run"):
        got = operator.scan(text, "elsewhere", reverse, keep, row)
    assert_close(got, right, rtol=0, atol=0)
    gradients = [torch.autograd.grad(outputs[0].sum(), row) for outputs in (got, right)]
    assert_close(*gradients, rtol=0, atol=0)


def test_a_damaged_program_is_refused() -> None:
    text, *rest = arguments(cells.GRUCell)
    with pytest.raises(ValueError, match="program: "):
        operator.scan(text.replace("sigmoid", "sigmund"), *rest)
