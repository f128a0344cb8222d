"""How large whole numbers may become: a program has them as reals, which do not know all of them.

In float32 they are right up to 2²⁴. So a bound goes with every whole number: of what is given it is
looked at when a call begins, and what is computed of it may be so many times as large. What
`.long()` makes of reals is taken to be below 2¹⁶, unless the step has made them large, as in
`(x * 1e6).long()`: of what has no bound nothing is computed that would need one.
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from flexrnn.engine.compiler.aten import Unsupported
from flexrnn.engine.compiler.single import aten_name, picks
from flexrnn.engine.compiler.spelt.rows import WHOLE

KNOWN = {torch.float32: 2**24, torch.float64: 2**53}  # the most of a dtype's whole numbers
_INT32 = 2**31 - 1
_LESS = 16  # times: so much smaller is what is given than what may be computed of it


def is_whole(value: Any) -> bool:
    """Whether it is a tensor of whole numbers."""
    return isinstance(value, Tensor) and value.dtype in WHOLE


def most_given(dtype: torch.dtype, numbers: torch.dtype) -> int:
    """The largest whole number that a program in this dtype may be given.

    Args:
        dtype: one of `KNOWN`.
        numbers: the dtype of such numbers, which may know fewer.
    """
    return _limit(dtype, numbers) // _LESS


def check(node: fx.Node, name: str, dtype: torch.dtype) -> None:
    """Refuse an operation on whole numbers whose result may be one that the dtype does not know.

    Raises:
        Unsupported: it may.
    """
    result: Any = node.meta["val"]
    single = result.dtype == torch.int32
    limit = _limit(dtype, result.dtype)
    bound = most(node, dtype)
    if bound is None:
        if name in _GROWS and (single or dtype == torch.float32):
            raise Unsupported(
                "nobody knows how large these whole numbers may be; `.clamp(least, most)` before "
                "it says so"
            )
    elif bound > limit:
        raise Unsupported(
            f"its whole numbers may be as large as {bound}, and those of {result.dtype} beside a "
            f"state of {dtype} are right up to {limit}"
        )


def check_compared(node: fx.Node, dtype: torch.dtype) -> None:
    """Refuse to compare whole numbers with one that the dtype does not know."""
    numbers = [x for x in node.args if isinstance(x, int)]
    whole = any(arg.meta["val"].dtype in WHOLE for arg in node.all_input_nodes)
    if whole and dtype in KNOWN and any(abs(x) > KNOWN[dtype] for x in numbers):
        raise Unsupported(f"a state of {dtype} does not know a whole number that large")


def why_not_next(node: fx.Node, field: str, dtype: torch.dtype) -> str | None:
    """Why whole numbers are none of a next state: they grow faster than by counting."""
    if node.meta["val"].dtype not in WHOLE or dtype not in KNOWN:
        return None
    bound, given = most(node, dtype), most_given(dtype, node.meta["val"].dtype)
    unknown = bound is None and dtype == torch.float32
    if unknown or (bound is not None and bound > given + given // 256):
        return (
            f"{field} may grow from step to step beyond what a state of {dtype} knows of whole "
            "numbers; `.clamp(least, most)` or `% most` would bound it"
        )
    return None


def most(node: fx.Node, dtype: torch.dtype) -> int | None:
    """A bound of the absolute numbers of a node; None where there is none.

    Args:
        node: of a trace.
        dtype: the program's.
    """
    if _BOUND not in node.meta:
        found = _most(node, dtype)
        node.meta[_BOUND] = None if found is None else math.ceil(found)
    return node.meta[_BOUND]


def _most(node: fx.Node, dtype: torch.dtype) -> float | None:
    value: Any = node.meta.get("val")
    if node.target is operator.getitem:
        return _of_several(node, value, dtype)
    if not isinstance(value, Tensor):
        return None
    if value.dtype == torch.bool:
        return 1
    if node.op == "placeholder":
        given = value.dtype in WHOLE and dtype in KNOWN
        return most_given(dtype, value.dtype) if given else None
    if node.op == "get_attr":
        whole = value.dtype in WHOLE
        return max((abs(int(n)) for n in value.flatten().tolist()), default=0) if whole else None
    name = aten_name(node)
    return _of_operation(node, name, value, dtype)


def _of_several(node: fx.Node, value: Any, dtype: torch.dtype) -> float | None:
    """One of several parts, or places, which are fewer than the units."""
    several: Any = node.args[0]
    read = _tensors_read(several)
    if isinstance(value, Tensor) and value.dtype in WHOLE and len(read) == 1:
        if read[0].meta["val"].dtype in WHOLE:
            return most(read[0], dtype)
        sizes = [size for size in read[0].meta["val"].shape if isinstance(size, int)]
        return max(sizes, default=None)
    return None


def _of_operation(node: fx.Node, name: str, value: Tensor, dtype: torch.dtype) -> float | None:
    numbers = [abs(x) for x in node.args if isinstance(x, (int, float))]
    if name in _UP_TO_ONE:
        return 1
    if name in ("full", "full_like", "scalar_tensor", "fill"):
        return numbers[-1] if numbers and not isinstance(node.args[-1], fx.Node) else None
    if name == "arange":
        return max(numbers, default=None)
    read = _tensors_read(node)
    if name == "_to_copy" and read[0].meta["val"].is_floating_point():
        return None if _are_large(read[0]) else _CUT
    bounds = [most(arg, dtype) for arg in read]
    if name == "clamp" and not any(isinstance(x, fx.Node) for x in node.args[1:]):
        ends = [*node.args[1:], *node.kwargs.values()]
        if len(numbers) + len(node.kwargs) > 1 and all(isinstance(x, (int, float)) for x in ends):
            return max(abs(x) for x in ends if isinstance(x, (int, float)))
    if name in ("remainder", "fmod"):
        return numbers[0] if numbers else bounds[-1]
    if None in bounds or not bounds:
        return None
    known = [b for b in bounds if b is not None]
    if name in ("add", "sub", "rsub"):
        alpha = node.kwargs.get("alpha", 1)
        return sum((*known, *numbers)) * abs(alpha) if isinstance(alpha, (int, float)) else None
    if name == "mul":
        return math.prod((*known * (2 if len(known) == 1 and not numbers else 1), *numbers))
    if name == "sum":
        return known[0] if picks(node) else known[0] * _count(read[0].meta["val"], value)
    if name == "div":
        return known[0] if node.kwargs.get("rounding_mode") else None
    if name in (*_CHOOSES, *_CLAMPS):
        return max((*known, *numbers))
    return max(known) if name in _AS_THEY_ARE else None


def _limit(dtype: torch.dtype, numbers: torch.dtype) -> int:
    """Up to where both know all whole numbers; those of 32 bits torch wraps around."""
    return min(KNOWN[dtype], _INT32) if numbers == torch.int32 else KNOWN[dtype]


def _tensors_read(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]


def _are_large(node: fx.Node) -> bool:
    """Whether a step multiplies reals by so much, or adds so much, that they are hardly small."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or node.op != "call_function":
        return False
    if _LARGE not in node.meta:
        name = aten_name(node)
        numbers = [abs(x) for x in node.args if isinstance(x, (int, float))]
        grows = (name == "mul" and max(numbers, default=0) > _TIMES) or (
            name == "div" and min(numbers, default=1) < 1 / _TIMES
        )
        grows |= name in ("add", "sub", "rsub") and max(numbers, default=0) > _CUT
        before = name not in _UP_TO_ONE and any(map(_are_large, node.all_input_nodes))
        node.meta[_LARGE] = grows or before
    return node.meta[_LARGE]


def _count(before: Tensor, after: Tensor) -> int:
    """How many numbers are summed up to one; of rows, of none."""
    left, made = ([n for n in x.shape if isinstance(n, int)] for x in (before, after))
    return math.ceil(math.prod(left) / max(1, math.prod(made)))


_BOUND, _LARGE = "most", "large"
_CUT = 2**16  # below this is what is cut off from reals
_TIMES = 4096  # times as much, and they may be larger
_GROWS = ("add", "sub", "rsub", "mul", "sum", "div")
_UP_TO_ONE = ("zeros", "ones", "zeros_like", "ones_like", "sign", "sigmoid", "tanh", "sin", "cos",
              "_softmax", "new_zeros", "new_ones")  # fmt: skip
_CHOOSES = ("where", "masked_fill")
_CLAMPS = ("clamp", "clamp_min", "clamp_max")
_AS_THEY_ARE = (
    "_to_copy", "amax", "amin", "neg", "abs", "maximum", "minimum", "cat", "stack", "copy",
    "slice_scatter", "select_scatter", "detach", "clone", "alias", "slice", "select", "unsqueeze",
    "squeeze", "view", "_unsafe_view", "reshape", "expand", "repeat", "permute", "transpose", "t",
    "flip", "roll",
)  # fmt: skip
