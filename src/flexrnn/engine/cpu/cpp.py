"""C++ for one operation, and the text in front of every generated source."""

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources

from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.cpu.build.isa import Isa, hints

_LOOP = ("vector.h", "math.h", "angles.h", "loop.h", "weights.h")
_PRODUCTS = ("vector.h", "loop.h", "weights.h")  # what these need of it
_NARROW = "narrow.h"
_WORDS = """
    alignas alignof and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
    char8_t co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int linux long mutable namespace new noexcept
    not_eq nullptr operator or_eq private protected public register reinterpret_cast requires
    return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof union unix unsigned using virtual
    void volatile wchar_t while xor xor_eq ALONE HINTS HUGE INLINE INT REAL VL
"""
KEYWORDS = frozenset(_WORDS.split())  # that Python lets a variable have as its name


def expression(name: str, *operands: str, **attributes: float) -> str:
    """The row `name` of the table as a C++ expression.

    Args:
        name: of the operation.
        operands: C++ of type `vec`, or `mask` for truth values; names, or in brackets.
        attributes: the numbers that belong to it.

    Returns:
        C++ of type `mask` where the row is boolean, else `vec`; put it in brackets to nest it.
    """
    op = OPS[name]
    return op.written(op.cpp, operands, literal, attributes)


def literal(value: float) -> str:
    """A number of type `REAL` in C++, to the last bit."""
    if math.isnan(value):
        return 'REAL(__builtin_nan(""))'
    if math.isinf(value):
        return f"REAL({'-' if value < 0 else ''}__builtin_inf())"
    return f"REAL({value.hex()})"


def vectors(count: int) -> str:
    """So many vectors, as a distance in numbers."""
    return "VL" if count == 1 else f"{count} * VL"


def vector(memory: str, number: int) -> str:
    """Where a vector of a memory lies."""
    return f"{memory} + {vectors(number)}" if number else memory


def vector_of_row(memory: str, row: str, count: int, number: int) -> str:
    """Where a vector of a row lies, if every row has so many."""
    row = row if count == 1 else f"{row} * {count}"
    return f"{memory} + ({row} + {number}) * VL" if number else f"{memory} + {row} * VL"


@cache
def prologue(real: str, isa: Isa, names: Sequence[str] = _LOOP, *, narrow: bool = False) -> str:
    """What stands in front of generated source: vectors, and functions on them.

    Args:
        real: `float` or `double`.
        isa: whose registers a vector fills.
        names: of the files in the folder `runtime`; of all loops' by default.
        narrow: products are of bfloat16.
    """
    size, integer = {"float": (4, "int"), "double": (8, "long")}[real]
    lanes = isa.vector_bytes // size
    defined = f"#define REAL {real}\n#define INT {integer}\n#define VL {lanes}\n"
    defined += f"#define HINTS {int(hints())}\n"
    return "\n".join((defined, *map(_read, (*names, _NARROW) if narrow else names)))


def common(
    real: str, isa: Isa, functions: Sequence[str] = (), *, narrow: bool = False
) -> tuple[str, ...]:
    """What loops call that is not their cell's alone: texts of objects to link with them.

    Args:
        real: as `prologue`.
        isa: as `prologue`.
        functions: texts, each of an object by itself; see `Source`.
        narrow: as `prologue`.
    """
    before = prologue(real, isa, _PRODUCTS, narrow=narrow)
    return tuple(before + text for text in (definitions(narrow=narrow), *functions))


def definitions(*, narrow: bool = False) -> str:
    """What weights.h declares, to stand somewhere behind it; or what narrow.h does."""
    return _read("narrow.cpp" if narrow else "weights.cpp")


@cache
def _read(name: str) -> str:
    folder = resources.files("flexrnn.engine.cpu") / "runtime"
    return (folder / name).read_text(encoding="utf-8")
