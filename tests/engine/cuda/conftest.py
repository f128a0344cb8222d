"""Where kernels run here, and the judge of the engine."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn.engine.cuda import graphs, tiers

pytest.importorskip("triton", reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # here Triton interprets: see /conftest.py
EXACT = 1e-12  # relative norm error that float64 may have
FEW = 4  # ulp that DESIGN.md's rule leaves to chance
TIMES = {torch.float32: 2.0, torch.bfloat16: 1.2, torch.float16: 1.2}  # the reference's own error


@pytest.fixture(autouse=True)
def numbers_without_warnings() -> Iterator[None]:
    """NumPy, which stands for the card, warns of what a card does in silence."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session", autouse=True)
def interpreted_quickly() -> None:
    """Spare Triton's interpreter half of its time, on which no number depends.

    At every call of a helper it puts its functions in the place of the language's, though they are
    there already. And it computes whole numbers twice, to see whether they overflow: nothing does
    at these sizes, and of large ones `test_tiers.py` looks at the addresses. And it makes types and
    shapes anew for every value: here each is made once.
    """
    from triton import knobs
    from triton import language as tl
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:  # on a card, and where kernels are interpreted and compiled
        return

    there: Any = interpreter
    once, done = there._patch_lang, set[tuple[bool, ...]]()

    def patch_language(function: Any) -> Any:
        modules = function.__globals__.values()
        key = tuple(any(m is module for m in modules) for module in (tl, tl.core))
        if key not in done:
            done.add(key)
            once(function)
        return there._LangPatchScope()  # with nothing to put back

    there._patch_lang = patch_language
    builder = there.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    types_are_made_once(tl, there)


def types_are_made_once(tl: Any, interpreter: Any) -> None:
    """A block's type, what a tensor says of its own, and what NumPy calls it."""
    blocks: dict[Any, Any] = {}
    told: dict[int, tuple[Any, dict[str, Any]]] = {}  # by where a type lies, which is kept
    names: dict[str, Any] = {}
    one_number = vars(tl.tensor(None, tl.int32))
    block, same, name_of = tl.block_type, tl.block_type.__eq__, interpreter._get_np_dtype

    def block_of(element: Any, shape: Any) -> Any:
        sizes = tuple(getattr(n, "value", n) for n in shape)
        key = element.name, getattr(element, "address_space", None), sizes
        if key not in blocks:
            made = blocks[key] = block(element, shape)
            told[id(made)] = made, vars(tl.tensor(None, made))
        return blocks[key]

    def tensor_of(self: Any, handle: Any, kind: Any) -> Any:
        if id(kind) in told:
            known = told[id(kind)][1]
        elif kind.is_block():
            return tl.tensor(handle, kind)
        else:
            known = {**one_number, "type": kind, "dtype": kind.scalar}
        made = object.__new__(tl.tensor)
        vars(made).update(known, handle=handle)
        return made

    def named(kind: Any) -> Any:
        if kind.scalar.name not in names:
            names[kind.scalar.name] = name_of(kind)
        return names[kind.scalar.name]

    block.with_element_ty = lambda self, element: block_of(element, self.shape)
    block.__eq__ = lambda self, other: self is other or same(self, other)
    interpreter.InterpreterBuilder.get_block_ty = lambda _, element, shape: block_of(element, shape)
    interpreter.TritonSemantic.make_tensor = tensor_of
    interpreter._get_np_dtype = named


@pytest.fixture(autouse=True)
def bfloat16_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nearest number, as a card does it; Triton's interpreter cuts digits off."""
    from triton import language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    converted = builder.cast_impl

    def rounded(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return converted(self, src, dst_type)
        bits = torch.from_numpy(src.data).to(torch.bfloat16).view(torch.int16).numpy()
        return interpreter.TensorHandle(bits.view(np.uint16), dst_type.scalar)

    monkeypatch.setattr(builder, "cast_impl", rounded)


@pytest.fixture(autouse=True)
def short_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, a replay costs what its steps cost, those behind the last too: two are enough.

    So there is more than one replay from three steps on.
    """
    if DEVICE == "cpu":
        monkeypatch.setattr(graphs, "STEPS", 2)
        monkeypatch.setattr(graphs, "_graphs", {})


@pytest.fixture
def device() -> str:
    """Where kernels run: on a card, or interpreted."""
    return DEVICE


@pytest.fixture(params=[tier.name for tier in tiers.TIERS])
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every tier in turn, whatever the table says; one that cannot leaves it to `steps`."""
    (only,) = (t for t in tiers.TIERS if t.name == request.param)
    (steps,) = (t for t in tiers.TIERS if t.name == "steps")
    last = steps._replace(cost=lambda *_: 1e12)
    monkeypatch.setattr(tiers, "TIERS", (only,) if only == steps else (only, last))
    return request.param


@pytest.fixture
def judge(results: Callable[..., Any], norms: Callable[..., Tensor]) -> Callable[..., None]:
    """Assert that the cuda engine is as exact as DESIGN.md asks, in values and every gradient.

    Golden is the reference in float64. The relative norm error of each tensor is at most 1e-12 in
    float64; else a multiple of the reference's own in that dtype, and a few ulp, in the median of
    the draws of the operands, and in none of them ten times that. `dtype` is what the layer
    computes in, if that is not x's.
    """

    def check(
        layer: flexrnn.FlexRNN,
        x: Tensor,
        hx: Any = None,
        draws: int = 3,
        dtype: torch.dtype | None = None,
        **marks: Any,
    ) -> None:
        dtype = dtype or x.dtype

        def by(engine: str, layer: flexrnn.FlexRNN, given: list[Tensor]) -> Any:
            x, *state = (t.detach().clone().requires_grad_() for t in given)
            return results(layer, engine, x, tuple(state) if hx is not None else None, **marks)

        double, times = x.dtype == torch.float64, TIMES.get(dtype, 0.0)
        golden = layer if double else copy.deepcopy(layer).double()
        found: dict[str, list[Tensor]] = {}
        for draw in range(1 if double else draws):
            generator = torch.Generator(x.device).manual_seed(draw)
            given = [torch.empty_like(t).normal_(generator=generator) for t in (x, *(hx or ()))]
            exact = by("reference", golden, [t.double() for t in given])
            theirs = exact if double else by("reference", layer, given)
            ours = by("cuda", layer, given)
            for name in exact:
                found.setdefault(name, []).append(
                    norms(name, ours[name], theirs[name], exact[name])
                )
        few = FEW * torch.finfo(dtype).eps
        for name, every in found.items():
            error, own, norm = torch.stack(every).unbind(1)
            limit = EXACT * norm if double else times * own + few * norm
            ratios = torch.where(error == 0, 0, error / limit)
            told = f"{name}: error {error.tolist()}, allowed {limit.tolist()}"
            assert ratios.max() <= (1 if double else 10), told
            assert ratios.median() <= 1, told

    return check
