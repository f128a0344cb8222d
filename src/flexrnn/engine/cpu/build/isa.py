"""What this machine has: vector instructions, and so how wide a vector is in code; its cache."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flexrnn.engine.step import CannotRunError


class Isa(NamedTuple):
    """A set of instructions for which code is compiled."""

    name: str
    vector_bytes: int  # the widest register
    needs: tuple[str, ...]  # as Linux names a CPU's features
    options: tuple[str, ...]  # of the compiler
    sums: int  # registers that can hold sums of products, beside their operands


_BFLOAT16 = "avx512_bf16"  # products of bfloat16, as Linux names the feature
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # what Linux says of the first processor's
_AVX2 = ("avx2", "fma", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")

# The widest first. What a machine runs is chosen here and not by -march=native, for then a library
# is known by what it needs, and a home that unlike machines share keeps one for each.
ISAS: tuple[Isa, ...] = (
    Isa("avx512", 64, _AVX512, (*(f"-m{n}" for n in _AVX512), "-mprefer-vector-width=512"), 24),
    Isa("avx2", 32, _AVX2, tuple(f"-m{n}" for n in _AVX2), 12),
    Isa("plain", 16, (), (), 12),
)


@cache
def features() -> frozenset[str]:
    """What the CPU can do, as far as it matters here and the operating system lets it."""
    known = {_BFLOAT16, *(name for isa in ISAS for name in isa.needs)}
    return frozenset(known.intersection(_cpuinfo("flags").split()))


def has_bfloat16() -> bool:
    """Whether products of bfloat16 are faster than those of float32.

    On an AMD EPYC (Zen 5) they take half the time. On Intel's they have not been measured.
    """
    return _BFLOAT16 in features() and machine().name == "avx512" and not is_intel()


@cache
def is_intel() -> bool:
    """Whether the processor is Intel's."""
    return _cpuinfo("vendor_id") == "GenuineIntel"


def hints() -> bool:
    """Whether code asks for memory early: that paid on an Intel Xeon; a prototype on AMD lost."""
    return is_intel()


@cache
def last_cache() -> int:
    """Bytes of the largest cache of the first processor; 0 where Linux does not say."""
    return max(_caches().values(), default=0)


@cache
def second_cache() -> int:
    """Bytes of the cache behind the first one, a core's own as a rule; 0 likewise."""
    return _caches().get(2, 0)


def _caches() -> dict[int, int]:
    """Bytes of the first processor's caches by level; where a level has two, of one of them."""
    found: dict[int, int] = {}
    for about in _CACHES.glob("index*"):
        with suppress(OSError, ValueError):
            level = int((about / "level").read_text(encoding="ascii"))
            size = (about / "size").read_text(encoding="ascii").strip()  # as 32768K
            found[level] = int(size.removesuffix("K")) << 10
    return found


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; nothing where there is no such field."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def runnable() -> tuple[Isa, ...]:
    """The sets that this machine has, the widest first."""
    return tuple(isa for isa in ISAS if features().issuperset(isa.needs))


def machine() -> Isa:
    """The set to compile for: the widest that the machine has, or the one that FLEXRNN_ISA names.

    Raises:
        CannotRunError: FLEXRNN_ISA names none, or one that this machine lacks.
    """
    name, has = os.environ.get("FLEXRNN_ISA"), runnable()
    if not name:
        return has[0]
    for isa in has:
        if isa.name == name:
            return isa
    expected = ", ".join(isa.name for isa in has)
    raise CannotRunError(f"FLEXRNN_ISA: expected one of {expected} on this machine, got {name!r}")
