"""Sums of products over the rows of two matrices: all that is multiplied outside of loops.

What the steps of a loop add to the gradients of weights are such: the operands are long, a row for
every row of every step, and a result has as many columns as there are inputs or units. A library of
matrix products is at its best where the result is large instead. Products of rows with a weight are
such, too, whose left matrix is turned over; see `nodes.py`.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from struct import Struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.cpu import cpp
from flexrnn.engine.cpu.build.isa import Isa, is_intel, machine
from flexrnn.engine.cpu.build.toolchain import library
from flexrnn.engine.cpu.pool import POOL
from flexrnn.engine.replay import ByAddress

_TEXTS = ("vector.h", "loop.h", "weights.h")
_REAL = {torch.float32: "float", torch.float64: "double"}
_HIGH = 6  # rows of a tile
# Rows of a block, and bytes of what a thread has laid out of the left and of the right matrices: a
# core's own cache holds those of the left ones, and of the right ones what one tile reads.
_DEEP, _LEFT, _RIGHT = 512, 256 << 10, 2 << 20
_LITTLE = 1 << 17  # multiplications for which a second thread comes too late
_LINE = 64  # bytes of a cache line


class Outer(NamedTuple):
    """Products of some left matrices with some right ones, each left one with each right one.

    Args:
        lefts: of every one its rows, `(n, M)` in as many pieces as the others have.
        rights: likewise, `(n, N)`.
        totals: of every left matrix for every right one `(M, N)`, in which the numbers of a row lie
            side by side, or `(parts, M, N / parts)` with columns that lie apart, contiguous.
        adds: whether the sum over all rows is added to what is there; else it takes its place.
    """

    lefts: Sequence[Sequence[Tensor]]
    rights: Sequence[Sequence[Tensor]]
    totals: Sequence[Sequence[Tensor]]
    adds: bool

    @property
    def parts(self) -> list[int]:
        """In how many parts a result lies, for every right matrix."""
        return [t.shape[0] if t.dim() == 3 else 1 for t in self.totals[0]]


def is_faster() -> bool:
    """Whether products by our own library are taken to be faster than torch's.

    They were measured on an AMD EPYC (Zen 4), by AVX-512 and AVX2. Torch calls Intel's library, and
    on Intel's processors they take 1.1 times its time or more.
    """
    return not is_intel() and machine().name != "plain"


def prepare(dtype: torch.dtype, *, narrow: bool = False) -> None:
    """Compile what `multiply` will call, so that it fails early where it cannot be.

    Raises:
        CannotRunError: as it says.
    """
    if is_faster():
        _run(dtype, machine(), narrow)


def multiply(products: Sequence[Outer], threads: int, *, narrow: bool = False) -> None:
    """Compute products, or add them to what there is; all numbers are of one dtype.

    Args:
        products: what to compute.
        threads: that there are.
        narrow: operands are rounded to bfloat16.
    """
    if products and is_faster():
        _multiply(products, threads, narrow=narrow)
        return
    for product in products:
        for left, totals in zip(product.lefts, product.totals, strict=True):
            for right, total in zip(product.rights, totals, strict=True):
                _by_torch(total, product.adds, zip(left, right, strict=True))


def _by_torch(total: Tensor, adds: bool, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for left, right in pairs:
        a, g = left.T, right
        if total.dim() == 3:
            a = a.expand(total.shape[0], *a.shape)
            g = g.unflatten(1, (total.shape[0], -1)).transpose(0, 1)
        if adds:
            total.baddbmm_(a, g) if total.dim() == 3 else total.addmm_(a, g)
        else:
            torch.matmul(a, g, out=total)
        adds = True


def _multiply(products: Sequence[Outer], threads: int, *, narrow: bool) -> None:
    tensors, sizes, lefts, rights = list[Tensor](), list[int](), 0, 0
    dtype = products[0].totals[0][0].dtype
    isa, size = machine(), dtype.itemsize
    wide = _vectors(isa) * isa.vector_bytes // size  # columns of a tile
    if sum(map(_work, products)) < _LITTLE:
        threads = 1
    for product in products:
        rows = [piece.shape[0] for piece in product.lefts[0]]
        blocks = max(1, -(-sum(rows) // (2 * _DEEP if narrow else _DEEP)))
        deep = -(-sum(rows) // blocks)
        if narrow:
            deep = deep // 2 + len(rows)  # pairs, if each place has an odd number of rows
        few, some = (max(1, n // (max(1, deep) * size)) for n in (_LEFT // _HIGH, _RIGHT // wide))
        tall = sum(-(-left[0].shape[1] // _HIGH) for left in product.lefts)
        given = [
            (right[0].shape[1], n) for right, n in zip(product.rights, product.parts, strict=True)
        ]
        across = sum(parts * -(-units // parts // wide) for units, parts in given)
        abreast = _abreast(tall, across, threads)
        apart = _odd(deep * _HIGH * size) // size
        lefts = max(lefts, min(few, tall) * apart)
        rights = max(rights, min(some, -(-across // abreast)) * wide * deep)
        sizes += (len(rows), len(product.lefts), len(product.rights))
        sizes += (abreast, blocks, some, few, apart, *rows)
        ones = [1] * len(product.lefts)
        for matrix, parts in zip(
            (*product.lefts, *product.rights), (*ones, *product.parts), strict=True
        ):
            pieces, column, row = _lying(matrix)
            sizes += (parts, pieces[0].shape[1] // parts, column, *row)
            tensors += pieces
        totals = [*chain(*product.totals)]
        for total in totals:
            sizes += (product.adds, total.stride(-2))
        tensors += totals
    assert all(tensor.dtype == dtype for tensor in tensors)
    lefts, rights = (-(-n * size // _LINE) * _LINE // size for n in (lefts, rights))
    numbers = threads * (lefts + rights)
    told = (ctypes.c_long * (3 + len(sizes)))(lefts, rights, len(products), *sizes)
    run, pack = _run(dtype, isa, narrow), Struct(f"{len(tensors) + 1}P").pack

    def multiplied(*addresses: int) -> None:
        memory = POOL.take(numbers, dtype, brief=True)
        run(pack(memory.data_ptr(), *addresses), told, threads)

    ByAddress(multiplied)(*tensors)


def _work(product: Outer) -> int:
    """How many multiplications it takes."""
    rows = sum(piece.shape[0] for piece in product.lefts[0])
    return rows * sum(total.numel() for total in chain(*product.totals))


def _abreast(tall: int, wide: int, threads: int) -> int:
    """How many threads share each row of so many tiles, so that the one with the most has least."""

    def work(abreast: int) -> int:
        above, beside = -(-tall // (threads // abreast)), -(-wide // abreast)
        return 3 * above * beside + above + beside  # a tile takes as long as laying out for three

    return min((n for n in range(1, threads + 1) if threads % n == 0), key=work)


def _odd(least: int) -> int:
    """At least so many bytes, an odd number of cache lines.

    Of many such areas, written side by side, each begins in another part of a cache.
    """
    return (-(-least // _LINE) | 1) * _LINE


def _lying(pieces: Sequence[Tensor]) -> tuple[Sequence[Tensor], int, list[int]]:
    """A matrix as the library can read it; how far columns are apart, and rows in every piece."""
    column = pieces[0].stride(1)
    if column > 1 and all(piece.stride() == (1, column) for piece in pieces):
        return pieces, column, [1] * len(pieces)
    dense = [p if p.stride(1) == 1 or p.shape[1] == 1 else p.contiguous() for p in pieces]
    return dense, 1, [piece.stride(0) for piece in dense]


def _vectors(isa: Isa) -> int:
    """How many are side by side in a tile whose sums fill the registers."""
    return isa.sums // _HIGH


def _text(real: str, isa: Isa, *, narrow: bool = False) -> str:
    tile = f"#define HIGH {_HIGH}\n#define WIDE {_vectors(isa)}\n"
    texts = (*_TEXTS, "narrow.h", "pairs.h") if narrow else (*_TEXTS, "rows.h")
    return tile + cpp.prologue(real, isa, (*texts, "outer.h"))


@cache
def _run(dtype: torch.dtype, isa: Isa, narrow: bool = False) -> Callable[..., Any]:
    real = _REAL[dtype]
    text, common = _text(real, isa, narrow=narrow), cpp.common(real, isa, narrow=narrow)
    run = library(text, isa, common=common).run
    run.argtypes, run.restype = [ctypes.c_void_p] * 2 + [ctypes.c_int], None
    return run
