"""What is computed for many rows at once, outside of loops: as the interpreter does it, but large
products by our own library, where that is faster than torch."""

from collections.abc import Sequence

from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import Node
from flexrnn.engine.cpu.outer import Outer, is_faster, multiply

_LITTLE = 1 << 21  # multiplications for which calling our library takes longer than it saves


def compute(
    node: Node,
    args: Sequence[Tensor],
    lead: tuple[int, ...],
    like: Tensor,
    threads: int,
    into: Tensor | None = None,
) -> Tensor:
    """One node on tensors.

    Args:
        node, args, like: as `interpreter.compute`.
        lead: the axes in front of what there is at every step: `(T, B)` or `(N,)`.
        threads: that there are.
        into: memory for the result, if it has some already, all in one piece.
    """
    if node.op == "product" and args[1].dim() == 2:
        rows, weight = args[0].reshape(-1, args[0].shape[-1]), args[1]
        if is_faster() and _is_large(rows, weight) and rows.dtype == weight.dtype == like.dtype:
            if into is None:
                into = like.new_empty(interpreter.shape_of(node, lead))
            total = into.view(-1, into.shape[-1])
            multiply([Outer([[rows.T]], [[weight]], [[total]], adds=False)], threads)
            return into
    value = interpreter.compute(node, [*args], lead, like)
    return value if into is None else into.copy_(value)


def _is_large(rows: Tensor, weight: Tensor) -> bool:
    return rows.shape[0] * weight.numel() >= _LITTLE
