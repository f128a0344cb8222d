"""What a graph takes: operands that fit, the right attributes, and the batch first and alone."""

from collections.abc import Callable
from typing import Any

import pytest

from flexrnn.engine.compiler.graph import BATCH, Graph, rewrite
from flexrnn.engine.compiler.ops import OPS

ROWS, WEIGHT, HEADS = (BATCH, 3), (3, 4), (BATCH, 2, 3)

REFUSED: dict[str, tuple[str, list[Any], dict[str, Any], str]] = {
    "widths that differ": ("add", [ROWS, (BATCH, 4)], {}, "expected shapes that broadcast"),
    "the batch behind": ("add", [ROWS, (2, 1, 3)], {}, "expected the batch to stay the first"),
    "a width that does not fit": ("product", [ROWS, (4, 3)], {}, "expected (B, K) and (K, N)"),
    "rows on the right": ("product", [ROWS, (BATCH, 3, 3)], {}, "expected (B, K) and (K, N)"),
    "heads that differ": ("product", [HEADS, (5, 3, 4)], {}, "expected (B, K) and (K, N)"),
    "a sum over no batch": ("outer", [WEIGHT, WEIGHT], {}, "outer: expected (B, K) and (B, N)"),
    "a sum along the batch": ("sum", [(BATCH,)], {}, "expected an axis that is not the batch"),
    "a maximum of a number": ("amax", [()], {}, "expected an axis that is not the batch"),
    "matrices that differ": (
        "matmul", [(BATCH, 2, 3), (BATCH, 2, 3)], {}, "expected (B, M, K) and (B, K, N)"),
    "matrices of no row": ("matmul", [WEIGHT, WEIGHT], {}, "expected (B, M, K) and (B, K, N)"),
    "rows turned": ("transpose", [ROWS], {}, "expected two axes beside the batch"),
    "a part that is too long": (
        "slice", [ROWS], {"axis": -1, "start": 1, "stop": 4}, "expected a part of 3"),
    "a part of the batch": (
        "slice", [ROWS], {"axis": -2, "start": 0, "stop": 1}, "not the batch"),
    "an axis from the front": (
        "slice", [ROWS], {"axis": 1, "start": 0, "stop": 1}, "an axis from the end"),
    "heights that differ": (
        "concat", [WEIGHT, (4, 4)], {"axis": -1}, "expected shapes that differ along axis -1"),
    "nothing side by side": ("concat", [], {"axis": -1}, "concat: got 0 operands"),
    "more numbers": ("reshape", [WEIGHT], {"shape": (13,)}, "expected as many numbers"),
    "the batch as a number": ("reshape", [ROWS], {"shape": (3, BATCH)}, "as many numbers"),
    "a stretch to less": ("expand", [WEIGHT], {"shape": (4,)}, "expected a shape that"),
    "a sum that keeps the batch": (
        "batch_sum", [ROWS], {"shape": (BATCH, 1)}, "expected a shape that stretches"),
    "an operation of nobody": ("fold", [ROWS], {}, "expected a known operation, got 'fold'"),
    "too many operands": ("tanh", [ROWS, ROWS], {}, "tanh: got 2 operands"),
    "an attribute too many": ("tanh", [ROWS], {"alpha": 1.0}, "the attributes ['alpha']"),
    "an attribute too few": ("elu", [ROWS], {}, "elu: got 1 operands and the attributes []"),
    "an attribute of another kind": ("elu", [ROWS], {"alpha": 1}, "expected another alpha than 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str) -> None:
    op, shapes, attrs, message = REFUSED[what]
    graph = Graph()
    operands = [graph.input(f"i{k}", shape) for k, shape in enumerate(shapes)]
    with pytest.raises(ValueError) as caught:
        graph.add(op, *operands, **attrs)
    assert message in str(caught.value)
    assert len(graph.nodes) == len(operands)


def test_a_node_that_exists_is_returned_and_numbers_count_by_what_they_are() -> None:
    graph = Graph()
    x = graph.input("x0", ROWS)
    assert graph.add("tanh", x) == graph.add("tanh", x)
    assert graph.constant(0.0) != graph.constant(-0.0)
    assert graph.constant(float("nan")) == graph.constant(float("nan"))
    assert len({graph.input("x1", ROWS), graph.input("x2", ROWS)}) == 2


def test_a_rewrite_keeps_inputs_and_sources_and_leaves_out_what_nobody_needs() -> None:
    graph = Graph()
    x, y = graph.input("x0", ROWS), graph.input("x1", ROWS)
    graph.add("exp", y)
    graph.outputs["state.h"] = graph.add("tanh", graph.add("neg", x))
    graph.sources[graph.outputs["state.h"]] = "at cell.py:7"
    doubled: Callable[..., Any] = lambda new, node, args, index: (  # noqa: E731
        new.add("add", new.add("tanh", *args), new.add("tanh", *args))
        if node.op == "tanh" else None
    )  # fmt: skip
    new = rewrite(graph, doubled)
    assert [n.op for n in new.nodes] == ["input", "input", "neg", "tanh", "add"]
    assert list(new.inputs) == ["x0", "x1"]
    assert new.sources == {3: "at cell.py:7", 4: "at cell.py:7"}


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_an_elementwise_operation_has_the_shape_of_its_operands_stretched(op: Any) -> None:
    graph = Graph()
    shapes = [ROWS, (3,), (1,)][: len(op.domain)]
    operands = [graph.input(f"i{k}", shape) for k, shape in enumerate(shapes)]
    node = graph.nodes[graph.add(op.name, *operands, **dict(op.attributes))]
    assert (node.shape, node.boolean) == (ROWS, op.boolean)
