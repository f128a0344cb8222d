"""Spellings: einsum, for which torch makes one axis of all that operands and result share."""

import math
from collections.abc import Sequence
from itertools import combinations, permutations
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from flexrnn.engine.compiler.matrices import are_many
from flexrnn.engine.compiler.spelt.matrices import OWN, by_groups, by_heads
from flexrnn.engine.compiler.spelt.rows import batch_first, has_rows, is_of_rows

_LABELS = 5  # of which all orders are compared


def _einsum(equation: Any, *operands: Any) -> Tensor:
    """Torch makes one axis of all that operands and result share: of rows and heads, too."""
    if not isinstance(equation, str):
        return torch.einsum(equation, *operands)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = (*operands[0],)
    equation = _without_dots(equation, operands)
    read, arrow, result = equation.replace(" ", "").partition("->")
    labels = read.split(",")
    if arrow and len(labels) == len(operands):
        labels, operands = batch_first(labels, operands, result)
        read = ",".join(labels)
        equation = f"{read}->{result}"
    if arrow and read.isalpha() and sorted({*read}) == sorted(read) == sorted(result):
        return operands[0].permute([read.index(label) for label in result])
    if arrow and (pair := _pair(labels, operands, result)) is not None:  # which is a product
        rest = [k for k in range(len(labels)) if k not in pair]
        wanted = result + "".join(labels[k] for k in rest)
        own = dict.fromkeys("".join(labels[k] for k in pair))
        left = "".join(label for label in own if label in wanted)
        read = ",".join(labels[k] for k in pair)
        made = _einsum(f"{read}->{left}", *(operands[k] for k in pair))
        read = ",".join([left, *(labels[k] for k in rest)])
        return _einsum(f"{read}->{result}", made, *(operands[k] for k in rest))
    if arrow and (shared := _shared(labels, operands, result)) is not None:
        return shared
    if arrow and (grouped := _grouped(labels, operands, result)) is not None:
        return grouped
    summed = "".join(dict.fromkeys(label for label in "".join(labels) if label not in result))
    of_heads = arrow and summed and _is_of_heads(labels, operands, result)
    if not of_heads or _is_of_matrices(labels, operands, result):
        return torch.einsum(equation, *operands)
    order, product = _quietest(labels, operands, result, summed), None
    for own, x in zip(labels, operands, strict=True):
        x = x.permute([own.index(label) for label in order if label in own])
        x = x[tuple(slice(None) if label in own else None for label in order)]
        product = x if product is None else product * x
    assert product is not None
    found = product.sum([order.index(label) for label in summed])
    left = [label for label in order if label in result]
    return found.permute([left.index(label) for label in result])


def _is_of_matrices(labels: Sequence[str], operands: Sequence[Tensor], result: str) -> bool:
    """Whether these are two matrices of every head, not small ones."""
    if len(labels) != 2:
        return False
    one, other = labels
    size = dict(zip(one + other, (*operands[0].shape, *operands[1].shape), strict=True))
    left = [size[label] for label in one if label not in other]
    right = [size[label] for label in other if label not in one]
    inner = [size[label] for label in one if label in other and label not in result]
    return bool(left and right and inner) and are_many(*map(math.prod, (left, inner, right)))


def _quietest(
    labels: Sequence[str], operands: Sequence[Tensor], result: str, summed: str
) -> Sequence[str]:
    """An order of all labels, the batch first, in which the fewest numbers have to move."""
    sizes: dict[str, int] = {}
    for own, x in zip(labels, operands, strict=True):
        for label, size in zip(own[1:], x.shape[1:], strict=True):  # 1 where it is stretched
            sizes[label] = max(size, sizes.get(label, 1))
    as_given = (*result[1:], *summed)
    if len(as_given) > _LABELS:
        return (result[0], *as_given)

    def moved(order: Sequence[str]) -> int:
        total = 0
        for own in (*labels, result):
            wide = [label for label in own[1:] if sizes[label] != 1]
            if wide != [label for label in order if label in wide]:
                total += math.prod(sizes[label] for label in wide)
        return total

    return (result[0], *min((as_given, *permutations(as_given)), key=moved))


def _pair(labels: Sequence[str], operands: Sequence[Any], result: str) -> tuple[int, int] | None:
    """Of more than two the first of rows and the first weight that share what they sum up.

    One weight may share any label; several are multiplied one after another, or with one another.
    """
    several = len(labels) == len(operands) > 2 and "." not in "".join(labels)
    if not several or not all(isinstance(x, Tensor) for x in operands):
        return None
    weights = [k for k, x in enumerate(operands) if not is_of_rows(x)]
    rows = [k for k in range(len(labels)) if k not in weights]

    def shared(k: int, w: int) -> set[str]:
        both = {*labels[k]} & {*labels[w]}
        rest = "".join(labels[n] for n in range(len(labels)) if n not in (k, w))
        return both if len(weights) == 1 else both - {*result, *rest}

    found = next(((k, w) for w in weights for k in rows if shared(k, w)), None)
    pairs = combinations(weights, 2) if rows else ()
    return found or next((pair for pair in pairs if {*labels[pair[0]]} & {*labels[pair[1]]}), None)


def _without_dots(equation: str, operands: Sequence[Any]) -> str:
    """An equation with a label for each axis for which it has three dots."""
    read, arrow, result = equation.replace(" ", "").partition("->")
    labels = read.split(",")
    tensors = len(labels) == len(operands) and all(isinstance(x, Tensor) for x in operands)
    if not tensors or not arrow or any(own.count(".") not in (0, 3) for own in (*labels, result)):
        return equation
    free = [label for label in ascii_letters if label not in equation]
    counts = [x.dim() - len(own) + 3 for own, x in zip(labels, operands, strict=True) if "." in own]
    most = max(counts, default=0)
    if not counts or min(counts) < 0 or most > len(free):
        return equation
    axes = "".join(free[:most])
    for k, (own, x) in enumerate(zip(labels, operands, strict=True)):
        last = most - (x.dim() - len(own) + 3)
        labels[k] = own.replace("...", axes[last:])
    return f"{','.join(labels)}->{result.replace('...', axes)}"


def _shared(labels: Sequence[str], operands: Sequence[Any], result: str) -> Tensor | None:
    """An einsum of rows and of one weight for all that it leaves of them: `bjc,ij->bic`."""
    if len(labels) != 2 or len(operands) != 2 or not all(isinstance(x, Tensor) for x in operands):
        return None
    (own, x), (other, w) = sorted(
        zip(labels, operands, strict=True), key=lambda pair: not is_of_rows(pair[1])
    )
    pairs = ((own, x), (other, w))
    if any(not len({*names}) == len(names) == tensor.dim() for names, tensor in pairs):
        return None
    if not is_of_rows(x) or is_of_rows(w) or x.dtype != w.dtype:
        return None
    if own[:1] != result[:1] or own[:1] in other or len({*result}) < len(result) or "." in own:
        return None
    kept = [label for label in own if label in result]
    summed = [label for label in own if label not in result]
    new = [label for label in other if label not in summed]
    if len(kept + summed) < 3 or not summed or {*kept, *new} != {*result} or {*kept} & {*other}:
        return None
    if not {*summed} <= {*other} or any(
        x.shape[own.index(label)] != w.shape[other.index(label)] for label in summed
    ):  # one of them may be stretched
        return None
    rows = x.permute([own.index(label) for label in (*kept, *summed)]).flatten(len(kept))
    weight = w.permute([other.index(label) for label in (*summed, *new)])
    weight = weight.reshape(rows.shape[-1], -1)
    sizes = [w.shape[other.index(label)] for label in new]
    product = by_heads(rows, weight) if len(kept) > 1 else rows @ weight
    product = product.unflatten(-1, sizes) if new else product.squeeze(-1)
    names = [*kept, *new]
    return product.permute([names.index(label) for label in result])


def _grouped(labels: Sequence[str], operands: Sequence[Any], result: str) -> Tensor | None:
    """An einsum of rows and of one weight for each group: `bnki,nkio->bno`.

    Torch makes one axis of several that are summed, and so do we, but not of the batch.
    """
    if len(labels) != 2 or len(operands) != 2 or not all(isinstance(x, Tensor) for x in operands):
        return None
    (own, x), (other, w) = sorted(
        zip(labels, operands, strict=True), key=lambda pair: not is_of_rows(pair[1])
    )
    if any(
        not len({*names}) == len(names) == tensor.dim() for names, tensor in ((own, x), (other, w))
    ):
        return None
    if len({*result}) < len(result) or "." in own + other:
        return None
    if not is_of_rows(x) or has_rows(w) or x.dtype != w.dtype:
        return None
    summed = [label for label in own if label not in result]
    groups = [label for label in own[1:] if label in result and label in other]
    left = [label for label in own[1:] if label in result and label not in other]
    new = [label for label in other if label not in own]
    if own[:1] != result[:1] or own[:1] in other or not groups:
        return None
    if not summed or (len(summed) == 1 and not left):
        return None  # torch's own does
    if not {*summed, *groups} <= {*other} or {*own[:1], *groups, *left, *new} != {*result}:
        return None
    if any(x.shape[own.index(k)] != w.shape[other.index(k)] for k in (*summed, *groups)):
        return None  # one of them may be stretched
    rows = x.permute([own.index(k) for k in (own[0], *groups, *left, *summed)])
    heads, lefts = ([x.shape[own.index(k)] for k in part] for part in (groups, left))
    rows = rows.flatten(1 + len(groups + left)).flatten(1, len(groups))
    rows = rows.flatten(2, -2) if left else rows.unsqueeze(2)  # (B, G, M, K)
    weight = w.permute([other.index(k) for k in (*groups, *summed, *new)])
    sizes = [w.shape[other.index(k)] for k in new]
    weight = weight.reshape(rows.shape[1], rows.shape[3], math.prod(sizes))
    product = by_groups(rows, weight)
    product = product.reshape(x.shape[0], *heads, *lefts, *sizes)
    names = [own[0], *groups, *left, *new]
    return product.permute([names.index(label) for label in result])


def _is_of_heads(labels: Sequence[str], operands: Sequence[Tensor], result: str) -> bool:
    """Whether all operands of an einsum are of rows and share more, and are no large matrices."""
    by_rows = all(map(is_of_rows, operands)) and {own[:1] for own in labels} == {result[:1]}
    alike = len(labels) == len(operands) > 1 and len({x.dtype for x in operands}) == 1
    if not by_rows or not alike or len({*result}.intersection(*labels)) < 2:
        return False
    pairs = [*zip(labels, operands, strict=True)]
    if any(not len(own) == len({*own}) == x.dim() for own, x in pairs):
        return False
    if len({*result}) < len(result) or not {*result} <= {*"".join(labels)}:
        return False
    sizes: dict[str, int] = {}
    for own, x in pairs:
        sizes |= {label: n for label, n in zip(own[1:], x.shape[1:], strict=True) if n != 1}
    most = max(math.prod(x.shape[1:]) for x in operands)
    return math.prod(sizes.values()) <= max(most, OWN)


SPELT: dict[Any, Any] = {torch.einsum: _einsum}
