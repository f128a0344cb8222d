"""Libraries of their own for these tests, every set of instructions, and the judge of an engine."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

import flexrnn
from flexrnn.engine.cpu import after, nodes, outer, plan, shares
from flexrnn.engine.cpu.build import compiler, toolchain
from flexrnn.engine.cpu.build.isa import has_bfloat16, runnable

FEW = 4  # ulp that DESIGN.md's rule leaves to chance
EXACT = 1e-12  # relative norm error that float64 may have
SINGLE = torch.float32
TIMES = {SINGLE: 2.0, torch.bfloat16: 1.2, torch.float16: 1.2}  # the reference's own error


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # what one process has compiled, the others find
        folder = folder.parent
    folder /= "libraries"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXRNN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def quickly_compiled() -> None:
    """Nothing is: here loops are judged as users have them, but in files that say otherwise."""


@pytest.fixture(autouse=True)
def threads_where_one_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of tests, loops would otherwise never share units; three threads always do."""
    monkeypatch.setattr(shares, "_LITTLE", 0)
    monkeypatch.setattr(shares, "_BRIEF", 0)
    monkeypatch.setattr(shares, "is_thin", lambda batch, threads, tiles: threads == 3)
    monkeypatch.setattr(shares, "second_cache", lambda: 0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", runnable(), ids=lambda isa: isa.name, scope="module")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def products_that_torch_would_do_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of tests, the products of the input would otherwise always be torch's."""
    monkeypatch.setattr(nodes, "_LITTLE", 0)
    monkeypatch.setattr(nodes, "_FEW", 0)


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine does not multiply bfloat16."""
    monkeypatch.setattr(plan, "has_bfloat16", lambda: False)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())  # laid out anew


@pytest.fixture(params=["float32", "bfloat16"])
def multiplied_in(request: pytest.FixtureRequest) -> str:
    """In which type layers of bfloat16 multiply."""
    if request.param == "float32":
        request.getfixturevalue("in_float32")
    elif not has_bfloat16():
        pytest.skip("this machine does not multiply bfloat16")
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's libraries lie, of which there are none yet."""
    monkeypatch.setenv("FLEXRNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cpu"


@pytest.fixture
def compiler_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that $CXX names; what a test writes into it is the compiler."""
    script = tmp_path / "compiler"
    monkeypatch.setenv("CXX", str(script))
    yield script
    compiler.asked.cache_clear()


@pytest.fixture
def threads() -> Callable[[int], Any]:
    """A block in which torch has so many threads."""
    return _threads


@pytest.fixture
def changed() -> Callable[[str, str], tuple[Callable[[str], Any], list[int]]]:
    """In place of `kernel.library`, one that changes a source; and how often each had that text."""

    def change(right: str, instead: str) -> tuple[Callable[[str], Any], list[int]]:
        planted: list[int] = []

        def library(text: str, common: Sequence[str] = ()) -> Any:
            planted.append(sum(each.count(right) for each in (text, *common)))
            text, *common = (each.replace(right, instead) for each in (text, *common))
            return toolchain.library(text, common=common)

        return library, planted

    return change


@pytest.fixture(params=["own", "torch"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who multiplies for the gradients of weights and inputs, and inputs before a loop."""
    for module in (after, nodes, outer):
        monkeypatch.setattr(module, "is_faster", lambda: request.param == "own")
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())  # laid out anew
    return request.param


@pytest.fixture
def judge(results: Callable[..., Any], norms: Callable[..., Tensor]) -> Callable[..., None]:
    """Assert that the cpu engine is as exact as DESIGN.md asks, in values and every gradient.

    Golden is the reference in float64. The relative norm error of each tensor is at most 1e-12 in
    float64; in others at most a multiple of the reference's own and a few ulp: in the median of
    several draws of the operands, for both errors of a few numbers are chance, and in none of them
    ten times that. Threads are 1, 2 and 3 in turn. `dtype` is that of the results, if not x's.
    """

    def check(
        layer: flexrnn.FlexRNN,
        x: Tensor,
        hx: Any = None,
        dtype: torch.dtype | None = None,
        **marks: Any,
    ) -> None:
        dtype = dtype or x.dtype

        def by(engine: str, layer: flexrnn.FlexRNN, given: list[Tensor]) -> Any:
            copies = (t.clone(memory_format=torch.preserve_format) for t in given)
            x, *state = (copy.requires_grad_() for copy in copies)
            return results(layer, engine, x, tuple(state) if hx is not None else None, **marks)

        double = dtype == torch.float64
        in_double = copy.deepcopy(layer).double()
        found_by_name: dict[str, list[Tensor]] = {}
        for draw in range(3 if double else 6):
            generator = torch.Generator().manual_seed(draw)  # not the one that masks are drawn by
            given = [
                t.detach() if draw == 0 else torch.empty_like(t).normal_(generator=generator)
                for t in (x, *(hx or ()))
            ]
            theirs = exact = by("reference", layer, given)
            if not double:
                exact = by("reference", in_double, [t.double() for t in given])
            with _threads(1 + draw % 3):
                ours = by("cpu", layer, given)
            for name in exact:
                found = norms(name, ours[name], theirs[name], exact[name])
                found_by_name.setdefault(name, []).append(found)
        for name, draws in found_by_name.items():
            error, own, norm = torch.stack(draws).unbind(1)
            few = FEW * torch.finfo(dtype).eps * norm
            limit = EXACT * norm if double else TIMES[dtype] * own + few
            ratios = torch.where(error == 0, 0, error / limit)
            told = f"{name}: error {error.tolist()}, allowed {limit.tolist()}"
            assert ratios.max() <= (1 if double else 10), told
            assert ratios.median() <= 1, told

    return check
