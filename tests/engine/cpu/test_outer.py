# pyright: reportPrivateUsage=false
"""Products for gradients and of inputs: every shape of them, on every set of instructions."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import flexrnn
from flexrnn.engine.cpu import cpp, outer, plan
from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import ISAS, Isa, has_bfloat16, machine
from flexrnn.engine.cpu.outer import Outer, multiply
from flexrnn.engine.step import CannotRunError

from . import sanitized
from .sanitized import CLEAN, MEMORY, extent, skip_without

NAN = float("nan")
# Rows of every piece; columns of left matrices; parts of right ones, and columns of a part.
SHAPES: dict[str, tuple[list[int], list[int], list[tuple[int, int]]]] = {
    "one number": ([1], [1], [(1, 1)]),
    "no row": ([0], [5], [(1, 3)]),
    "one tile of each width": ([3], [6], [(1, 16), (1, 17), (1, 40), (1, 64)]),
    "tiles that are not whole": ([40], [7, 20], [(1, 65)]),
    "pieces": ([2, 0, 9, 5], [13], [(1, 3), (1, 70)]),
    "parts": ([1, 8], [5, 6], [(4, 19)]),
    "parts of whole tiles": ([9], [12], [(2, 64)]),
    "each with each": ([17, 3], [3, 11, 6], [(1, 2), (3, 33)]),
    "columns in one piece each": ([18], [1, 6, 17], [(1, 1), (1, 70), (3, 33)]),
    "one of them on each side": ([37], [14, 13], [(1, 20), (1, 64)]),
    "such columns in places": ([4, 9, 0, 11], [6, 13], [(1, 33), (2, 20)]),
    "such columns in places that follow": ([4, 9, 0, 11], [6, 13], [(1, 33), (2, 20)]),
}
# Of which matrices, by number, the left ones first, columns are further apart than they are long.
TURNED = {
    "columns in one piece each": range(6),
    "one of them on each side": (1, 2),
    "such columns in places": range(4),
    "such columns in places that follow": range(4),
}


def made(shape: str, dtype: torch.dtype, *, adds: bool) -> Outer:
    """A product of random matrices, whose rows are further apart than they are long."""
    pieces, lefts, rights = SHAPES[shape]
    number = count()

    def matrix(columns: int) -> list[Tensor]:
        if next(number) in TURNED.get(shape, ()):
            gap = 0 if "follow" in shape else 3
            starts = [2 + gap * k + sum(pieces[:k]) for k in range(len(pieces))]
            whole = torch.randn(columns, starts[-1] + pieces[-1] + 3, dtype=dtype)
            return [whole[:, k : k + n].T for k, n in zip(starts, pieces, strict=True)]
        return [torch.randn(n, columns + 5, dtype=dtype)[:, 2 : 2 + columns] for n in pieces]

    totals = [
        [
            torch.full((parts, high, units), 1.0 if adds else NAN, dtype=dtype)
            for parts, units in rights
        ]
        for high in lefts
    ]
    return Outer(
        [matrix(high) for high in lefts],
        [matrix(parts * units) for parts, units in rights],
        [[t if t.shape[0] > 1 else t[0] for t in row] for row in totals],
        adds,
    )


def expected(product: Outer, *, narrow: bool = False) -> list[Tensor]:
    """The results, by torch in double precision."""

    def whole_of(pieces: Sequence[Tensor]) -> Tensor:
        one = torch.cat([*pieces])
        return (one.bfloat16() if narrow else one).double()

    found: list[Tensor] = []
    for left, totals in zip(product.lefts, product.totals, strict=True):
        for right, total in zip(product.rights, totals, strict=True):
            whole = whole_of(left).T @ whole_of(right)
            if total.dim() == 3:
                whole = whole.unflatten(1, (total.shape[0], -1)).transpose(0, 1)
            found.append(whole + 1 if product.adds else whole)
    return found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes of tests there are blocks, groups of tiles and several threads, too."""
    monkeypatch.setattr(outer, "_LITTLE", 0)
    monkeypatch.setattr(outer, "_DEEP", 7)
    monkeypatch.setattr(outer, "_LEFT", 400)
    monkeypatch.setattr(outer, "_RIGHT", 4000)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products by our own library."""
    monkeypatch.setattr(outer, "is_faster", lambda: True)


@pytest.fixture
def bfloat16() -> None:
    """Products of it, where the machine has some."""
    if not has_bfloat16():
        pytest.skip("this machine does not multiply bfloat16")


def judged(
    shape: str, dtype: torch.dtype, *, adds: bool, threads: int, narrow: bool = False
) -> None:
    products = [made(shape, dtype, adds=adds), made("pieces", dtype, adds=False)]
    multiply(products, threads, narrow=narrow)
    for product in products:
        found = [t.double() for t in chain(*product.totals)]
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        assert_close(found, expected(product, narrow=narrow), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("own")
def test_right(
    monkeypatch: pytest.MonkeyPatch, isa: Isa, shape: str, dtype: torch.dtype, adds: bool
) -> None:
    monkeypatch.setenv("FLEXRNN_ISA", isa.name)
    for threads in (1, 2, 3, 4):
        judged(shape, dtype, adds=adds, threads=threads)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("own", "bfloat16")
def test_right_in_bfloat16(shape: str, adds: bool) -> None:
    """As exact as in float32, once operands are rounded."""
    for threads in (1, 2, 3, 4):
        judged(shape, torch.float32, adds=adds, threads=threads, narrow=True)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_right_by_torch(monkeypatch: pytest.MonkeyPatch, shape: str, adds: bool) -> None:
    monkeypatch.setattr(outer, "is_faster", lambda: False)
    judged(shape, torch.float64, adds=adds, threads=2)


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is compiled for this test alone."""
    outer._run.cache_clear()
    yield
    outer._run.cache_clear()


@pytest.mark.usefixtures("own", "anew")
def test_threads_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler without threads, OMP_THREAD_LIMIT, a call from threads of somebody's."""
    monkeypatch.setattr(compiler, "_runtime", lambda _: None)
    for shape in SHAPES:
        judged(shape, torch.float64, adds=True, threads=4)


@pytest.mark.usefixtures("own")
def test_bits_do_not_depend_on_threads() -> None:
    product = made("each with each", torch.float32, adds=False)
    found: list[list[Tensor]] = []
    for threads in (1, 2, 3, 6):
        multiply([product], threads)
        found.append([total.clone() for total in chain(*product.totals)])
    for other in found[1:]:
        assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.usefixtures("own")
def test_results_side_by_side_in_one_matrix(adds: bool) -> None:
    left, rights = torch.randn(30, 14), [torch.randn(30, n) for n in (70, 3)]
    whole = torch.full((14, 80), NAN)
    totals = [whole[:, 2:72], whole[:, 75:78]]
    for total in totals:
        total.fill_(1 if adds else NAN)
    multiply([Outer([[left]], [[right] for right in rights], [totals], adds)], 2)
    for right, total in zip(rights, totals, strict=True):
        assert_close(total, left.T @ right + (1 if adds else 0), rtol=1e-5, atol=1e-5)
        total.fill_(NAN)
    assert whole.isnan().all()


@pytest.mark.usefixtures("own")
def test_matrices_whose_numbers_are_apart() -> None:
    left, right = torch.randn(2, 8, 5)[0].repeat(1, 2)[:, ::2], torch.randn(1, 9).expand(8, 9)
    total = torch.full((5, 9), NAN)
    multiply([Outer([[left]], [[right]], [[total]], adds=False)], 2)
    assert_close(total, left.T @ right)


@pytest.mark.usefixtures("own", "anew")
def test_a_layer_falls_back_before_it_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(*_: Any, **__: Any) -> Any:
        raise CannotRunError("no products here")

    monkeypatch.setattr(outer, "library", library)
    monkeypatch.setattr(plan, "_known", WeakKeyDictionary())
    layer, x = flexrnn.LSTM(3, 5), torch.randn(4, 2, 3)
    with pytest.warns(flexrnn.FallbackWarning, match="no products here"):
        output, _ = layer(x)
    output.sum().backward()


@pytest.mark.parametrize(
    ("tall", "wide", "threads"), [(171, 6, 2), (5, 8, 2), (1, 1, 4), (9, 9, 6)]
)
def test_threads_share_tiles_evenly(tall: int, wide: int, threads: int) -> None:
    abreast = outer._abreast(tall, wide, threads)
    assert threads % abreast == 0
    most = -(-tall // (threads // abreast)) * -(-wide // abreast)
    others = (n for n in range(1, threads + 1) if threads % n == 0)
    least = min(-(-tall // (threads // n)) * -(-wide // n) for n in others)
    assert most <= 1.2 * least


FAULTS = {
    "a block forgets those before it": (
        "block.first > 0 || o.results[2 * which]",
        "o.results[2 * which]",
    ),
    "what is there is not added to": (
        "block.first > 0 || o.results[2 * which]",
        "block.first > 0",
    ),
    "all pieces begin at the first row": ("first - begin, last - first", "0, last - first"),
    "a part too far": ("at.part * m.columns * row", "at.part * row"),
    "the left matrix's last columns are lost": ("i < high % HIGH ?", "i + 1 < high % HIGH ?"),
    "a thread takes another's tiles": ("share(o.tall, id / o.abreast", "share(o.tall, 0"),
    "right tiles are laid out over others": ("(k - tiles.first) * panel", "(k - k) * panel"),
    "turned rows begin anew": ("above * m.column + block.first", "above * m.column"),
    "places that are apart are read as one": (
        "bool follow = true;\n        for",
        "bool follow = true;\n        if (false) for",
    ),
    "the last turned column is lost": ("i < high ? from[i", "i + 1 < high ? from[i"),
    "the last turned columns are others": ("from + above * m.column", "from"),
    "a turned matrix is packed as one that is not": (
        "if (m.is_turned())\n                lay_out_turned_right",
        "if (false)\n                lay_out_turned_right",
    ),
}
IN_PAIRS = {
    "a last row is not alone": ("r + 1 < rows ?", "r + 2 < rows ?"),
    "rows change places": ("paired(load<true>(each + j, n), odd)", "paired(odd, odd)"),
    "the last column is lost": ("most(there - j, 0)", "most(there - j - 1, 0)"),
    "places begin where those before them do": ("deep += deep_of", "deep = deep_of"),
    "turned pairs begin anew": ("pairs(from + i * column, rows - r)", "pairs(from, rows - r)"),
    "every other pair is multiplied": ("return dot(sum, a, b)", "return dot(sum, a, a)"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("own", "anew")
def test_a_fault_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    is_noticed(monkeypatch, *FAULTS[fault], torch.float64)


@pytest.mark.parametrize("fault", IN_PAIRS)
@pytest.mark.usefixtures("own", "anew", "bfloat16")
def test_a_fault_in_bfloat16_is_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    is_noticed(monkeypatch, *IN_PAIRS[fault], torch.float32, narrow=True)


def is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    right: str,
    wrong: str,
    dtype: torch.dtype,
    *,
    narrow: bool = False,
) -> None:
    compiled = outer.library

    def library(text: str, isa: Isa, **rest: str) -> Any:
        assert right in text
        return compiled(text.replace(right, wrong), isa, **rest)

    monkeypatch.setattr(outer, "library", library)

    def all_judged() -> None:
        for shape in ("parts", "pieces", "tiles that are not whole", *TURNED):
            for adds in (False, True):
                judged(shape, dtype, adds=adds, threads=2, narrow=narrow)

    with pytest.raises(AssertionError, match="not close"):
        all_judged()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    """What the library is told, and with how many threads; nothing is computed."""
    calls: list[tuple[list[int], int]] = []

    def run(_: bytes, told: Any, threads: int) -> None:
        calls.append(([*told], threads))

    monkeypatch.setattr(outer, "_run", lambda *_: run)
    monkeypatch.setattr(outer, "is_faster", lambda: True)
    return calls


@pytest.fixture
def ran(
    noted: list[tuple[list[int], int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[str, str, int]]:
    """Products of every shape, run by threads under a sanitizer: what the program says.

    Every matrix lies in a piece of just its size. So does what each thread has for itself, which is
    one piece: what it lays out of right matrices comes first and is read by all that follows.
    """

    def run(
        sanitizer: str,
        real: str,
        isa: Isa,
        right: str = "",
        wrong: str = "",
        *,
        narrow: bool = False,
    ) -> tuple[str, str, int]:
        monkeypatch.setenv("FLEXRNN_ISA", isa.name)
        skip_without(sanitizer, isa, tmp_path)
        calls: list[str] = []
        for shape in SHAPES:
            product = made(shape, torch.float32 if real == "float" else torch.float64, adds=True)
            multiply([product], 3, narrow=narrow)
            told, count = noted[-1]
            own = told[0] + told[1]
            tensors = chain(*product.lefts, *product.rights, *product.totals)
            pieces = ", ".join(f"m.piece({extent(tensor)})" for tensor in tensors)
            calls.append(
                f"    {{ Memory m; void* p[] = {{nullptr, {pieces}}};\n"
                f"      const long s[] = {{{', '.join(map(str, told))}}};\n"
                "      std::vector<std::thread> threads;\n"
                f"      for (long id = 0; id < {count}; id++) {{\n"
                f"          p[0] = m.piece({own}) - id * {own};\n"
                f"          auto part = [=]() mutable {{ work(p, s, id, {count}); }};\n"
                "          threads.emplace_back(part); }\n"
                "      for (std::thread& thread : threads) thread.join(); }"
            )
        text = outer._text(real, isa, narrow=narrow) + cpp.definitions(narrow=narrow)
        assert right in text
        changed = text.replace(right, wrong) if right else text
        done = sanitized.run([changed, MEMORY], calls, sanitizer, isa, tmp_path)
        return done.stderr, done.stdout, done.returncode

    return run


@pytest.mark.parametrize("real", ["float", "double"])
def test_memory_and_defined_behaviour(ran: Any, isa: Isa, real: str) -> None:
    assert ran("both", real, isa) == CLEAN


@pytest.mark.usefixtures("bfloat16")
def test_memory_and_defined_behaviour_in_bfloat16(ran: Any) -> None:
    assert ran("both", "float", machine(), narrow=True) == CLEAN


def test_no_races(ran: Any) -> None:
    assert ran("thread", "float", ISAS[-1]) == CLEAN


@pytest.mark.parametrize(
    ("sanitizer", "right", "wrong", "told"),
    [
        ("both", "r < rows", "r <= rows", "heap-buffer-overflow"),
        ("thread", "share(o.tall, id / o.abreast", "share(o.tall, 0", "data race"),
    ],
)
def test_a_sanitizer_notices(ran: Any, sanitizer: str, right: str, wrong: str, told: str) -> None:
    errors, _, status = ran(sanitizer, "float", ISAS[-1], right, wrong)
    assert status
    assert told in errors
