# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false
# Triton reads these functions; to Python its blocks and its functions have other types.
"""What generated kernels call beside elementwise functions: products, and reductions of rows.

A product (M, K) times (K, N) whose inner numbers are shared out is (SHARES, M, K / SHARES) times
(SHARES, K / SHARES, N): products side by side, one for each warp. With one share it is as ever.
"""

import torch
import triton
import triton.language as tl

from flexrnn.engine.cuda.functions import INTERPRETED

HIP = tl.constexpr(torch.version.hip is not None)


@triton.jit
def product(a, w, total, PRECISION: tl.constexpr):
    """Add `a` (M, K) times `w` (K, N) to a total (M, N); sums are of the total's type."""
    if INTERPRETED:  # Triton's interpreter multiplies the bits of bfloat16
        a, w = a.to(total.dtype), w.to(total.dtype)
    if PRECISION == "tf32":
        a, w = nearest_tf32(a), nearest_tf32(w)
    return tl.dot(a, w, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def nearest_tf32(x):
    """The nearest number of 10 bits behind the point: a product alone would cut the others off."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)  # of a card's NaN it would be a zero


@triton.jit
def columns(K: tl.constexpr, SHARES: tl.constexpr):
    """The numbers of the columns of a left operand."""
    if SHARES > 1:
        first = tl.arange(0, SHARES)[:, None, None] * (K // SHARES)
        k = first + tl.arange(0, K // SHARES)[None, None, :]
    else:
        k = tl.arange(0, K)[None, :]
    return k


@triton.jit
def rows_of(K: tl.constexpr, SHARES: tl.constexpr):
    """The numbers of the rows of a right operand."""
    if SHARES > 1:
        first = tl.arange(0, SHARES)[:, None, None] * (K // SHARES)
        k = first + tl.arange(0, K // SHARES)[None, :, None]
    else:
        k = tl.arange(0, K)[:, None]
    return k


@triton.jit
def of_all(x, SHARES: tl.constexpr):
    """The same, a row and a column of it, for every share."""
    if SHARES > 1:
        x = tl.broadcast_to(x[None, :, :], (SHARES, x.shape[0], x.shape[1]))
    return x


@triton.jit
def together(total, SHARES: tl.constexpr):
    """The sum of what all shares have found."""
    if SHARES > 1:
        total = tl.sum(total, axis=0)
    return total


@triton.jit
def row_sum(x):
    """The sum of each row, (M, 1)."""
    return tl.sum(x, axis=1, keep_dims=True)


@triton.jit
def row_amax(x):
    """The greatest number of each row, (M, 1); NaN where there is one, as torch's."""
    return tl.reduce(x, 1, _greater, keep_dims=True)


@triton.jit
def row_moment(x, inside, count):
    """Of the `count` numbers of each row that are inside, Σ (x - mean)², (M, 1)."""
    mean = row_sum(tl.where(inside, x, 0.0)) / count
    apart = tl.where(inside, x - mean, 0.0)
    return row_sum(apart * apart)


@triton.jit
def whole_moment(moments, sums, counts, mean):
    """The same of whole rows, of what their tiles have found: each so, a sum, a count of numbers.

    A tile without numbers, whose count is 0, has found nothing.
    """
    apart = sums / tl.maximum(counts, 1) - mean
    return row_sum(moments + tl.where(counts > 0, counts * apart * apart, 0.0))


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def arrive(meeting):
    """Say to all programs of these rows that this one's numbers are there."""
    tl.debug_barrier()
    if not INTERPRETED:  # where one program follows another
        tl.atomic_add(meeting, 1, sem="release")


@triton.jit
def wait(meeting, met):
    """Wait until so many have arrived."""
    if not INTERPRETED:
        while _arrived(meeting) < met:
            pass
    tl.debug_barrier()


@triton.jit
def _arrived(meeting):
    """How many have; what they had written before is seen from now on."""
    if HIP:
        return tl.atomic_add(meeting, 0, sem="acquire")
    # Of all who wait, so many additions of nothing would keep those waiting who arrive.
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.s64 $0, [$1];", "=l,l", [meeting], tl.int64, False, 1
    )
