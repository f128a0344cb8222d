"""Merge, split, autodiff and schedule, asserted on the graph and against autograd."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_sequence

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine.compiler.passes import passes
from flexrnn.engine.compiler.schedule import saved_floats
from flexrnn.engine.compiler.split import Dependence, dependences

H = 5


def products(graph: Any, indices: Any = None) -> int:
    nodes = graph.nodes if indices is None else [graph.nodes[i] for i in indices]
    return sum(node.op == "product" for node in nodes)


def stages(cell: flexrnn.Cell) -> dict[str, Any]:
    x = torch.zeros(3, 2, cell.input_size)
    return dict(passes(CellStep(cell), (x,), tuple(cell.initial_state((2,))), ()))


def test_the_naive_bodys_eight_products_become_two() -> None:
    graphs = stages(cells.NaiveLSTMCell(3, H))
    assert products(graphs["trace"]) == 8
    assert products(graphs["merge"]) == 2


def structure(graph: Any) -> list[Any]:
    """The nodes that depend on input or state, with parameters known by their shapes alone."""
    depends, names, rows = dependences(graph), {}, []
    alive = graph.ancestors(list(graph.outputs.values()))
    for index, node in enumerate(graph.nodes):
        if depends[index] == Dependence.PARAMETER:
            names[index] = node.shape
        elif index in alive:
            args = tuple(names[a] for a in node.args)
            row = (node.op, args, node.attrs, node.shape)
            names[index] = row
            rows.append(row)
    return sorted(rows, key=repr)


def test_the_naive_program_is_the_vectorised_one_but_for_the_gathering_of_weights() -> None:
    naive = stages(cells.NaiveLSTMCell(3, H))["split"]
    vectorised = stages(cells.LSTMCell(3, H))["split"]
    assert structure(naive) == structure(vectorised)


class Shared(flexrnn.Cell):
    """Several weights that the state is multiplied with, of which some are frozen, or constant."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, frozen="", device=None, dtype=None, bias=True):
        super().__init__(input_size, hidden_size)
        U, V, W = torch.randn(3, hidden_size, hidden_size)
        self.U = nn.Parameter(U, "U" not in frozen)
        self.V = nn.Parameter(V, "V" not in frozen)
        self.W = nn.Parameter(W, "W" not in frozen)

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        (h,) = state
        parts = [linear(h, w) if self.is_linear else h @ w for w in (self.U, self.V, self.W)]
        return cells.HiddenState(parts[0].tanh() * parts[1].sigmoid() * parts[2].exp() + x)

    is_linear = False


@pytest.mark.parametrize("is_linear", [False, True])
@pytest.mark.parametrize(
    ("frozen", "many"), [("", 3), ("U", 2), ("W", 2), ("UV", 1), ("UW", 1), ("V", 3)]
)
def test_no_gradient_is_multiplied_for_a_frozen_weight_at_an_edge(
    frozen: str, many: int, is_linear: bool
) -> None:
    cell = Shared(H, H, frozen)
    cell.is_linear = is_linear
    wanted = tuple(f"param.{name}" for name in "UVW" if name not in frozen)
    x = torch.zeros(3, 2, H)
    *_, (_, graph) = passes(CellStep(cell), (x,), tuple(cell.initial_state((2,))), wanted)
    (outer,) = [node.shape for node in graph.nodes if node.op == "outer"]
    assert outer == ((many * H, H) if is_linear else (H, many * H))


class Joined(cells.LSTMCell):
    """The common hand-written form: one product with [x, h]."""

    def step(self, x: Tensor, state: cells.LSTMState) -> cells.LSTMState:
        h, c = state
        W = torch.cat([self.weight_ih, self.weight_hh], 1)
        o, f, g, i = linear(torch.cat([x, h], -1), W, self.bias_ih).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return cells.LSTMState(o.sigmoid() * c.tanh(), c)


class Chunked(cells.LSTMCell):
    """Four products with the four parts of one weight."""

    def step(self, x: Tensor, state: cells.LSTMState) -> cells.LSTMState:
        h, c = state
        parts = zip(self.weight_ih.chunk(4), self.weight_hh.chunk(4), strict=True)
        i, f, g, o = (x @ w.T + h @ u.T for w, u in parts)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return cells.LSTMState(o.sigmoid() * c.tanh(), c)


class TorchsInside(flexrnn.Cell):
    """`nn.LSTMCell` called inside a step."""

    State = cells.LSTMState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.LSTMCell(input_size, hidden_size, bias, device, dtype)

    def step(self, x: Tensor, state: cells.LSTMState) -> cells.LSTMState:
        return cells.LSTMState(*self.inner(x, tuple(state)))


@pytest.mark.parametrize("cell", [Joined, Chunked, TorchsInside])
def test_an_lstm_is_two_products_however_it_is_written(
    cell: Any, same_by_program: Callable[..., None]
) -> None:
    assert products(stages(cell(3, H))["merge"]) == 2
    layer = flexrnn.FlexRNN(cell, 3, H, dtype=torch.float64)
    same_by_program(layer, torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True))


def test_weights_that_are_parts_of_one_grow_together_again() -> None:
    graph = stages(Chunked(3, H))["merge"]
    weights = [graph.nodes[n.args[1]] for n in graph.nodes if n.op == "product"]
    assert [w.op for w in weights] == ["transpose", "transpose"]


def test_only_one_product_and_one_addition_a_gate_stay_in_an_lstms_loop(program_of: Any) -> None:
    graph, plan = program_of(cells.LSTMCell(3, H), ())
    ops = sorted(graph.nodes[i].op for i in plan.loop if graph.nodes[i].op != "slice")
    assert ops == sorted(
        ["product", *["add"] * 5, *["sigmoid"] * 3, *["tanh"] * 2, *["mul"] * 3]
    )  # four additions of gates, and that of c
    assert (plan.saved, plan.reverse, plan.after) == ((), (), ())


def test_sums_over_the_batch_and_the_inputs_gradient_are_never_in_the_loop(
    cell_class: Any, program_of: Any
) -> None:
    graph, plan = program_of(cell_class(3, H))
    over_batch = {i for i, n in enumerate(graph.nodes) if n.op in ("outer", "batch_sum")}
    assert over_batch
    assert over_batch <= set(plan.after)
    assert graph.outputs["grad.x0"] in plan.after
    weights = [i for n, i in graph.outputs.items() if n.startswith("grad.param.")]
    assert set(weights) <= set(plan.after)


SAVED = {  # numbers a step and row, for H = 5; torch.nn.LSTM was measured to keep 17.6 H
    "LSTMCell": 30,  # 6 H: i, f, g, o, c, h
    "GRUCell": 25,  # 5 H
    "RNNCell": 5,  # H: h
    "PeepholeLSTMCell": 30,
    "ArticlePeepholeLSTMCell": 30,
    "NaiveLSTMCell": 30,
}


def test_what_is_saved_is_counted(cell_class: Any, program_of: Any) -> None:
    count = saved_floats(*program_of(cell_class(3, H)))
    if cell_class.__name__ in SAVED:
        assert count == SAVED[cell_class.__name__]
    assert saved_floats(*program_of(cells.LSTMCell(3, H))) <= 6.5 * H


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_autograds(
    cell_class: Any, packed: bool, same_by_program: Callable[..., None]
) -> None:
    layer = flexrnn.FlexRNN(cell_class, 3, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    fields = len(cell_class.State._fields)
    sequences = [torch.randn(t, 3).double().requires_grad_() for t in (2, 5, 3)]
    hx = tuple(torch.randn(4, 3, H).double().requires_grad_() for _ in range(fields))
    x = (
        pack_sequence(sequences, enforce_sorted=False)
        if packed
        else torch.stack([torch.randn(5, 3).double().requires_grad_() for _ in range(3)], 1)
    )
    same_by_program(layer, x, hx if fields > 1 else hx[0])


@pytest.mark.parametrize(
    ("x_learns", "state_learns", "frozen"), list(product([False, True], [False, True], [0, 1, 2]))
)
def test_gradients_are_right_whichever_are_wanted(
    cell_class: Any,
    x_learns: bool,
    state_learns: bool,
    frozen: int,
    same_by_program: Callable[..., None],
) -> None:
    layer = flexrnn.FlexRNN(cell_class, 3, H, dtype=torch.float64)
    for k, parameter in enumerate(layer.parameters()):
        parameter.requires_grad_(frozen == 0 or (frozen == 1 and k % 2 == 0))
    fields = len(cell_class.State._fields)
    hx = tuple(torch.randn(1, 2, H).double().requires_grad_(state_learns) for _ in range(fields))
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=x_learns)
    same_by_program(layer, x, hx if fields > 1 else hx[0])


def test_what_is_not_wanted_is_not_computed(cell_class: Any, program_of: Any) -> None:
    cell = cell_class(3, H)
    one = next(name for name, _ in cell.named_parameters())
    graph, _ = program_of(cell, (f"param.{one}",))
    gradients = {name for name in graph.outputs if name.startswith("grad.")}
    assert f"grad.param.{one}" in gradients
    assert gradients - {f"grad.param.{one}"} <= {"grad.state.h", "grad.state.c"}
    assert not any(name.startswith("grad.") for name in program_of(cell, ())[0].outputs)
