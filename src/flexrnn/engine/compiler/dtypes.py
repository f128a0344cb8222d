"""Dtypes: a program has one. What a step computes in another is refused, unless it is the same.

So it is with what is 1 or 0 for truth values, with what is chosen of single numbers, and with zeros
and ones: torch makes float32 of `torch.where(mask, 1.0, -1.0)` and of `torch.ones(B, 5)`, and a
state of float64 does not notice.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from flexrnn.engine.compiler import ranges
from flexrnn.engine.compiler.aten import Unsupported, promotes
from flexrnn.engine.compiler.spelt.rows import WHOLE


def given(node: fx.Node, dtype: torch.dtype) -> None:
    """Note whole numbers that are given for every row, in an input or the state: they stay such."""
    if node.meta["val"].dtype in (*WHOLE, *_SMALL) and dtype in _EXACT:
        node.meta["exact"] = True


def check(node: fx.Node, operands: Sequence[fx.Node], dtype: torch.dtype) -> None:
    """Refuse an operation whose numbers are others in a program's dtype.

    One of another dtype with the same numbers is noted, for those that read it.

    Args:
        node: the operation.
        operands: those of its operands that the program has.
        dtype: of the program.

    Raises:
        Unsupported: its result or an operand is of another dtype, and of other numbers in this one.
    """
    target: Any = node.target
    name, result = target.overloadpacket.__name__, _result(node)
    bits = _bits(node, name, dtype)
    if bits is not None or _is_exact(node, name, dtype):
        node.meta |= {"exact": True, "bits": bits}
        return
    if _is_rounded(node, name, dtype):
        node.meta |= {"exact": True, "bits": None, ROUNDED: True}
        return
    if name in _COMPARED:
        ranges.check_compared(node, dtype)
    rows = [arg.meta.get("val") for arg in node.all_input_nodes]
    mixes = promotes(name) or name == "cat"
    yields = name == "_to_copy" or (
        mixes and any(isinstance(v, Tensor) and v.dtype == dtype and v.dim() for v in rows)
    )
    # Of whole numbers torch makes what they are put beside, or what a division has.
    counts = mixes and isinstance(result, Tensor) and result.dtype in (dtype, torch.bool)

    if name == "mul" and isinstance(result, Tensor) and result.dtype in WHOLE:
        raise Unsupported(
            "a product of whole numbers may have too many digits; `.to(h.dtype)` before it makes "
            "one of reals"
        )

    def is_same(arg: fx.Node) -> bool:
        return "exact" in arg.meta and (yields or (counts and arg.meta["val"].dtype in WHOLE))

    others = (arg for arg in operands if not is_same(arg))
    found = [("result", result), *(("operand", arg.meta.get("val")) for arg in others)]
    for what, value in found:
        if isinstance(value, Tensor) and value.dtype not in (dtype, torch.bool):
            raise Unsupported(f"its {what} is of {value.dtype}, the state of {dtype}")


def _result(node: fx.Node) -> Any:
    """What an operation makes; of parts, which are alike, the first."""
    made: Any = node.meta.get("val")
    return made[0] if node.target in _PARTED and made else made


def _is_exact(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether a result of a lesser dtype than the program's has the same numbers in that."""
    result = _result(node)
    if not isinstance(result, Tensor) or result.dtype in (dtype, torch.bool):
        return False
    if moves(name):
        first = node.all_input_nodes[0].meta
        return "exact" in first or (first["val"].dtype in WHOLE and dtype in _EXACT)
    if result.dtype in WHOLE:
        whole = dtype in _EXACT and _is_whole(node, name, dtype)
        if whole:
            ranges.check(node, name, dtype)
        return whole
    if not result.is_floating_point():
        return False
    if name in _MADE:
        value: Any = node.args[1] if name.startswith("full") else 0.0
        if isinstance(value, fx.Node):  # of the batch size
            return False
        return torch.tensor(value, dtype=result.dtype).item() == value
    if name not in ("_to_copy", "where") or torch.promote_types(result.dtype, dtype) != dtype:
        return False
    if name == "_to_copy" and node.all_input_nodes[0].meta["val"].dtype in WHOLE:
        return dtype in _EXACT and result.dtype in _EXACT
    truth, *others = node.all_input_nodes
    return truth.meta["val"].dtype == torch.bool and all(
        _is_chosen(arg, result.dtype) for arg in others
    )


def moves(name: str) -> bool:
    """Whether an aten operation leaves numbers as they are."""
    return name in _MOVES


def _is_whole(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether whole numbers are made of such, or of truth values, or by cutting off what is behind.

    A product of them may be too large for a real number that has as many bits; not so a single one
    with a number of Python's as large as those of units are.
    """
    if name == "_to_copy" and node.all_input_nodes[0].meta["val"].dtype == dtype:
        return True
    if name in _MADE:
        value: Any = node.args[1] if name.startswith("full") else 0
        return isinstance(value, int) and abs(value) <= _MOST
    if name == "fill" and not isinstance(value := node.args[1], fx.Node):
        return isinstance(value, int) and abs(value) <= _MOST
    single = _result(node).dtype == torch.int32  # which torch wraps around
    numbers = [abs(x) for x in (*node.args, *node.kwargs.values()) if isinstance(x, int)]
    if (single or dtype == torch.float32) and name in _ADDED and max(numbers, default=0) > _LAST:
        return False
    grown = any("grown" in arg.meta for arg in node.all_input_nodes)
    few = any(number <= (_FEW if single else _MOST) for number in numbers)
    if name == "mul" and (grown or not few):
        return False
    if grown or name == "mul":
        node.meta["grown"] = True
    return name in (*_COUNTS, *_OF_WHOLE) and all(
        arg.meta["val"].dtype == torch.bool or arg.meta["val"].dtype in WHOLE
        for arg in node.all_input_nodes
    )


def _bits(node: fx.Node, name: str, dtype: torch.dtype) -> tuple[int, int] | None:
    """Of a real result of a lesser dtype that is made of whole numbers, how many bits it has.

    They are those of the largest, and those behind the point. Together they are no more than that
    dtype has, so that nothing has been rounded; else there is no answer.
    """
    result = _result(node)
    if not isinstance(result, Tensor) or (result.dtype, dtype) != (torch.float32, torch.float64):
        return None
    metas = [arg.meta for arg in node.all_input_nodes if isinstance(arg.meta["val"], Tensor)]
    tensors = [_bits_of(meta) for meta in metas]
    given = [x for arg in node.args for x in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    numbers = [x for x in (*given, *node.kwargs.values()) if isinstance(x, (int, float))]
    if not tensors or None in tensors or not all(map(math.isfinite, numbers)):
        return None
    known = [pair for pair in tensors if pair is not None]
    size, behind = max(m for m, _ in known), max(f for _, f in known)
    if name in ("sum", "mean"):
        before, left = (math.prod(n for n in value.shape if isinstance(n, int))
                        for value in (metas[0]["val"], result))  # fmt: skip
        more = math.ceil(math.log2(max(1, before / left)))
        if name == "mean" and not _is_power(before / left):
            return None
        found = (size + more, behind) if name == "sum" else (size, behind + more)
    elif name == "div" and len(known) == len(numbers) == 1 and _is_power(numbers[0]):
        shift = math.frexp(numbers[0])[1] - 1
        found = (size - shift, max(0, behind + shift))
    elif name == "mul":
        known += map(_bits_of_number, numbers)
        found = (sum(m for m, _ in known), sum(f for _, f in known))
    elif moves(name):
        found = size, behind
    elif name in _COUNTS and not node.kwargs.get("alpha"):
        if name not in ("_to_copy", "cat"):  # whose numbers say other things
            known += map(_bits_of_number, numbers)
        added = name in ("add", "sub", "rsub")
        found = max(m for m, _ in known) + added, max(f for _, f in known)
    else:
        return None
    return found if sum(found) <= _BITS and found[1] <= _BITS else None


def _is_rounded(node: fx.Node, name: str, dtype: torch.dtype) -> bool:
    """Whether torch rounds a result to float32 once, or compares in it; nothing is learned by it.

    What float32 has of its operands, whole numbers or such results, float64 has, too.
    """
    result, metas = _result(node), [arg.meta for arg in node.all_input_nodes]
    given = [meta["val"].dtype for meta in metas if isinstance(meta["val"], Tensor)]
    if dtype != torch.float64 or not isinstance(result, Tensor) or len(given) < len(metas):
        return False
    if name == "mean" and result.dtype == torch.float32:  # of few numbers, whose sum is exact
        known, few = _bits_of(metas[0]), [n for n in metas[0]["val"].shape if isinstance(n, int)]
        return known is not None and sum(known) + math.prod(few).bit_length() <= _BITS
    compares = result.dtype == torch.bool and torch.float32 in given and name in _COMPARED
    exact = all("exact" in meta or meta["val"].dtype in (torch.bool, *WHOLE) for meta in metas)
    plain = not {"alpha", "rounding_mode"} & set(node.kwargs)
    return exact and plain and (compares or (result.dtype == torch.float32 and name in _ROUNDED))


def rounded(value: Any) -> Any:
    """A number of Python's as torch has it beside a tensor of float32."""
    plain = type(value) is float or (type(value) is int and abs(value) > 2**_BITS)
    return torch.tensor(float(value), dtype=torch.float64).float().item() if plain else value


def _bits_of(meta: dict[str, Any]) -> tuple[int, int] | None:
    if meta["val"].dtype == torch.bool:
        return 0, 0
    return (_LARGE, 0) if meta["val"].dtype in WHOLE else meta.get("bits")


def _bits_of_number(value: float) -> tuple[int, int]:
    """Of the largest number, and behind the point."""
    size, parts = math.frexp(abs(value))[1], value.as_integer_ratio()[1].bit_length() - 1
    return (size - _is_power(value) if value else 0), parts


def _is_power(value: float) -> bool:
    return math.frexp(value)[0] == 0.5


ROUNDED = "rounded"  # of an operation: in float32, of operands that are
# Torch's square root is missing: by vectors it is not the nearest number.
_ROUNDED = ("add", "sub", "rsub", "mul", "div", "neg", "abs", "remainder", "fmod", "clamp",
            "clamp_min", "clamp_max", "maximum", "minimum", "amax", "amin", "cat")  # fmt: skip
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
NOTED = ("exact", "bits", "grown")  # of an operation, for those that read it
_SMALL = (torch.uint8, torch.int8, torch.int16)  # whole numbers, which become reals or others
_EXACT = (torch.float64, torch.float32)  # of whole numbers up to two to the power of 24
_COUNTS = ("_to_copy", "sum", "amax", "amin", "where", "cat", "add", "sub", "rsub", "neg", "abs",
           "clamp", "clamp_min", "clamp_max", "maximum", "minimum")  # fmt: skip
_OF_WHOLE = ("mul", "remainder", "fmod", "div", "stack", "sign", "copy", "fill",
             "slice_scatter", "select_scatter")  # fmt: skip
_ADDED = ("add", "sub", "rsub")
_MADE = ("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like")
_MOST = 4096  # as many are units among which numbers are looked for
_BITS = 24  # of float32
_LAST = 2**_BITS  # up to which reals say the same
_FEW = 127  # times as much is a number of 32 bits
_LARGE = 16  # bits that a whole number is taken to have, where it becomes a part of others
_MOVES = ("detach", "clone", "alias", "slice", "select", "unsqueeze", "squeeze", "view",
          "_unsafe_view", "reshape", "expand", "repeat", "permute", "transpose", "t", "flip",
          "roll", "split", "split_with_sizes", "unbind")  # fmt: skip
_PARTED = (torch.ops.aten.split.Tensor, torch.ops.aten.split_with_sizes.default,
           torch.ops.aten.unbind.int)  # fmt: skip


def _is_chosen(arg: fx.Node, dtype: torch.dtype) -> bool:
    value = arg.meta["val"]
    return value.dtype == dtype and ("exact" in arg.meta or not value.dim())
