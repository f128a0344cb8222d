"""What derivatives leave behind is said shorter, and stays what it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn.engine.compiler.graph import BATCH, Expr, Graph
from flexrnn.engine.compiler.pretty import pretty
from flexrnn.engine.compiler.tidy import tidied

ROW, ONE = (BATCH, 5), (BATCH, 1)
Write = Callable[[Expr, Expr, Expr, Expr], Expr]

# What is written of two rows and a factor, and of one number a row; operations that are left of it.
SHORTER: dict[str, tuple[Write, list[str]]] = {
    "a minus sign that is added": (lambda g, a, b, n: a + (-b), ["sub"]),
    "one in front": (lambda g, a, b, n: (-a) + b, ["sub"]),
    "one that is taken away": (lambda g, a, b, n: a - (-b), ["add"]),
    "a common factor": (lambda g, a, b, n: g * a + g * b.apply("tanh", b), ["tanh", "add", "mul"]),
    "on another side": (lambda g, a, b, n: b.apply("tanh", b) * g - g * a, ["tanh", "sub", "mul"]),
    "behind a sign": (lambda g, a, b, n: g * a + (-(g * b.apply("sin", b))), ["sin", "sub", "mul"]),
    "numbers alone": (lambda g, a, b, n: g * a.apply("mul", 2.0, 3.0), ["constant", "mul"]),
    "a derivative of a power by 3/2": (
        lambda g, a, b, n: a.apply(
            "where", a.apply("eq", 1.5, 0.0), 0.0, g * a.apply("pow", a, a.apply("sub", 1.5, 1.0))),
        ["constant", "pow", "mul"]),
    # As they are written:
    "their sum might be infinite": (lambda g, a, b, n: g * a + g * b, ["mul", "mul", "add"]),
    "with a number": (lambda g, a, b, n: g * a + g * n, ["mul", "mul", "add"]),
    "a number is the factor": (lambda g, a, b, n: n * a + n * b, ["mul", "mul", "add"]),
    "another reads a part": (lambda g, a, b, n: (g * a + g * b.apply("tanh", b)) / (g * a), [
        "mul", "tanh", "mul", "add", "div",
    ]),
    "both sides signed": (lambda g, a, b, n: (-b) - a, ["neg", "sub"]),
}  # fmt: skip


def written(write: Write) -> Graph:
    """A graph with a gradient that is written so, and a forward step that adds a negative."""
    graph = Graph()
    g, a, b = (Expr(graph, graph.input(name, ROW)) for name in ("cotangent.h", "x0", "x1"))
    n = Expr(graph, graph.input("state.n", ONE))
    graph.outputs["state.h"] = graph.add("add", b.index, (-a).index)
    graph.outputs["grad.x0"] = write(g, a, b, n).index
    return graph


@pytest.mark.parametrize("name", SHORTER)
def test_shorter(name: str) -> None:
    write, left = SHORTER[name]
    graph = tidied(written(write))
    forward = graph.ancestors([graph.outputs["state.h"]])
    rest = graph.ancestors([graph.outputs["grad.x0"]]) - forward
    assert [graph.nodes[i].op for i in sorted(rest) if graph.nodes[i].op != "input"] == left


def test_a_step_stays_as_it_is_written() -> None:
    graph = tidied(written(lambda g, a, b, n: g * a))
    assert [node.op for node in graph.nodes] == ["input"] * 4 + ["neg", "add", "mul"]


def test_a_gru_goes_back_as_a_hand_would_write_it() -> None:
    program = flexrnn.explain(flexrnn.GRU(3, 4), torch.randn(5, 2, 3)).steps[0].program
    assert program is not None
    assert "dh * (h - n)" in pretty(program)


def test_what_is_not_selected_may_be_large() -> None:
    def step(x: Tensor, h: Tensor) -> Tensor:
        large = 0.1 * h * torch.exp(x * 100) + 0.1 * h * torch.exp(x * 100 + 0.05)
        return torch.where(x > 2, large, torch.tanh(h))

    x = torch.full((5, 3, 4), 0.885, requires_grad=True)
    h = torch.randn(3, 4, requires_grad=True)
    with flexrnn.backend("interpreter"):
        states, _ = flexrnn.scan(step, h, x)
    grad_x, grad_h = torch.autograd.grad(states.square().sum(), (x, h))
    assert not grad_x.any()
    assert grad_h.isfinite().all()


def test_signs_and_factors_do_not_change_a_gradient() -> None:
    def step(x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(x + h)
        return (1 - z) * torch.tanh(x * h) - z * (h - x) + z * x

    x, h = (torch.randn(k, 2, 3, dtype=torch.float64, requires_grad=True) for k in (5, 1))
    found = []
    for engine in ("interpreter", "reference"):
        with flexrnn.backend(engine):
            states, _ = flexrnn.scan(step, h[0], x)
        found.append(torch.autograd.grad(states.square().sum(), (x, h)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
