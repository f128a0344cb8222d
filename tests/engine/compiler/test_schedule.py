"""When each node is computed, at the edges: states passed on, cotangents used as they come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.compiler.schedule import saved_floats

H = 4


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Cell(flexrnn.Cell):
    """`a, b ← function(cell, x, a, b)`; I = H = 4."""

    State = Pair

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        kwargs: Any = {"device": device, "dtype": dtype}
        self.W = nn.Parameter(torch.randn(H, H, **kwargs) / 2)
        self.U = nn.Parameter(torch.randn(H, H, **kwargs) / 2)
        self.wide = nn.Parameter(torch.randn(H, 2 * H, **kwargs) / 2)
        self.v = nn.Parameter(torch.randn(H, **kwargs))

    def step(self, x: Tensor, state: Pair) -> Pair:
        return Pair(*self.function(self, x, *state))


def layer_of(function: Callable[..., Any], units: int = H) -> flexrnn.FlexRNN:
    return flexrnn.FlexRNN(Cell, units, units, dtype=torch.float64, function=function)


def program(function: Callable[..., Any], units: int = H) -> Program:
    x = torch.randn(3, 2, units, dtype=torch.float64, requires_grad=True)
    found = flexrnn.explain(layer_of(function, units), x).steps[0].program
    assert found is not None
    return found


EDGES: dict[str, Callable[..., Any]] = {
    "the input is the state": lambda c, x, a, b: (x, a),
    "states change places": lambda c, x, a, b: (b, a),
    "a state is passed on": lambda c, x, a, b: (torch.tanh(a @ c.U + b), b),
    "both states are one": lambda c, x, a, b: (torch.tanh(x + a @ c.U),) * 2,
    "a state is not read": lambda c, x, a, b: (torch.tanh(a @ c.U), x @ c.W),
    "no state is read": lambda c, x, a, b: (x @ c.W, torch.tanh(x) * c.v),
    "no input is read": lambda c, x, a, b: (a @ c.U, b * c.v),
    "nothing is read": lambda c, x, a, b: (c.v.expand(x.shape[0], -1), torch.zeros_like(a)),
    "nothing is done": lambda c, x, a, b: (a, b),
    "a bias alone": lambda c, x, a, b: (a + c.v, b),
    "a bias stretched": lambda c, x, a, b: (c.v.expand(x.shape[0], -1) * c.v, b * a),
    "the input's product alone": lambda c, x, a, b: (x @ c.W + a, b),
    "one cotangent for all": lambda c, x, a, b: (x + a + b + c.v, b),
    "the input twice": lambda c, x, a, b: (x * x + a, x - b),
    "half a product is used": lambda c, x, a, b: ((x @ c.wide)[:, :H] + a, (a @ c.wide)[:, H:]),
    "ends of a product are used": lambda c, x, a, b: (
        torch.cat([(x @ c.wide)[:, :1], (x @ c.wide)[:, 5:]], -1) + a, b * c.v),
    "overlapping parts": lambda c, x, a, b: ((a @ c.wide)[:, 1:5] + (a @ c.wide)[:, 2:6], b),
    "a parameter joined to the input": lambda c, x, a, b: (
        torch.cat([x, c.v.expand(x.shape[0], -1)], -1) @ c.wide.T + a, b),
    "the derivative is stopped": lambda c, x, a, b: (a.detach() + x @ c.W, b.detach()),
    "a state of truths": lambda c, x, a, b: ((a > 0).to(a.dtype) * x, (b > a) * c.v),
}  # fmt: skip


@pytest.mark.parametrize("learns", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("name", EDGES)
def test_at_the_edges_the_program_is_the_reference(
    name: str, learns: tuple[int, int, int], same_by_program: Callable[..., None]
) -> None:
    x_learns, state_learns, parameters_learn = map(bool, learns)
    layer = layer_of(EDGES[name]).requires_grad_(parameters_learn)
    for steps in (1, 3):
        x = torch.randn(steps, 2, H, dtype=torch.float64, requires_grad=x_learns)
        hx = [torch.randn(1, 2, H, dtype=torch.float64) for _ in range(2)]
        same_by_program(layer, x, tuple(h.requires_grad_(state_learns) for h in hx))


def test_what_has_no_recurrence_has_no_loop_either_way() -> None:
    graph, plan = program(EDGES["no state is read"])
    assert (plan.loop, plan.reverse) == ((), ())
    assert {graph.nodes[i].op for i in plan.hoisted} >= {"product", "tanh", "mul"}
    assert {graph.nodes[i].op for i in plan.after} >= {"outer", "batch_sum", "product"}


def test_products_of_the_input_leave_both_loops() -> None:
    graph, plan = program(lambda c, x, a, b: (torch.tanh(x @ c.W + a @ c.U + c.v), b))
    count = {stage: [graph.nodes[i].op for i in getattr(plan, stage)].count("product")
             for stage in ("once", "hoisted", "loop", "prepare", "reverse", "after")}  # fmt: skip
    assert count == {"once": 0, "hoisted": 1, "loop": 1, "prepare": 0, "reverse": 1, "after": 1}


def test_sums_are_regrouped_so_that_one_addition_stays() -> None:
    graph, plan = program(lambda c, x, a, b: (((a @ c.U + c.v) + (x @ c.W + x)) + c.W[0], b))
    assert [graph.nodes[i].op for i in plan.loop] == ["product", "add"]
    assert [graph.nodes[i].op for i in plan.once].count("add") == 1
    assert [graph.nodes[i].op for i in plan.hoisted].count("add") == 2


def masked(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(x @ c.W + (a * b) @ c.U) * b.sigmoid(), b  # b: a mask, say


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("lengths", [None, (3, 1)])
def test_a_state_that_never_changes_is_not_saved_and_its_gradient_is_the_sum_over_steps(
    learns: bool, lengths: Any, same_by_program: Callable[..., None]
) -> None:
    layer = layer_of(masked)
    x: Any = torch.randn(3, 2, H, dtype=torch.float64, requires_grad=True)
    if lengths:
        rows = [x[:n, k] for k, n in enumerate(lengths)]
        x = nn.utils.rnn.pack_sequence([r.detach() for r in rows])
    h, mask = (torch.randn(1, 2, H, dtype=torch.float64) for _ in range(2))
    same_by_program(layer, x, (h.requires_grad_(), mask.requires_grad_(learns)))

    cell = Cell(H, H, dtype=torch.float64, function=masked)
    row = torch.randn(3, 2, H).double()
    xs = (row, torch.ones(3, 2, 1, dtype=torch.bool)) if lengths else (row,)
    names = ("x0", "state.a", "param.W", *(("state.b",) if learns else ()))
    graph, plan = compile_step(CellStep(cell, ragged=bool(lengths)), xs, (h[0], mask[0]), names)
    constant = graph.inputs["state.b"]
    assert graph.outputs["state.b"] == constant
    assert constant not in plan.saved
    assert ("grad.state.b" in graph.outputs) == learns


def test_the_gradient_by_a_state_that_never_changes_by_hand() -> None:
    layer = layer_of(lambda c, x, a, b: (x * b, b))
    x, b = torch.randn(3, 2, H).double(), torch.randn(1, 2, H).double().requires_grad_()
    with flexrnn.backend("interpreter"):
        output, (_, final) = layer(x, (torch.zeros_like(b), b))
    assert torch.equal(final, b)
    (gradient,) = torch.autograd.grad(output.sum() + 2 * final.sum(), b)
    torch.testing.assert_close(gradient, x.sum(0, keepdim=True) + 2, rtol=1e-13, atol=1e-13)


def test_what_is_cheap_is_computed_again_and_what_is_not_is_saved() -> None:
    def step(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(a @ c.U + x) * (1 - b * x), b

    graph, plan = program(step)
    assert sorted(graph.nodes[i].op for i in plan.saved) == ["mul", "tanh"]  # a, tanh
    assert saved_floats(graph, plan) == 2 * H  # b stays what it is


def test_a_function_of_one_value_in_memory_is_computed_again_and_a_function_of_that_is_saved() -> (
    None
):
    def once(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(a @ c.U + x @ c.W), b + torch.exp(a) + torch.sin(x)

    graph, plan = program(once)
    assert [graph.nodes[i].op for i in plan.saved] == ["tanh"]  # a's own history
    again = {graph.nodes[i].op for i in (*plan.reverse, *plan.after)}
    assert again >= {"exp", "cos"}
    assert "tanh" not in again

    def twice(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * 0.5 + x @ c.W, b + torch.tanh(torch.exp(a) * c.v) + torch.exp(a * c.v * b)

    graph, plan = program(twice)  # a and b, and what is two functions away
    assert sorted(graph.nodes[i].op for i in plan.saved) == ["add", "add", "tanh"]
    assert saved_floats(graph, plan) == 3 * H


@pytest.mark.parametrize("name", ["amax", "amin", "argmax"])
def test_what_is_compared_with_the_largest_of_its_row_is_not_computed_again(name: str) -> None:
    def step(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        row = a * c.v + b * x  # cheap, and might be rounded otherwise another time
        if name == "argmax":
            return torch.tanh(row * x), b + nn.functional.one_hot(row.argmax(-1), H) * a
        return torch.tanh(row * x), b + getattr(row, name)(-1, keepdim=True)

    graph, plan = program(step)
    again = {i for i in (*plan.reverse, *plan.after) if i in plan.loop}
    again -= {i for i in again if graph.nodes[i].op == "neg"}  # which loses no bit
    compared = {
        arg
        for i in (*plan.loop, *plan.reverse, *plan.after)
        if graph.nodes[i].op in ("eq", "ge", "gt", "le", "lt")
        for arg in graph.nodes[i].args
        if graph.nodes[arg].shape[1:] == (H,)
    }
    assert compared
    assert not compared & again


def test_what_the_caller_has_is_not_computed_again() -> None:
    graph, plan = program(lambda c, x, a, b: (torch.tanh(b * x), b + a @ c.U))
    assert graph.outputs["state.a"] in plan.saved


def saved_at_16(step: Callable[..., Any]) -> int:
    return saved_floats(*program(step, units=16))


def centred(value: Tensor) -> Tensor:
    return value - value.mean(-1, keepdim=True)


def test_of_a_row_less_its_mean_the_mean_is_saved() -> None:
    def step(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        b = b * b + x
        row = centred(b)
        return a + row * torch.tanh(row), b

    assert saved_at_16(step) == 16 + 1  # b, and its mean


def test_no_mean_is_saved_where_that_saves_nothing() -> None:
    def kept_anyway(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        row = centred(torch.tanh(x * a) + b)
        return torch.tanh(row * row), row

    assert saved_at_16(kept_anyway) == 2 * 16  # both states
    assert saved_at_16(lambda c, x, a, b: (centred(b).exp() * x, b + x)) == 16  # exp

    def of_what_is_computed_again(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        b = b * x + x
        row = centred(torch.sin(b) * torch.cos(b))
        return a + row * row, b

    assert saved_at_16(of_what_is_computed_again) == 2 * 16  # b and the row


def test_a_value_that_is_read_many_times_over_costs_as_much_as_its_nodes() -> None:
    def folded(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(64):  # 2 ** 64 paths
            a = a * 0.5 + a * a * 0.01
        return a + x @ c.W, b

    graph, plan = program(folded)
    assert len(plan.loop) < 64 * 4 + 8
    assert saved_floats(graph, plan) == H


def test_a_sum_may_have_more_terms_than_the_stack_is_deep() -> None:
    def long(c: Any, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = x
        for k in range(1200):
            total = total + (a, b)[k % 2]
        return total, b + x

    _, plan = program(long)
    assert len(plan.loop) >= 1200


def test_nothing_stays_in_the_backward_loop_that_the_step_before_does_not_need(
    cell_class: Any, program_of: Any
) -> None:
    graph, plan = program_of(cell_class(3, 5))
    carried = [i for name, i in graph.outputs.items() if name.startswith("grad.state.")]
    assert set(plan.reverse) <= graph.ancestors(carried)
    assert not {graph.nodes[i].op for i in plan.reverse} & {"outer", "batch_sum"}


# Numbers kept a step and row, as multiples of H where the policy is the equations' own.
SAVED = {
    cells.LSTMCell: {"i", "f", "g", "o", "c", "h"},
    cells.NaiveLSTMCell: {"i", "f", "g", "o", "c", "h"},
    cells.PeepholeLSTMCell: {"i", "f", "g", "o", "c", "h"},
    cells.ArticlePeepholeLSTMCell: {"i", "f", "g", "o", "c", "h"},
    cells.GRUCell: {"r", "z", "n", "h_n", "h"},
    cells.RNNCell: {"h"},
}


@pytest.mark.parametrize("cell", SAVED, ids=lambda cell: cell.__name__)
@pytest.mark.parametrize("hidden", [1, 5, 8])
def test_saved_numbers_are_those_of_the_table(cell: Any, hidden: int, program_of: Any) -> None:
    assert saved_floats(*program_of(cell(3, hidden))) == len(SAVED[cell]) * hidden


@pytest.mark.parametrize("hidden", [5, 8, 16])
def test_a_normalised_lstm_keeps_its_products_besides(hidden: int, program_of: Any) -> None:
    count = saved_floats(*program_of(cells.LayerNormLSTMCell(3, hidden)))
    # c, h; W x and U h centred, 4 H each; the scale of each norm; the mean of c, which takes an
    # eighth of c centred or less, else c centred
    assert count == (2 + 4 + 4) * hidden + 3 + (1 if hidden >= 8 else hidden)


def test_a_frozen_cell_saves_for_the_input_alone_what_that_needs(program_of: Any) -> None:
    everything = saved_floats(*program_of(cells.LSTMCell(3, 5)))
    for_x = saved_floats(*program_of(cells.LSTMCell(3, 5), ("x0",)))
    assert for_x == everything - 5  # without h, which only the weights' gradients read
    assert saved_floats(*program_of(cells.LSTMCell(3, 5), ())) == 0
