"""Steps that draw random numbers: the same by every engine, new at every step, of the right law."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import flexrnn
from flexrnn.cells import HiddenState
from flexrnn.signs import may_draw

from .quickly import compile_quickly

B, T, I, H = 4, 6, 3, 5
DOUBLE = torch.float64


class Noisy(flexrnn.Cell):
    """`h ← how(cell, W [x, h] + b, h)`."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, how=None):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size + hidden_size, hidden_size, bias, device, dtype)
        self.drop = nn.Dropout(0.3)
        self.how: Any = how

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        return HiddenState(self.how(self, self.inner(torch.cat([x, state.h], -1)), state.h))


def scale(h: Tensor) -> Tensor:
    return 0.8 * h.sigmoid() + 0.1


def three(z: Tensor, h: Tensor) -> Tensor:
    """Three distributions over five, `(B, 3, 5)`."""
    return torch.cat([z, h, z + h], 1).unflatten(1, (3, 5))


FROM_2_TO_3: Any = {"from": 2, "to": 3}

DRAWN: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "nn.Dropout": lambda c, z, h: torch.tanh(c.drop(z) + h),
    "dropout": lambda c, z, h: F.dropout(torch.tanh(z), 0.2, c.training),
    "dropout in place": lambda c, z, h: F.dropout(z.tanh() + h, 0.2, c.training, inplace=True),
    "torch.dropout": lambda c, z, h: torch.dropout(torch.tanh(z), 0.2, c.training),
    "randn_like": lambda c, z, h: torch.tanh(z + 0.1 * torch.randn_like(z)),
    "rand_like": lambda c, z, h: 0.9 * h + (torch.rand_like(z) < z.sigmoid()).to(z.dtype) + z,
    "randn": lambda c, z, h: torch.tanh(z + torch.randn(z.shape, dtype=z.dtype)),
    "randn, one number a row": lambda c, z, h: z.tanh() + torch.randn(z.size(0), 1, dtype=z.dtype),
    "randn, size=": lambda c, z, h: z.tanh() + torch.randn(size=(z.size(0), 5), dtype=z.dtype),
    "rand": lambda c, z, h: z.tanh() * torch.rand(*z.shape, dtype=z.dtype, device=z.device),
    "normal": lambda c, z, h: torch.normal(z, scale(h)) + z,
    "normal, a number": lambda c, z, h: torch.normal(0.5, scale(h)) + z.tanh(),
    "normal, a size": lambda c, z, h: z.tanh() + torch.normal(0.0, 2.0, z.shape, dtype=z.dtype),
    "bernoulli": lambda c, z, h: z * torch.bernoulli(z.sigmoid()),
    "bernoulli of a number": lambda c, z, h: z.tanh() * z.bernoulli(0.6),
    "bernoulli_": lambda c, z, h: z.tanh() * torch.empty_like(z).bernoulli_(0.7) / 0.7,
    "bernoulli_ of a tensor": lambda c, z, h: z.tanh() * torch.empty_like(z).bernoulli_(scale(h)),
    "uniform_": lambda c, z, h: z.tanh() + torch.empty_like(z).uniform_(-1, 1),
    "normal_": lambda c, z, h: z.tanh() + z.new_empty(z.shape).normal_(std=0.5),
    "uniform_, from=": lambda c, z, h: z.tanh() + torch.empty_like(z).uniform_(**FROM_2_TO_3),
    "by names": lambda c, z, h: torch.randn_like(input=z) * torch.bernoulli(input=scale(h)) + z,
    "written to": lambda c, z, h: torch.tanh(z * torch.randn_like(z).mul_(0.1).add_(h) + z),
    "into truth values": lambda c, z, h: z.tanh()
    * torch.empty_like(z, dtype=torch.bool).bernoulli_(scale(h).detach()),
    "exponential_": lambda c, z, h: z.tanh() + z.new_empty(z.shape).exponential_(2.0),
    "gumbel_softmax": lambda c, z, h: F.gumbel_softmax(z + h, 1.0),
    "gumbel_softmax, hard": lambda c, z, h: F.gumbel_softmax(z + h, 0.5, hard=True),
    "gumbel_softmax of groups": lambda c, z, h: F.gumbel_softmax(
        three(z, h).reshape(-1, 5)
    ).reshape(-1, 15)[:, 4:9],
    "multinomial": lambda c, z, h: z.tanh() + torch.multinomial(z.softmax(-1), 1).to(z.dtype),
    "several": lambda c, z, h: c.drop(z) + torch.randn_like(h) * h + F.dropout(h, 0.1, c.training),
    "nobody's": lambda c, z, h: (torch.randn_like(z), z + h)[1],
    "Normal": lambda c, z, h: distributions.Normal(z, scale(h)).rsample(),
    "Normal, sampled": lambda c, z, h: distributions.Normal(z, scale(h)).sample() + z,
    "Laplace": lambda c, z, h: distributions.Laplace(z, scale(h)).rsample(),
    "Bernoulli": lambda c, z, h: distributions.Bernoulli(logits=z).sample() + z.tanh(),
    "OneHotCategorical": lambda c, z, h: distributions.OneHotCategorical(logits=z).sample() + z,
    "straight through": lambda c, z, h: distributions.OneHotCategoricalStraightThrough(
        logits=z
    ).rsample(),
    "RelaxedBernoulli": lambda c, z, h: distributions.RelaxedBernoulli(
        torch.tensor(0.5, dtype=z.dtype), logits=z
    ).rsample(),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step means does not depend on how fast its loop is."""
    compile_quickly(monkeypatch)


@pytest.fixture
def agree() -> Callable[..., None]:
    """Assert that engines give the same from a seed, values and gradients; return the output."""

    def check(layer: nn.Module, x: Any, *engines: str, **marks: Any) -> None:
        found: list[Any] = []
        for engine in ("reference", *(engines or ("interpreter", "cpu"))):
            torch.manual_seed(5)
            with flexrnn.backend(engine):
                output, state = layer(x, **marks)
            values = [getattr(output, "data", output), *(s for s in state.unbind(0))]
            weights = torch.linspace(-1, 2, values[0].numel(), dtype=DOUBLE).view_as(values[0])
            loss = (values[0] * weights).sum() + values[-1].sum()
            found.append([*values, *torch.autograd.grad(loss, [*layer.parameters()])])
        for others in found[1:]:
            assert_close(others, found[0], rtol=1e-11, atol=1e-11)

    return check


def layer_of(how: Any, **options: Any) -> flexrnn.FlexRNN:
    return flexrnn.FlexRNN(Noisy, I, H, how=how, dtype=DOUBLE, **options)


@pytest.mark.parametrize("how", DRAWN.values(), ids=DRAWN)
def test_every_engine_has_the_same_numbers(how: Any, agree: Callable[..., None]) -> None:
    layer, x = layer_of(how), torch.randn(T, B, I, dtype=DOUBLE)
    agree(layer, x, "interpreter")  # programs are the same for every engine
    agree(layer, x[:, :1], "interpreter")


@pytest.mark.parametrize("how", ["nn.Dropout", "several", "straight through"])
def test_training_and_evaluation(how: str, agree: Callable[..., None]) -> None:
    layer, x = layer_of(DRAWN[how]), torch.randn(T, B, I, dtype=DOUBLE)
    agree(layer, x)
    agree(layer.eval(), x)


def drawn_as(law: str) -> Any:
    """What a function draws by a layer of ours whose state is nothing else: `(T·B·H,)`."""
    return {
        "dropout": lambda c, z, h: F.dropout(torch.ones_like(z), 0.3),
        "randn_like": lambda c, z, h: torch.randn_like(z),
        "normal": lambda c, z, h: torch.normal(torch.ones_like(z), 2.0),
        "uniform_": lambda c, z, h: torch.empty_like(z).uniform_(-1, 3),
        "uniform_, from=": lambda c, z, h: torch.empty_like(z).uniform_(**FROM_2_TO_3),
    "by names": lambda c, z, h: torch.randn_like(input=z) * torch.bernoulli(input=scale(h)) + z,
    "written to": lambda c, z, h: torch.tanh(z * torch.randn_like(z).mul_(0.1).add_(h) + z),
    "into truth values": lambda c, z, h: z.tanh()
    * torch.empty_like(z, dtype=torch.bool).bernoulli_(scale(h).detach()),
    "exponential_": lambda c, z, h: torch.empty_like(z).exponential_(2.0),
        "bernoulli": lambda c, z, h: torch.bernoulli(torch.full_like(z, 0.3)),
        "bernoulli_": lambda c, z, h: torch.empty_like(z).bernoulli_(0.3),
        "gumbel_softmax": lambda c, z, h: F.gumbel_softmax(torch.zeros_like(z)),
        "multinomial": lambda c, z, h: torch.multinomial(
            torch.arange(1.0, 6, dtype=z.dtype).expand_as(z), 1
        ) + torch.zeros_like(z),
    }[law]  # fmt: skip


LAWS = (
    "dropout",
    "randn_like",
    "normal",
    "uniform_",
    "uniform_, from=",
    "exponential_",
    "bernoulli",
    "bernoulli_",
    "gumbel_softmax",
    "multinomial",
)


@pytest.mark.parametrize("law", LAWS)
@torch.no_grad()
def test_the_law_is_torchs(law: str) -> None:
    how = drawn_as(law)
    z = torch.zeros(100, 40, H, dtype=DOUBLE)
    with flexrnn.backend("cpu"):
        ours = layer_of(how)(z[..., :I])[0]
    theirs = how(None, z.flatten(0, 1), None).view_as(ours)
    for moment in (1, 2, 3):
        a, b = ours**moment, theirs**moment
        error = (a.var() + b.var()).sqrt() / 4000**0.5  # at most H of the numbers go together
        assert abs(a.mean() - b.mean()) < 5 * error
    one_step, one_row = ours[0], ours[:, 0]
    assert not torch.equal(one_step, ours[1])
    assert not torch.equal(one_row, ours[:, 1])


def test_a_seed_repeats_the_numbers_and_every_call_has_new_ones() -> None:
    layer, x = layer_of(DRAWN["several"], backend="cpu"), torch.randn(T, B, I, dtype=DOUBLE)
    torch.manual_seed(1)
    first, second = layer(x)[0], layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    assert torch.equal(layer(x)[0], second)
    assert not torch.equal(first, second)


def test_nothing_is_drawn_to_find_out_what_is_drawn() -> None:
    layer, x = layer_of(lambda c, z, h: z.tanh()), torch.randn(T, B, I, dtype=DOUBLE)
    before = torch.get_rng_state()
    with flexrnn.backend("reference"):
        layer(x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["several", "multinomial"])
@pytest.mark.parametrize(
    ("options", "marks"),
    [
        ({}, {"lengths": torch.tensor([6, 2, 0, 5])}),
        ({}, {"reset": torch.rand(T, B) < 0.3}),
        ({"num_layers": 2, "bidirectional": True, "dropout": 0.2}, {}),
        ({"batch_first": True}, {}),
        ({"zoneout": 0.4}, {"lengths": torch.tensor([6, 2, 3, 5])}),
        ({"checkpoint_every": 2}, {}),
    ],
    ids=["lengths", "reset", "layers", "batch first", "zoneout", "checkpoints"],
)
def test_with_everything_that_a_layer_has(
    how: str, options: Any, marks: Any, agree: Callable[..., None]
) -> None:
    shape = (B, T, I) if options.get("batch_first") else (T, B, I)
    agree(layer_of(DRAWN[how], **options), torch.randn(shape, dtype=DOUBLE), **marks)


def test_a_packed_sequence(agree: Callable[..., None]) -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I, dtype=DOUBLE), torch.tensor([6, 4, 4, 1]))
    agree(layer_of(DRAWN["several"]), packed)


def test_checkpoints_change_nothing() -> None:
    plain, x = layer_of(DRAWN["several"]), torch.randn(T, B, I, dtype=DOUBLE)
    cut = copy.deepcopy(plain)
    cut.checkpoint_every = 2
    found = []
    for layer in (plain, cut):
        torch.manual_seed(2)
        output = layer(x)[0]
        found.append([output, *torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_single_steps() -> None:
    layer, x = layer_of(DRAWN["nn.Dropout"]), torch.randn(T, B, I, dtype=DOUBLE)
    outputs = []
    for engine in ("reference", "cpu"):
        torch.manual_seed(2)
        state, found = None, []
        with flexrnn.backend(engine), torch.no_grad():
            for x_t in x:
                output, state = layer.step(x_t, state)
                found.append(output)
        outputs.append(torch.stack(found))
    assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["nn.Dropout", "Normal"])
def test_finite_differences_agree(how: str) -> None:
    layer = layer_of(DRAWN[how], backend="cpu")
    x = torch.randn(3, 2, I, dtype=DOUBLE, requires_grad=True)

    def call(x: Tensor) -> Any:
        torch.manual_seed(3)
        return layer(x)

    assert torch.autograd.gradcheck(call, x)


def test_explain_says_which_engine_runs_and_what_comes_with_the_input() -> None:
    layer = layer_of(DRAWN["randn_like"])
    (step,) = flexrnn.explain(layer, torch.randn(T, B, I, dtype=DOUBLE)).steps
    assert step.engine == "cpu"
    assert step.program is not None
    assert [name for name in step.program.graph.inputs if name.startswith("x")] == ["x0", "x1"]


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
def test_what_nobody_can_draw_ahead_runs_by_the_reference() -> None:
    def shared(c: Any, z: Tensor, h: Tensor) -> Tensor:  # one noise for all rows
        return torch.tanh(z + torch.randn(5, dtype=z.dtype) * c.drop(h))

    layer, x = layer_of(shared), torch.randn(T, B, I, dtype=DOUBLE)
    with flexrnn.backend("cpu"), pytest.raises(RuntimeError, match="it draws random numbers, at"):
        layer(x)
    found = []
    for every in (None, 2):  # computed anew, it draws the same
        layer.checkpoint_every = every
        torch.manual_seed(4)
        output = layer(x)[0]
        found.append([output, *torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def drawn_inside_a_checkpoint(c: Any, z: Tensor, h: Tensor) -> Tensor:
    noisy: Any = checkpoint(lambda z: z * torch.randn_like(z), z, use_reentrant=False)
    return torch.tanh(noisy + z)


def now_and_then(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return c.drop(z) if h.detach().any() else z.tanh()


def where_gradients_are(c: Any, z: Tensor, h: Tensor) -> Tensor:
    return z.tanh() * torch.rand_like(z) if torch.is_grad_enabled() else z


@pytest.mark.filterwarnings("ignore::flexrnn.FallbackWarning")
@pytest.mark.parametrize(
    "how",
    [
        *(
            lambda c, z, h, n=n: torch.tanh(z + torch.randn(n, dtype=z.dtype).sum() * c.drop(h))
            for n in (7, 11, 14, 77)
        ),
        drawn_inside_a_checkpoint,
        now_and_then,
        where_gradients_are,
        lambda c, z, h: F.alpha_dropout(z, 0.3, training=True).tanh(),
    ],
)
def test_what_the_step_draws_itself_is_the_same_when_it_is_computed_anew(how: Any) -> None:
    layer, x = layer_of(how), torch.randn(T, B, I, dtype=DOUBLE)
    found = []
    for every in (None, 2):  # computed anew, it draws the same
        layer.checkpoint_every = every
        torch.manual_seed(4)
        output = layer(x)[0]
        found.append([output, *torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_a_step_that_draws_now_and_then_is_the_references() -> None:
    def sometimes(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return c.drop(z) if not h.detach().any() else z.tanh() + torch.rand_like(h)

    layer, x = layer_of(sometimes), torch.randn(T, B, I, dtype=DOUBLE)
    with pytest.warns(flexrnn.FallbackWarning, match="takes a number out of a tensor"):
        assert layer(x)[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_get_the_same_numbers() -> None:
    layer, x = layer_of(DRAWN["several"]), torch.randn(T, B, I, dtype=DOUBLE)

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return layer(x)[0].sum()

    leaf = x.clone().requires_grad_()
    (right,) = torch.autograd.grad(call(leaf), leaf)
    assert_close(torch.func.grad(call)(x), right, rtol=1e-11, atol=1e-11)
    value, *_ = torch.func.jvp(call, (x,), (torch.ones_like(x),))
    assert_close(value, call(x), rtol=1e-11, atol=1e-11)


def test_rows_of_a_vmap_inside_a_step_differ() -> None:
    def several(c: Any, z: Tensor, h: Tensor) -> Tensor:
        ones = torch.ones(20, *z.shape, dtype=z.dtype)
        many = torch.func.vmap(lambda v: F.dropout(v, 0.5), randomness="different")(ones)
        assert 0 < many.mean() < 2
        return z.tanh() + many.std(0)

    with flexrnn.backend("reference"):
        assert layer_of(several)(torch.zeros(T, B, I, dtype=DOUBLE))[1].min() > 0


def test_a_seed_inside_a_step_counts() -> None:
    masks = []

    def one_mask(c: Any, z: Tensor, h: Tensor) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            masks.append(torch.rand_like(z))
        return z * masks[-1]

    with flexrnn.backend("reference"):
        layer_of(one_mask)(torch.randn(T, B, I, dtype=DOUBLE))
    assert torch.equal(masks[-1], masks[-2])


class Delayed(flexrnn.Cell):
    """Keeps things outside of the state, as only the reference lets it."""

    State = HiddenState

    def __init__(self, input_size, hidden_size, bias=True, device=None, dtype=None, **_):
        super().__init__(input_size, hidden_size)
        self.inner = nn.Linear(input_size, hidden_size, bias, device, dtype)
        self.line: Any = [None]
        self.count = [0]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.inner.weight, -0.1, 0.1)

    def step(self, x: Tensor, state: HiddenState) -> HiddenState:
        z = self.inner(x)
        before = z if self.line[0] is None else self.line[0]
        self.line[0] = z
        self.count[0] += 1
        return HiddenState(state.h + before)


def test_a_step_that_draws_nothing_is_not_run_to_find_that_out() -> None:
    layer = flexrnn.FlexRNN(Delayed, I, H, backend="reference")
    layer(torch.randn(T, B, I))
    cell: Any = layer.cells[0]
    assert cell.count == [T]


@pytest.mark.parametrize(
    ("draws", "how"),
    [
        (True, lambda c, z, h: torch.distributions.Normal(z, 1).rsample()),
        (True, lambda c, z, h: sum(F.dropout(row) for row in (z, h))),
        (False, lambda c, z, h: z.tanh() + h.sigmoid()),
    ],
)
def test_names_in_the_code_of_a_cell_are_signs(draws: bool, how: Any) -> None:
    cell = Delayed(I, H)
    assert not may_draw(cell)
    cell.__dict__["how"] = how
    assert may_draw(cell) == draws
    cell.__dict__["how"] = [{"inside": lambda z: how(None, z, z)}]
    assert may_draw(cell) == draws


def test_widths_of_parameters_are_seen() -> None:
    def as_wide(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return z.tanh() + torch.rand(z.size(0), c.inner.weight.shape[1], dtype=z.dtype).sum(1, True)

    for width in (I, 2 * I):
        layer = flexrnn.FlexRNN(Noisy, width, H, how=as_wide, dtype=DOUBLE, backend="interpreter")
        layer(torch.randn(T, B, width, dtype=DOUBLE))


def test_autocast() -> None:
    layer = flexrnn.FlexRNN(Noisy, I, H, how=DRAWN["several"])
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(torch.randn(T, B, I))
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_rows_of_vmap_have_numbers_of_their_own() -> None:
    layer, x = layer_of(DRAWN["randn_like"]), torch.zeros(3, T, B, I, dtype=DOUBLE)
    outputs = torch.func.vmap(lambda x: layer(x)[0], randomness="different")(x)
    assert not torch.equal(outputs[0], outputs[1])


def test_a_generator_of_ones_own_is_not_taken_from_anybody() -> None:
    own = torch.Generator().manual_seed(0)

    def drawn(c: Any, z: Tensor, h: Tensor) -> Tensor:
        return z.tanh() + torch.randn(z.shape, generator=own, dtype=z.dtype)

    with flexrnn.backend("reference"):
        outputs = [layer_of(drawn)(torch.zeros(T, B, I, dtype=DOUBLE))[0] for _ in range(2)]
    assert not torch.equal(outputs[0][0], outputs[0][1])
