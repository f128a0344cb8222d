"""The complement of the error function."""

import triton
import triton.language as tl

from flexrnn.engine.cuda.functions.arithmetic import hexadecimal, minimum, polynomial, table
from flexrnn.engine.cuda.functions.exponential import exp_below_0

# erfc(x) = exp(-x x) p(t) / (1 + 2 x), t = (x - c) / (x + c), from 0.65 on.
ERFC_32 = table(-1.471589319e-3, 1.050303574e-3, 8.770821616e-3, -7.995991036e-3,
                        -5.423028022e-2, 1.640488952e-1, -1.660297811e-1, -9.276378900e-2,
                        1.276978374)  # fmt: skip
ERFC_64 = hexadecimal("""
    -0x1.3684d7bdd5609p-29 0x1.7ee854192b8a8p-24 -0x1.28b895eb0c9c3p-24 -0x1.4d19e56b79002p-21
    0x1.3fcb83c405326p-22 0x1.d393f1eaca85ep-19 -0x1.79c1ca160d15ep-21 -0x1.5159da4525744p-16
    0x1.4b9b2ad6baf51p-18 0x1.065b6cf25908fp-13 -0x1.b910da429d1fbp-14 -0x1.98db5f1b0d480p-11
    0x1.ef1bda505e9e2p-10 0x1.4b884ea0eda08p-9 -0x1.8574c40895976p-6 0x1.17ca2877c8431p-4
    -0x1.e88b803a507afp-4 0x1.098366a5b4ec5p-3 -0x1.85a15c58aa288p-5 -0x1.15c084bb9e901p-3
    0x1.40c522d7e4987p+0""")


@triton.jit
def erfc(x):
    if x.dtype == tl.float32:
        a = minimum(tl.abs(x), 11.0)  # where it has become 0
        p = polynomial((a - 2.0) / (a + 2.0), ERFC_32)
        upper = (a.to(tl.int32, bitcast=True) & -0x1000).to(tl.float32, bitcast=True)
    else:
        a = minimum(tl.abs(x), 28.0)
        p = polynomial((a - 3.0) / (a + 3.0), ERFC_64)
        upper = (a.to(tl.int64, bitcast=True) & -0x8000000).to(tl.float64, bitcast=True)
    square = a * a
    lost = (upper * upper - square) + (a + upper) * (a - upper)  # by rounding the square
    tail = exp_below_0(-square) * ((p - p * lost) / (a + a + 1.0))
    return tl.where(tl.abs(x) < 0.65, 1.0 - tl.erf(x), tl.where(x < 0.0, 2.0 - tail, tail))
