"""Triton for one operation."""

import math

from flexrnn.engine.compiler.ops import OPS


def expression(name: str, *operands: str, **attributes: float) -> str:
    """The row `name` of the table as an expression of Triton's Python.

    Args:
        name: of the operation.
        operands: blocks of float32 or float64, or of truth values; names, or in brackets.
        attributes: the numbers that belong to it.

    Returns:
        A block, of truth values where the row is boolean; put it in brackets to nest it.
    """
    op = OPS[name]
    return op.written(op.triton, operands, literal, attributes)


def literal(value: float, dtype: str = "") -> str:
    """A number in Triton, to the last bit.

    Args:
        value: the number.
        dtype: `float32` or `float64`, for an operand which is itself a block. Without, a number
            takes the type of the block beside it in an operator; it has none of its own.
    """
    text = repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
    return f"tl.full((1, 1), {text}, tl.{dtype})" if dtype else text


def is_operator(name: str) -> bool:
    """Whether an operation is written with Python's operators, between which a number may stand."""
    form = OPS[name].triton or OPS[name].form
    return bool(form) and "(" not in form
