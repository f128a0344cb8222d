"""What no program says of parameters alone is made by torch, and differentiated by autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import cells
from flexrnn.compose import CellStep
from flexrnn.engine.autocast import CastStep
from flexrnn.engine.compiler import ahead
from flexrnn.engine.compiler.passes import compile_step
from flexrnn.engine.compiler.trace import CannotCompileError

DOUBLE = torch.float64
T, B, I, H = 4, 3, 2, 5
Check = Callable[..., None]


class MatrixCell(flexrnn.Cell):
    """`h ← tanh(W x + function(cell, x, h))`, with parameters and buffers to make it of."""

    State = cells.HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, function=None):
        super().__init__(input_size, hidden_size)
        self.function: Any = function
        kind: Any = {"device": device, "dtype": dtype}
        self.inner = nn.Linear(input_size, hidden_size, **kind)
        self.U = nn.Parameter(torch.randn(hidden_size, hidden_size, **kind) / 3)
        self.a = nn.Parameter(torch.randn(hidden_size, 3, **kind) / 3)
        self.p = nn.Parameter(torch.randn(hidden_size, **kind))
        self.register_buffer("order", torch.arange(hidden_size).flip(0))
        self.register_buffer("small", torch.linspace(0, 1, hidden_size, dtype=torch.float32))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        past = self.function(self, x, state.h)
        return cells.HiddenState(torch.tanh(self.inner(x) + past))


def layer_of(function: Any, **options: Any) -> Any:
    return flexrnn.FlexRNN(MatrixCell, I, H, **{"dtype": DOUBLE, "function": function, **options})


def ahead_of(layer: Any) -> ahead.Ahead:
    x = torch.randn(T, B, I, dtype=next(layer.parameters()).dtype)
    program = flexrnn.explain(layer, x).steps[0].program
    assert program is not None
    assert program.graph.ahead is not None
    return program.graph.ahead


def skew(U: Tensor) -> Tensor:
    return U.triu(1) - U.triu(1).T


def zeroed(c: Any) -> Tensor:
    """Written into a tensor of the step's own, at places that a tensor says."""
    w = torch.zeros(H, H, dtype=c.p.dtype)
    i, j = torch.tril_indices(H, H, -1)
    w[i, j] = torch.cat([c.p, c.p])
    return w


def givens(c: Any) -> Tensor:
    """Written number by number."""
    w = torch.eye(H, dtype=c.p.dtype)
    w[0, 0] = w[1, 1] = c.p[0].cos()
    w[0, 1], w[1, 0] = c.p[0].sin(), -c.p[0].sin()
    w[2] += c.p
    w[3:] *= 2
    w.diagonal(1).copy_(c.p[1:])
    w.fill_diagonal_(0.5)
    return w


def without_derivative(c: Any) -> Tensor:
    with torch.no_grad():
        return torch.matrix_exp(c.U)


MADE: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "antisymmetric": lambda c, x, h: h @ skew(c.U),
    "beside a weight": lambda c, x, h: (h @ c.U).tanh() + (h @ torch.matrix_exp(c.U)).sigmoid(),
    "matrix exponential": lambda c, x, h: h @ torch.matrix_exp(c.U - c.U.T),
    "Cayley": lambda c, x, h: (
        h @ torch.linalg.solve(torch.eye(H) + skew(c.U), torch.eye(H) - skew(c.U))
    ),
    "reflected": lambda c, x, h: h - 2 * (h @ c.p)[:, None] * c.p / c.p.dot(c.p),
    "diagonal and low rank": lambda c, x, h: h @ (torch.diag(c.p) - c.a @ c.a.T),
    "without its diagonal": lambda c, x, h: h @ (c.U * (1 - torch.eye(H))),
    "orthogonal": lambda c, x, h: h @ torch.linalg.qr(c.U)[0],
    "of norm one": lambda c, x, h: h @ (c.U / torch.linalg.matrix_norm(c.U, 2)),
    "three at once": lambda c, x, h: h @ torch.einsum("ir,jr,r->ij", c.a, c.a, c.p[:3]),
    "bilinear": lambda c, x, h: (
        torch.einsum("bi,hij,bj->bh", h, c.U[:, :, None] * c.p, h)
    ),
    "circulant": lambda c, x, h: (
        h @ c.p[(torch.arange(H)[:, None] - torch.arange(H)) % H].mul(0.3)
    ),
    "sorted": lambda c, x, h: h * c.p.sort()[0],
    "summed on": lambda c, x, h: h * c.p.cumsum(0).softmax(0),
    "permuted": lambda c, x, h: h * c.p[c.order],
    "whole numbers": lambda c, x, h: h * (c.order == 2) + h * c.order / H,
    "other floats": lambda c, x, h: h * c.small + h * torch.full((H,), 0.1) * torch.tensor(0.7),
    "numbers": lambda c, x, h: h * h.new_tensor(0.3) + h * torch.tensor([0.1, 1, 2, 0, -1]),
    "written by place": lambda c, x, h: h @ zeroed(c),
    "written by number": lambda c, x, h: h @ givens(c),
    "checked": lambda c, x, h: h @ torch.linalg.inv(c.U + torch.eye(H)),
    "a buffer by what has no derivative": lambda c, x, h: (
        h * torch.heaviside(c.order.double() - 2, c.order.double())
    ),
    "complex inside": lambda c, x, h: (
        h * torch.view_as_real(torch.polar(c.p.exp(), c.p)).sum(-1)
    ),
    "complex numbers": lambda c, x, h: (h * torch.polar(c.p.exp(), c.p)).real,
    "detached": lambda c, x, h: h @ (c.U.triu().detach() * c.p),
    "without a derivative": lambda c, x, h: h @ without_derivative(c),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_engines_compute_what_the_loop_does(name: str, same_by_program: Check) -> None:
    layer = layer_of(MADE[name])
    assert ahead_of(layer).names
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    same_by_program(layer, x, torch.randn(1, B, H, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("name", ["antisymmetric", "whole numbers", "numbers"])
def test_in_single_precision(name: str) -> None:
    layer = layer_of(MADE[name], dtype=torch.float32)
    assert ahead_of(layer).names
    found = []
    for engine in ("reference", "cpu"):
        with flexrnn.backend(engine):
            output, _ = layer(torch.linspace(-1, 1, T * B * I).view(T, B, I))
        leaves = [p for p in layer.parameters() if p.requires_grad]
        grads: Any = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True)
        found.append([output, *(g for g in grads if g is not None)])
    assert_close(*found, rtol=1e-5, atol=1e-6)


MODULES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


class ModuleCell(cells.RNNCell):
    """A tanh RNN whose products are those of modules, the recurrent one's with a constraint."""

    def __init__(self, *sizes: Any, dtype: Any = None, constraint: str, **options: Any) -> None:
        super().__init__(*sizes, dtype=dtype, **options)
        self.inner = MODULES[constraint](nn.Linear(H, H, dtype=dtype))

    def step(self, x: Tensor, state: cells.HiddenState) -> cells.HiddenState:
        return cells.HiddenState(torch.tanh(F.linear(x, self.weight_ih) + self.inner(state.h)))


@pytest.mark.parametrize("constraint", MODULES)
def test_a_module_inside_with_a_constraint(constraint: str, same_by_program: Check) -> None:
    layer = flexrnn.FlexRNN(ModuleCell, I, H, dtype=DOUBLE, constraint=constraint)
    assert ahead_of(layer).names
    same_by_program(layer, torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True))


@pytest.mark.parametrize("case", ["two layers", "lengths", "packed", "reset", "checkpoints",
                                  "zoneout", "batch first"])  # fmt: skip
def test_with_everything_that_a_layer_adds(case: str) -> None:
    options: dict[str, Any] = {
        "two layers": {"num_layers": 2, "bidirectional": True},
        "checkpoints": {"checkpoint_every": 2},
        "zoneout": {"zoneout": 0.3},
        "batch first": {"batch_first": True},
    }.get(case, {})
    layer = layer_of(MADE["antisymmetric"], **options)
    x: Any = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    marks: dict[str, Any] = {}
    if case == "lengths":
        marks["lengths"] = torch.tensor([4, 1, 3])
    if case == "reset":
        marks["reset"] = torch.rand(T, B) < 0.4
    found = []
    for engine in ("reference", "cpu"):
        torch.manual_seed(1)
        given = pack_padded_sequence(x, [4, 3, 1]) if case == "packed" else x
        with flexrnn.backend(engine):
            output, state = layer(given, **marks)
        output = output.data if case == "packed" else output
        loss = output.square().sum() + state.sum()
        grads: Any = torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True)
        found.append([output, *(g for g in grads if g is not None)])
    assert_close(*found, rtol=1e-11, atol=1e-11)


def test_it_is_made_anew_at_every_call() -> None:
    """Also where calls come again and are written down, with derivatives and without, and steps."""
    layer = layer_of(MADE["matrix exponential"])
    x = torch.randn(T, B, I, dtype=DOUBLE)
    for k in range(8):
        with torch.no_grad():
            layer.U_l0.copy_(torch.randn(H, H).double() / 3)
        found = []
        for engine in ("cpu", "reference"):
            with flexrnn.backend(engine):
                output, _ = layer(x)
                grads = torch.autograd.grad(output.sum(), [layer.U_l0, layer.inner_weight_l0])
                with torch.no_grad():
                    found.append([output, *grads, layer(x)[0], layer.step(x[k % T])[0]])
        assert_close(*found, rtol=1e-12, atol=1e-12)


def test_what_is_not_differentiated_gets_no_gradient() -> None:
    layer = layer_of(MADE["without a derivative"])
    layer(torch.randn(T, B, I, dtype=DOUBLE))[0].sum().backward()
    assert layer.U_l0.grad is None
    frozen = layer_of(MADE["antisymmetric"])
    frozen.U_l0.requires_grad_(False)
    frozen(torch.randn(T, B, I, dtype=DOUBLE))[0].sum().backward()
    assert frozen.U_l0.grad is None
    assert frozen.inner_weight_l0.grad is not None


def test_second_derivatives() -> None:
    layer = layer_of(MADE["matrix exponential"])
    x = torch.randn(2, 2, I, dtype=DOUBLE, requires_grad=True)

    def run(x: Tensor, U: Tensor) -> Tensor:
        weights = dict(layer.named_parameters()) | {"U_l0": U}
        return torch.func.functional_call(layer, weights, (x,))[0]

    with flexrnn.backend("cpu"):
        U = torch.randn(H, H, dtype=DOUBLE, requires_grad=True)
        assert torch.autograd.gradcheck(run, (x, U))
        assert torch.autograd.gradgradcheck(run, (x, U))


def test_scan_with_parameters() -> None:
    def step(x: Tensor, h: Tensor, U: Tensor) -> Tensor:
        return torch.tanh(x + h @ U.triu())

    x, h = torch.randn(T, B, H, dtype=DOUBLE), torch.zeros(B, H, dtype=DOUBLE)
    U = torch.randn(H, H, dtype=DOUBLE, requires_grad=True)
    found = []
    for engine in ("reference", "interpreter", "cpu"):
        with flexrnn.backend(engine):
            states, final = flexrnn.scan(step, h, x, U)
        found.append([states, final, *torch.autograd.grad(states.sum(), U)])
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def written_by_data(c: Any, x: Tensor, h: Tensor) -> Tensor:
    w = c.U.tril()
    w.data.mul_(2)
    return h @ w


def written_by_detached(c: Any, x: Tensor, h: Tensor) -> Tensor:
    w = c.U.tril()
    w.detach()[0] = 1.0
    return h @ w


twice = torch.library.custom_op("flexrnn_tests::relu", lambda a: 2 * a, mutates_args=(),
                                schema="(Tensor a) -> Tensor")  # fmt: skip
twice.register_fake(torch.empty_like)

REFUSED = {
    "random numbers": (lambda c, x, h: h @ F.dropout(c.U.triu(), 0.3), "random numbers"),
    "noise": (lambda c, x, h: h + torch.rand(H), "random numbers"),
    "a number taken out": (lambda c, x, h: h * c.U.trace().item(), "a number out of a tensor"),
    "wider floats": (lambda c, x, h: (h * c.p.double()).float(), "torch.float64"),
    "a part by a mask": (lambda c, x, h: h * c.p[c.p > -9], "indexing by a mask"),
    "of a size that depends on numbers": (
        lambda c, x, h: h * c.p.masked_select(c.p > -9),
        "masked_select",
    ),
    "without a derivative": (lambda c, x, h: h * torch.heaviside(c.p, c.p), "no derivative"),
    "written by data": (written_by_data, "it writes where no derivative passes"),
    "written where detached": (written_by_detached, "it writes where no derivative passes"),
    "an operation of somebody's": (lambda c, x, h: h * twice(c.p), "it is not torch's own"),
    "one that is called like torch's": (lambda c, x, h: twice(h), "it is not torch's own"),
    "a product of two dtypes": (lambda c, x, h: h @ c.U.half().triu(), "torch.float16"),
    "not of parameters alone": (lambda c, x, h: torch.erfinv(h), "not among the operations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_still(name: str) -> None:
    function, reason = REFUSED[name]
    layer = layer_of(function, dtype=torch.float32)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match=reason) as caught:
        layer(torch.randn(T, B, I))
    assert f"at {__file__}:" in str(caught.value)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_what_torch_checks_is_checked(engine: str) -> None:
    layer = layer_of(lambda c, x, h: h @ torch.linalg.inv(0 * c.U))
    with flexrnn.backend(engine), pytest.raises(RuntimeError, match="matrix is singular"):
        layer(torch.randn(T, B, I, dtype=DOUBLE))


def test_under_autocast_it_is_refused() -> None:
    """A cast step's tensors are cast for its products; torch would compute with cast ones."""
    cell = MatrixCell(I, H, function=MADE["matrix exponential"])
    step = CastStep(CellStep(cell), torch.bfloat16)
    xs, state = torch.randn(T, B, I).bfloat16(), torch.zeros(B, H).bfloat16()
    with pytest.raises(CannotCompileError, match="not computed under autocast"):
        compile_step(step, (xs,), (state,), ())
    plain = CellStep(cell.bfloat16())  # the same cell and dtypes, and nothing is cast
    assert compile_step(plain, (xs,), (state,), ()).graph.ahead is not None


@pytest.mark.parametrize(
    "function",
    [lambda c, x, h: h[:, torch.arange(H).flip(0)], lambda c, x, h: h.cumsum(-1)],
    ids=["units by number", "running sum"],
)
def test_under_autocast_it_is_made_where_nothing_cast_is_read(function: Any) -> None:
    step = CastStep(CellStep(MatrixCell(I, H, function=function)), torch.bfloat16)
    xs, state = torch.randn(T, B, I).bfloat16(), torch.zeros(B, H).bfloat16()
    made = compile_step(step, (xs,), (state,), ()).graph.ahead
    assert made is not None
    assert [m.dtype for m in made.of({})] == [torch.bfloat16]


@pytest.mark.parametrize("name", MADE)
def test_its_text_is_the_same_again(name: str) -> None:
    made = ahead_of(layer_of(MADE[name]))
    text = ahead.dumps(made)
    assert "\n" not in text
    read = ahead.loads(text)
    assert ahead.dumps(read) == text
    tensors = {
        f"param.{name}": t for name, t in MatrixCell(I, H, dtype=DOUBLE).state_dict().items()
    }
    assert_close(read.of(tensors), made.of(tensors), rtol=0, atol=0)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1, 2, 3, 4, 5]", '[[], [], [], [["x"]], []]'])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ahead.loads(text)


def test_what_is_written_twice_is_computed_once() -> None:
    made = ahead_of(layer_of(MADE["antisymmetric"]))
    assert [call.name for call in made.calls] == ["triu.default", "permute.default", "sub.Tensor"]
    made = ahead_of(layer_of(lambda c, x, h: h @ c.U.triu() + h.relu() @ c.U.triu()))
    assert len(made.names) == len(made.calls) == 1


def test_explain_says_so() -> None:
    layer, x = layer_of(MADE["antisymmetric"]), torch.randn(T, B, I, dtype=DOUBLE)
    text = str(flexrnn.explain(layer, x, stages=True))
    assert "layer 0: 1 made ahead by torch; 2 products, 1 in the loop; " in text
    shape = " " * 43 + "(5, 5)"
    lines = ["once a call, by torch", "    t1 = triu(U, 1)", "    t2 = permute(t1, [1, 0])",
             f"    .sub = sub(t1, t2){shape}"]  # fmt: skip
    assert "\n".join(lines) in text
