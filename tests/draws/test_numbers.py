"""Steps that draw random numbers: the same by every engine, new at every step, of the right law."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import flexrnn

from .noisy import DOUBLE, DRAWN, FROM_2_TO_3, B, H, I, Noisy, T, assert_the_same_anew, layer_of


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
        "exponential_": lambda c, z, h: torch.empty_like(z).exponential_(2.0),
        "bernoulli": lambda c, z, h: torch.bernoulli(torch.full_like(z, 0.3)),
        "bernoulli_": lambda c, z, h: torch.empty_like(z).bernoulli_(0.3),
        "gumbel_softmax": lambda c, z, h: F.gumbel_softmax(torch.zeros_like(z)),
        "alpha dropout": lambda c, z, h: F.alpha_dropout(torch.ones_like(z), 0.3, True),
        "feature_alpha_dropout": lambda c, z, h: F.feature_alpha_dropout(
            torch.ones_like(z)[..., None], 0.3, True
        )[..., 0],
        "dropout1d": lambda c, z, h: F.dropout1d(torch.ones_like(z)[..., None], 0.3)[..., 0],
        "rrelu": lambda c, z, h: F.rrelu(-torch.ones_like(z), 0.1, 0.9, True),
        "log_normal_": lambda c, z, h: torch.empty_like(z).log_normal_(0.5, 0.3),
        "cauchy_": lambda c, z, h: torch.empty_like(z).cauchy_(0.5, 2.0).atan(),
        "geometric_": lambda c, z, h: torch.empty_like(z).geometric_(0.3),
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
    "alpha dropout",
    "feature_alpha_dropout",
    "dropout1d",
    "rrelu",
    "log_normal_",
    "cauchy_",
    "geometric_",
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
    assert_the_same_anew(layer_of(DRAWN["several"]))


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
