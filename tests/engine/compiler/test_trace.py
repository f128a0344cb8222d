"""What is refused, with operation, file and line; and what is not."""

import inspect
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import flexrnn
from flexrnn import cells

OUTSIDE = torch.randn(5, 5, dtype=torch.float64)


def branches(cell: Any, z: Tensor, h: Tensor) -> Tensor:
    if h.shape[0] > 3:
        return h
    return h + z


def writes(cell: Any, z: Tensor, h: Tensor) -> Tensor:
    h.mul_(0.5)
    return h + z


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "a branch on the batch size": (branches, "the step's course depends on the batch size"),
    "a tensor from outside": (lambda c, z, h: h @ OUTSIDE + z, "neither input, state nor"),
    "random numbers": (lambda c, z, h: h + z * torch.randn(5), "it draws random numbers"),
    "a write to the state": (
        writes,
        "it writes into the input, the state, a parameter or a buffer",
    ),
    "the mean over the batch": (lambda c, z, h: h - z.mean(0), "it works across the batch"),
    "softmax over the batch": (lambda c, z, h: F.softmax(z, 0) + h, "it works across the batch"),
    "flipping the batch": (lambda c, z, h: z.flip(0) + h, "it works across the batch"),
    "a product of two rows": (lambda c, z, h: (h @ z.T) @ h, "the batch"),
    "a Bessel function": (
        lambda c, z, h: torch.special.i0e(z) + h,
        "aten.special_i0e.default cannot be compiled",
    ),
    "another dtype": (lambda c, z, h: (z.float() + 1).double() + h, "torch.float32"),
    "a hook": (
        lambda c, z, h: h + (y := z.tanh(), y.register_hook(torch.neg))[0],
        "nobody calls hooks in a backward pass that is compiled",
    ),
    "whether tensors are equal": (
        lambda c, z, h: h if torch.equal(z, h) else z,
        "takes a number out of a tensor",
    ),
    "a number taken out": (lambda c, z, h: h * float(z.detach().sum()), "takes a number out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_is_no_program_is_refused_with_file_and_line(
    name: str, function_layer: Any
) -> None:
    function, reason = REFUSED[name]
    layer = function_layer(function)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    report = flexrnn.explain(layer, x).steps[0]
    assert report.program is None
    assert reason in report.refusal
    lines, first = inspect.getsourcelines(function)
    file, _, line = report.refusal.partition(" at ")[2].rpartition(":")
    assert file == __file__
    assert first <= int(line) < first + len(lines)
    with flexrnn.backend("interpreter"), pytest.raises(RuntimeError) as caught:
        layer(x)
    assert str(caught.value) == report.refusal
    with flexrnn.backend("reference"):
        assert layer(x)[0].shape == (4, 2, 5)  # the eager loop takes it


def test_torch_logs_nothing_of_what_fails(function_layer: Any, caplog: Any) -> None:
    layer = function_layer(lambda cell, z, h: z @ h)
    assert flexrnn.explain(layer, torch.randn(4, 2, 3).double()).steps[0].program is None
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
    logging.getLogger("torch._subclasses.fake_tensor").error("of others, it does")
    assert caplog.messages[-1] == "of others, it does"


ASKING = """
def step(cell, z, h):
    y = h + z
    return {} * y
"""
ASKED = {
    "a branch on the batch size": ("(2 if z.size(0) == 1 else 1)", "depends on the batch size"),
    "a question for gradients": ("(2 if y.requires_grad else 1)", "requires_grad cannot be"),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("<stdin>", "__main__"),
        ("<string>", "__main__"),
        ("<string>", None),
        ("<ipython-input-3-0123456789ab>", "__main__"),
        (f"{Path(torch.__file__).parent}foo/cell.py", "torchfoo.cell"),
    ],
)
def test_a_person_may_write_where_no_file_is_or_beside_torch(
    name: str, file: str, module: str | None, function_layer: Any
) -> None:
    asking, reason = ASKED[name]
    defined = {} if module is None else {"__name__": module}
    exec(compile(ASKING.format(asking), file, "exec"), defined)
    layer = function_layer(defined["step"])
    refusal = flexrnn.explain(layer, torch.randn(4, 2, 3, dtype=torch.float64)).steps[0].refusal
    assert reason in refusal
    assert refusal.endswith(f" at {file}:4")


def test_the_line_is_the_persons_when_a_module_inside_the_cell_is_refused(
    function_layer: Any,
) -> None:
    def dropped(cell: Any, z: Tensor, h: Tensor) -> Tensor:
        return nn.Dropout(0.5)(z) + h

    report = flexrnn.explain(function_layer(dropped), torch.randn(4, 2, 3).double()).steps[0]
    assert report.refusal.endswith(f"{__file__}:{inspect.getsourcelines(dropped)[1] + 1}")


def test_a_trace_has_a_letter_for_the_batch_and_serves_every_batch_size(
    function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    layer = function_layer(lambda c, z, h: torch.tanh(z + h.reshape(h.shape[0], 5)))
    with_one = flexrnn.explain(layer, torch.randn(4, 1, 3).double()).steps[0].program
    with_nine = flexrnn.explain(layer, torch.randn(4, 9, 3).double()).steps[0].program
    assert with_one is not None
    assert with_nine is not None
    assert with_one.graph.nodes == with_nine.graph.nodes
    assert with_one.graph.nodes[with_one.graph.inputs["x0"]].shape == ("B", 3)
    for batch in (1, 2, 9):
        same_by_program(layer, torch.randn(4, batch, 3).double())


def test_one_tensor_for_two_states_stays_two_inputs(same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.LSTM(3, 5, dtype=torch.float64)
    both = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    same_by_program(layer, torch.randn(4, 2, 3).double(), (both, both))


HEADS: dict[str, Callable[..., Tensor]] = {
    "einsum": lambda h, w: torch.einsum("bgk,gkn->bgn", h.unflatten(-1, (2, 3)), w).flatten(1),
    "einsum, rows first": lambda h, w: torch.einsum(
        "bgk,gnk->bgn", h.unflatten(-1, (2, 3)), w
    ).flatten(1),
    "bmm": lambda h, w: (
        torch.bmm(h.unflatten(-1, (2, 3)).transpose(0, 1), w).transpose(0, 1).reshape(-1, 6)
    ),
    "matmul": lambda h, w: (h.unflatten(-1, (2, 1, 3)) @ w).flatten(1),
}


class HeadsCell(flexrnn.Cell):
    """Two heads of three units; the recurrent product is block-diagonal."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how="einsum"):
        super().__init__(input_size, hidden_size)
        self.how = how
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.weight_hh = nn.Parameter(torch.randn(2, 3, 3, device=device, dtype=dtype))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        recurrent = HEADS[self.how](state.h, self.weight_hh)
        return cells.HiddenState(torch.tanh(self.inner(x) + recurrent))


@pytest.mark.parametrize("how", HEADS)
def test_products_by_heads_are_one_product(how: str, same_by_program: Callable[..., None]) -> None:
    layer = flexrnn.FlexRNN(HeadsCell, 4, 6, dtype=torch.float64, how=how)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    loop = [program.graph.nodes[i] for i in program.schedule.loop]
    assert [n.shape for n in loop if n.op == "product"] == [("B", 2, 3)]
    same_by_program(layer, x)


def warns(cell: Any, z: Tensor, h: Tensor) -> Tensor:
    warnings.warn("a step's own", stacklevel=1)
    return h + z


def test_a_warning_that_is_an_error_is_no_refusal(function_layer: Any) -> None:
    layer, x = function_layer(warns), torch.randn(2, 3, 3, dtype=torch.float64)
    with flexrnn.backend("interpreter"):
        with pytest.raises(UserWarning, match="a step's own"):
            layer(x)
        with pytest.warns(UserWarning, match="a step's own"):
            assert layer(x)[0].shape == (2, 3, 5)


def test_a_trace_imports_no_more_of_torch_than_it_has_to() -> None:
    """Torch would import its exporter, a third of a second, to say where a size was asked for."""
    program = """
import sys, torch, flexrnn
flexrnn.explain(flexrnn.LSTM(2, 3), torch.randn(4, 1, 2))
sys.exit("torch.export._trace" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@torch.compile(backend="eager")
def gated(z: Tensor, h: Tensor) -> Tensor:
    return torch.sigmoid(z) * h + torch.tanh(z)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo looks at it
def test_what_is_compiled_by_torch_runs_as_it_is_written(
    function_layer: Any, same_by_program: Callable[..., None]
) -> None:
    same_by_program(
        function_layer(lambda c, z, h: gated(z, h)), torch.randn(2, 3, 3, dtype=torch.float64)
    )
