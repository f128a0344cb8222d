"""Derivatives of a person's own, as `spelt/function.py` writes them down."""

from flexrnn.engine.compiler.aten.builder import Builder, Handlers, Ref, Unsupported, handles
from flexrnn.engine.compiler.custom import is_linear, is_zero
from flexrnn.engine.compiler.graph import BATCH, Shape, broadcast

HANDLERS: Handlers = {}


@handles(HANDLERS, "cotangent")
def _cotangent(b: Builder, value: Ref) -> Ref:
    number = float(len(b.graph.nodes))  # each is another
    return b.op("cotangent", shape=b.shape(value), number=number)


@handles(HANDLERS, "custom_vjp")
def _custom_vjp(
    b: Builder, value: Ref, name: str, cotangent: Ref, inputs: list[Ref], gradients: list[Ref]
) -> Ref:
    value, gradients = b.real(value), [b.real(gradient) for gradient in gradients]
    for x, gradient in zip(inputs, gradients, strict=True):
        _check(b, value, cotangent, x, gradient)
    pairs = (node for pair in zip(inputs, gradients, strict=True) for node in pair)
    return b.op("custom_vjp", value, cotangent, *pairs)


def _check(b: Builder, value: Ref, cotangent: Ref, x: Ref, gradient: Ref) -> None:
    """Refuse a gradient that does not fit, and one that is another when it is found once for all.

    A program hands to what is the same at every step a gradient that is summed over all rows and
    steps; torch calls backward at each step.
    """
    shape, given = b.shape(x), b.shape(gradient)
    if not _fits(given, shape):
        raise Unsupported(f"backward returns a gradient {given} of an input {shape}")
    if is_zero(b.graph, gradient):
        return
    of_rows = [BATCH in b.shape(node) for node in (value, x, gradient)]
    if not any(of_rows):
        if not is_linear(b.graph, gradient, cotangent):
            raise Unsupported("its backward is not linear, and what it is of is no row")
    elif not (of_rows[0] and of_rows[2]):
        raise Unsupported("of its result, its inputs and their gradients some have no rows")


def _fits(given: Shape, shape: Shape) -> bool:
    if BATCH in shape or len(given) < len(shape):
        return given == shape
    try:
        return broadcast("add", (given, shape)) == given
    except ValueError:
        return False
