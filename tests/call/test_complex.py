# pyright: reportPrivateUsage=false
# Caches of Dynamo have no public name.
"""States of complex numbers: the same as by hand in real ones, with everything a layer does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.testing import assert_close

import flexrnn
from flexrnn import FlexRNN
from flexrnn.call.marks import marks

from ..graphs import compiled
from ..lru import LRUCell, RealLRUCell, UnitaryCell

T, B, I, H = 5, 4, 3, 2
ENGINES = ["reference", "interpreter", "cpu"]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for part in value for t in tensors(part)]


def loss_of(value: Any) -> Tensor:
    """A real number to which every part of every number adds otherwise."""
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in tensors(value)]
    return torch.stack([(p * torch.linspace(-1, 2, p.numel()).view_as(p)).sum()
                        + p.square().sum() for p in parts]).sum()  # fmt: skip


def outcome(layer: FlexRNN, x: Tensor, hx: Any = None, **asked: Any) -> list[Tensor]:
    """All that a layer returns from one seed, and all gradients."""
    torch.manual_seed(7)
    outs = tensors(layer(x, hx, **asked))
    leaves = [x, *tensors(hx), *(p for p in layer.parameters() if p.requires_grad)]
    return [*outs, *torch.autograd.grad(loss_of(outs), leaves, materialize_grads=True)]


def twin_of(layer: FlexRNN, **options: Any) -> FlexRNN:
    """A layer with the same weights that has no complex number."""
    twin = FlexRNN(RealLRUCell, I, H, dtype=torch.float64, **options)
    parts = {}
    for name, value in layer.state_dict().items():
        if value.is_complex():
            first, _, rest = name.partition("_l")
            for part, own in (("re", value.real), ("im", value.imag)):
                named = first.replace("initial_z", f"initial_{part}")
                parts[f"{named if named != first else f'{first}_{part}'}_l{rest}"] = own
        else:
            parts[name] = value
    twin.load_state_dict(parts)
    return twin


EVERY: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "num_layers": 2},
    "segments": {"checkpoint_every": 2},
    "zoneout, in evaluation": {"zoneout": {"z": 0.3, "y": 0.1}},
    "learned initial states": {"learn_initial_state": True, "bidirectional": True},
}
ASKED: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "lengths": lambda: {"lengths": torch.tensor([2, 5, 0, 3])},
    "reset": lambda: {"reset": torch.rand(T, B) < 0.3},
    "lengths, reset and all states": lambda: {
        "lengths": torch.tensor([2, 5, 1, 3]), "reset": torch.rand(T, B) < 0.3,
        "return_states": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("given", [False, True], ids=["", "with a state"])
def test_it_is_the_same_in_real_numbers(name: str, asked: str, given: bool, engine: str) -> None:
    options = EVERY[name]
    layer = FlexRNN(LRUCell, I, H, dtype=torch.float64, **options)
    for parameter in (p for n, p in layer.named_parameters() if n.startswith("initial")):
        torch.nn.init.normal_(parameter)
    twin = twin_of(layer, **{**options, "zoneout": twin_zoneout(options)})
    layer.eval()
    twin.eval()
    call = ASKED[asked]()
    x = randn(T, B, I).requires_grad_()
    if layer.batch_first:
        x = x.detach().transpose(0, 1).requires_grad_()
        call |= {"reset": call["reset"].T} if "reset" in call else {}
    hx, real_hx = None, None
    if given:
        rows = layer.num_layers * layer.num_directions
        y, z = randn(rows, B, H), torch.complex(randn(rows, B, H), randn(rows, B, H))
        hx = tuple(t.requires_grad_() for t in (y, z))
        real_hx = tuple(t.detach().clone().requires_grad_() for t in (y, z.real, z.imag))
    found = outcome(layer, x, hx, **call)
    with flexrnn.backend("reference"):
        output, *states = twin(x, real_hx, **call)
        paired = [output, *((y, torch.complex(re, im)) for y, re, im in states)]
        loss = loss_of(paired)
        leaves = [x, *tensors(real_hx), *twin.parameters()]
        right = torch.autograd.grad(loss, leaves, materialize_grads=True)
    expected = {n: g for (n, _), g in zip(twin.named_parameters(), right[len(right) - len(
        list(twin.parameters())):], strict=True)}  # fmt: skip
    joined = [*tensors(paired), right[0]]
    if given:
        joined += [right[1], torch.complex(right[2], right[3])]
    for name, parameter in layer.named_parameters():
        joined.append(gradient_of(name, expected) if parameter.is_complex() else expected[name])
    assert_close(found, joined, rtol=1e-11, atol=1e-11)


def twin_zoneout(options: dict[str, Any]) -> Any:
    given = options.get("zoneout", 0.0)
    return given and {"re": given["z"], "im": given["z"], "y": given["y"]}


def gradient_of(name: str, parts: dict[str, Tensor]) -> Tensor:
    """Torch's gradient of a complex parameter: the real parts' by the real, plus i times."""
    first, _, rest = name.partition("_l")
    names = ("initial_re", "initial_im") if first == "initial_z" else (f"{first}_re", f"{first}_im")
    return torch.complex(*(parts[f"{part}_l{rest}"] for part in names))


@pytest.fixture(params=[LRUCell, UnitaryCell], ids=lambda cell: cell.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., FlexRNN]:
    """A layer of each cell in turn in float64."""

    def made(**options: Any) -> FlexRNN:
        return FlexRNN(request.param, I, H, **{"dtype": torch.float64, **options})

    return made


DRAWN: dict[str, dict[str, Any]] = {
    "zoneout": {"zoneout": 0.3},
    "dropout": {"num_layers": 2, "dropout": 0.4, "bidirectional": True},
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "weight drop": {"weight_drop": 0.4},
    "everything": {"num_layers": 2, "dropout": 0.4, "recurrent_dropout": 0.4, "weight_drop": 0.4,
                   "zoneout": 0.3, "checkpoint_every": 2, "learn_initial_state": True},
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 5, 0, 3])], ids=["", "lengths"])
def test_what_is_drawn_is_the_same_by_every_engine(name: str, lengths: Tensor | None) -> None:
    layer = FlexRNN(UnitaryCell, I, H, dtype=torch.float64, **DRAWN[name])
    x, found = randn(T, B, I).requires_grad_(), []
    for engine in ENGINES:
        with flexrnn.backend(engine):
            found.append(outcome(layer, x, lengths=lengths))
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-11, atol=1e-11)


def test_dropout_takes_both_parts_of_a_number_or_neither() -> None:
    seen: list[Tensor] = []

    class Seeing(UnitaryCell):
        def step(self, x: Tensor, state: Any) -> Any:
            seen.append(x)
            return super().step(x, state)

    layer = FlexRNN(Seeing, I, H, num_layers=2, dropout=0.5, dtype=torch.float64)
    with flexrnn.backend("reference"):
        layer(randn(T, B, I))
    second = torch.stack(seen[-T:])
    assert second.is_complex()
    dropped = second == 0
    assert 0 < dropped.sum() < dropped.numel()
    assert not (second[~dropped].imag == 0).any()


@pytest.mark.parametrize("engine", ["reference", "cpu"], indirect=True)
def test_finite_differences_agree_twice(make: Callable[..., FlexRNN], engine: str) -> None:
    layer, x = make(), randn(2, 2, I).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]
    state = layer(x)[1]
    hx = [torch.randn_like(t).requires_grad_() for t in tensors(state)]

    def call(x: Tensor, *rest: Tensor) -> Any:
        fields, weights = rest[: len(hx)], rest[len(hx) :]
        given = fields[0] if len(fields) == 1 else fields
        return tuple(tensors(torch.func.functional_call(
            layer, dict(zip(names, weights, strict=True)), (x, given))))  # fmt: skip

    inputs = (x, *hx, *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, of forward derivatives
def test_gradients_of_a_transform_are_torchs(make: Callable[..., FlexRNN]) -> None:
    layer, x = make(), randn(T, B, I)

    def loss(x: Tensor) -> Tensor:
        return loss_of(layer(x))

    (expected,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    assert_close(torch.func.grad(loss)(x.detach()), expected, rtol=1e-11, atol=1e-11)
    pair: Any = torch.func.jvp(loss, (x.detach(),), (torch.ones_like(x),))
    assert_close(pair[1], expected.sum(), rtol=1e-11, atol=1e-11)
    several = torch.func.vmap(lambda x: layer(x)[0])(torch.stack([x, 2 * x]).detach())
    assert_close(several[1], layer(2 * x)[0], rtol=1e-11, atol=1e-11)


def test_a_complex_input_is_taken(make: Callable[..., FlexRNN], engine: str) -> None:
    layer = make(bidirectional=True)
    x = torch.complex(randn(T, B, I), randn(T, B, I)).requires_grad_()
    lengths = torch.tensor([2, 5, 1, 3])
    found = outcome(layer, x, lengths=lengths)
    with flexrnn.backend("reference"):
        assert_close(found, outcome(layer, x, lengths=lengths), rtol=1e-11, atol=1e-11)
    with torch.no_grad():  # a conjugate is one by a mark, and not in memory
        assert_close(layer(x.conj())[0], layer(x.conj().resolve_conj())[0], rtol=0, atol=0)


def test_behind_its_end_a_complex_sequence_has_numbers_like_its_own() -> None:
    x = torch.complex(randn(T, 2, I), randn(T, 2, I))
    filled = marks(torch.tensor([2, T]), None, T, x.device).fill(x)
    assert_close(filled[2:, 0], 0.75 * x[1, 0].expand(3, I), rtol=0, atol=0)
    assert_close(filled[:, 1], x[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_step_by_step_it_is_the_same(make: Callable[..., FlexRNN], engine: str, grad: bool) -> None:
    layer, x = make(num_layers=2), randn(T, B, I)
    reset = torch.rand(T, B) < 0.3
    with torch.set_grad_enabled(grad):
        output, final = layer(x, reset=reset)
        state, rows = None, []
        for t in range(T):
            y, state = layer.step(x[t], state, reset=reset[t])
            rows.append(y)
    assert_close(torch.stack(rows), output, rtol=1e-12, atol=1e-12)
    assert_close(tensors(state), tensors(final), rtol=1e-12, atol=1e-12)


def test_in_chunks_it_is_the_same(make: Callable[..., FlexRNN], engine: str) -> None:
    layer, x = make(num_layers=2), randn(T, B, I)
    chunks = list(flexrnn.tbptt(layer, x, 2))
    output, final = layer(x)
    assert_close(torch.cat([chunk.output for chunk in chunks]), output, rtol=1e-12, atol=1e-12)
    assert_close(tensors(chunks[-1].state), tensors(final), rtol=1e-12, atol=1e-12)


def test_a_packed_sequence_is_its_sequences(make: Callable[..., FlexRNN], engine: str) -> None:
    layer = make(bidirectional=True, num_layers=2)
    rows = [randn(n, I) for n in (2, 5, 3)]
    packed, state = layer(pack_sequence(rows, enforce_sorted=False))
    output, lengths = pad_packed_sequence(packed)
    for k, row in enumerate(rows):
        own, final = layer(row)
        assert_close(output[: lengths[k], k], own, rtol=1e-12, atol=1e-12)
        ends = [field[:, k] for field in tensors(state)]
        assert_close(ends, tensors(final), rtol=1e-12, atol=1e-12)


def test_it_is_recorded() -> None:
    layer, x = FlexRNN(UnitaryCell, I, H, dtype=torch.float64), randn(T, B, I)
    with flexrnn.record(layer) as taps:
        layer(x, lengths=torch.tensor([2, 5, 1, 3]))
    assert taps["l0.z"].dtype == torch.complex128
    assert not taps["l0.z"][2:, 0].any()


def test_it_is_saved_and_loaded(make: Callable[..., FlexRNN]) -> None:
    options = {"learn_initial_state": True, "num_layers": 2}
    layer, other, x = make(**options), make(**options), randn(T, B, I)
    with torch.no_grad():
        layer.get_parameter("initial_z_l1").copy_(torch.randn(H, dtype=torch.complex128))
    other.load_state_dict(layer.state_dict())
    assert_close(other(x), layer(x), rtol=0, atol=0)
    other.reset_parameters()
    again = other.get_parameter("initial_z_l1")
    assert not again.any()
    assert again.dtype == torch.complex128


@pytest.mark.parametrize("engine", ["cpu"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_those_of_the_layer(engine: str, dtype: torch.dtype) -> None:
    kind = torch.complex64 if dtype == torch.float32 else torch.complex128
    for cell in (LRUCell, UnitaryCell):
        layer = FlexRNN(cell, I, H, dtype=dtype)
        output, state = layer(torch.randn(T, B, I, dtype=dtype))
        assert output.dtype == (dtype if cell is LRUCell else kind)
        assert tensors(state)[-1].dtype == kind


@pytest.mark.parametrize("engine", ["reference", "cpu"], indirect=True)
def test_half_types_have_complex_numbers_beside_them(engine: str) -> None:
    """In single precision, for they have none of their own; under autocast it is the same."""
    layer, x = FlexRNN(LRUCell, I, H), torch.randn(T, B, I)
    exact, (_, right) = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, (y, z) = layer(x)
    assert output.dtype == y.dtype == torch.bfloat16
    assert z.dtype == torch.complex64
    assert_close(output.float(), exact, rtol=0.02, atol=0.02)
    assert_close(z, right, rtol=0.02, atol=0.02)


def test_dynamo_sees_one_node(make: Callable[..., FlexRNN]) -> None:
    layer = make(num_layers=2, backend="cpu")
    call, graphs = compiled(layer, dynamic=True)
    for steps, batch in ((T, B), (7, 2)):
        x = torch.randn(steps, batch, I, dtype=torch.float64, requires_grad=True)
        found = []
        for function in (call, layer):
            output, state = function(x)
            outs = [output, *tensors(state)]
            loss = torch.stack([o.abs().square().sum() for o in outs]).sum()
            found.append([*outs, *torch.autograd.grad(loss, [x, *layer.parameters()])])
        assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)
    assert set(graphs.scans) == {2}
    torch._dynamo.reset()


def test_it_is_explained() -> None:
    layer = flexrnn.FlexRNN(LRUCell, I, H)
    text = str(flexrnn.explain(layer, torch.randn(T, B, I), stages=True))
    assert "engine: cpu" in text
    assert "z.imag' = " in text
    (step,) = flexrnn.explain(layer, torch.randn(T, B, I)).steps
    assert step.program is not None
    assert step.program.fields == ("y", "z.real", "z.imag")
