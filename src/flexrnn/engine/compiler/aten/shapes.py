"""Products, shapes and constants."""

import math
from typing import Any

import torch

from flexrnn.engine.compiler.aten import views
from flexrnn.engine.compiler.aten.builder import (
    TO_THE_END,
    Builder,
    Handlers,
    Ref,
    Unsupported,
    handles,
    number,
    without,
)
from flexrnn.engine.compiler.cuts import MOST, places
from flexrnn.engine.compiler.graph import BATCH, Shape

HANDLERS: Handlers = {}
_FEW = 8  # times that something is repeated by standing there as often

# Products -----------------------------------------------------------------------------------------


def _mm(b: Builder, a: Ref, w: Ref) -> Ref:
    if BATCH in b.shape(w):
        raise Unsupported("the right operand of a product depends on the input or the state")
    return b.op("product", a, w)


@handles(HANDLERS, "addmm")
def _addmm(b: Builder, bias: Ref, a: Ref, w: Ref, *, beta: float = 1, alpha: float = 1) -> Ref:
    product = _mm(b, a, w)
    product = product if alpha == 1 else b.op("mul", product, float(alpha))
    bias = bias if beta == 1 else b.op("mul", bias, float(beta))
    return b.op("add", product, bias)


# Shapes -------------------------------------------------------------------------------------------


UNMOVED = ("clone", "alias", "contiguous", "lift_fresh_copy")
# Which take numbers one by one, wherever the batch is.
ALIKE = ("detach", "_to_copy", "zeros_like", "ones_like", "full_like", "empty_like", "zero")


@handles(HANDLERS, *UNMOVED)
def _same(b: Builder, a: Ref, **kwargs: Any) -> Ref:
    return a


@handles(HANDLERS, "_to_copy")
def _to_copy(b: Builder, a: Ref, **kwargs: Any) -> Ref:
    whole = kwargs.get("dtype") in (torch.int64, torch.int32) and not b.graph.nodes[a].boolean
    return b.op("trunc", a) if whole else b.real(a)  # the tracer refuses every other conversion


@handles(HANDLERS, "detach")
def _detach(b: Builder, a: Ref) -> Ref:
    return b.op("detach", a)


@handles(HANDLERS, "split", "unsafe_split")
def _split(b: Builder, a: Ref, size: int, dim: int = 0) -> list[Ref]:
    axis = b.axis(a, dim)
    total = int(b.shape(a)[axis])
    return [b.slice(a, axis, k, min(k + size, total)) for k in range(0, total, size)]


@handles(HANDLERS, "split_with_sizes", "unsafe_split_with_sizes")
def _split_with_sizes(b: Builder, a: Ref, sizes: list[int], dim: int = 0) -> list[Ref]:
    axis, parts, start = b.axis(a, dim), [], 0
    for size in sizes:
        parts.append(b.slice(a, axis, start, start + size))
        start += size
    return parts


@handles(HANDLERS, "slice")
def _slice(b: Builder, a: Ref, dim: int = 0, start=None, stop=None, step: int = 1) -> Ref:
    shape = b.shape(a)
    whole = stop is None or stop == BATCH or (isinstance(stop, int) and stop >= TO_THE_END)
    if shape[dim] == BATCH and start in (None, 0) and whole and step == 1:
        return a
    axis = b.axis(a, dim)
    first, last, _ = slice(start, stop).indices(int(shape[axis]))
    last = max(first, last)
    if first == last and shape[axis]:
        return Ref(views.settle(b.graph, views.nothing(b.graph, a, dim)))
    return slice_of(b, a, axis, range(first, last, step))


def _groups(size: int, at: range) -> tuple[int, int, int]:
    """Groups of `at.step` places side by side, each with one of `at`; the last may be left over.

    Returns:
        Where the groups begin, how many there are, and which place of a group is the one.
    """
    for count in (len(at), len(at) - 1):
        beyond = at.start + count * at.step - size  # places that are missing behind a first group
        place = max(beyond, at.start % at.step)  # so that groups lie alike for every first place
        if place <= min(at.start, at.step - 1):
            return at.start - place, count, place
    raise AssertionError("all groups but the last have a place behind them")


def slice_of(b: Builder, a: Ref, axis: int, at: range) -> Ref:
    """Every n-th place along an axis: one of each group."""
    if at.step == 1:
        return b.slice(a, axis, at.start, at.stop)
    shape = b.shape(a)
    if BATCH not in shape:
        raise Unsupported("a slice with a step")  # torch does it once, ahead of the program
    if not at:
        return b.slice(a, axis, at.start, at.start)
    begin, count, place = _groups(int(shape[axis]), at)
    parts: list[Ref] = []
    if count:
        groups = b.grouped(b.slice(a, axis, begin, begin + count * at.step), axis, at.step)
        parts.append(b.ungrouped(b.slice(groups, axis, place, place + 1), axis))
    if count < len(at):
        parts.append(b.slice(a, axis, at[-1], at[-1] + 1))
    return b.concat(parts, axis)


def written_into(b: Builder, a: Ref, part: Ref, axis: int, at: range) -> Ref:
    """`a` with a part at some places of an axis."""
    first, last = at.start, at.stop
    if at.step != 1 and at:
        part, first, last = _among(b, a, part, axis, at)
    return _written(b, a, part, axis, first, last)


def _among(b: Builder, a: Ref, part: Ref, axis: int, at: range) -> tuple[Ref, int, int]:
    """`part` at some places of an axis, and `a` between them; and where that begins and ends."""
    begin, count, place = _groups(int(b.shape(a)[axis]), at)
    end = begin + count * at.step
    parts: list[Ref] = []
    if count:
        old = b.grouped(b.slice(a, axis, begin, end), axis, at.step)
        new = b.grouped(b.slice(part, axis, 0, count), axis, 1)
        parts.append(b.ungrouped(_written(b, old, new, axis, place, place + 1), axis))
    if count < len(at):
        parts += [b.slice(a, axis, end, at[-1])] if end < at[-1] else []
        parts.append(b.slice(part, axis, count, count + 1))
        end = at[-1] + 1
    return b.concat(parts, axis), begin, end


def _written(b: Builder, a: Ref, part: Ref, axis: int, first: int, last: int) -> Ref:
    """`a` with a part of an axis in the place of its own."""
    size = int(b.shape(a)[axis])
    parts = [b.slice(a, axis, 0, first)] if first else []
    parts += [part] if last > first else []
    parts += [b.slice(a, axis, last, size)] if last < size else []
    return b.concat(parts, axis)


@handles(HANDLERS, "select")
def _select(b: Builder, a: Ref, dim: int, index: Ref) -> Ref:
    axis = b.axis(a, dim)
    shape = b.shape(a)
    k = index % int(shape[axis])
    return b.reshape(b.slice(a, axis, k, k + 1), without(shape, axis))


@handles(HANDLERS, "unbind")
def _unbind(b: Builder, a: Ref, dim: int = 0) -> list[Ref]:
    axis = b.axis(a, dim)
    return [_select(b, a, dim, k) for k in range(int(b.shape(a)[axis]))]


@handles(HANDLERS, "expand")
def _expand(b: Builder, a: Ref, sizes: list[Any], **kwargs: Any) -> Ref:
    old = b.shape(a)
    padded = (1,) * (len(sizes) - len(old)) + old
    shape = tuple(o if s == -1 else s for s, o in zip(sizes, padded, strict=True))
    return a if shape == old else b.op("expand", a, shape=shape)


@handles(HANDLERS, "copy", "fill")
def _copy(b: Builder, a: Ref, value: Any, *args: Any) -> Ref:
    """What is left of writing over all of a tensor of the step's own."""
    source = value if isinstance(value, Ref) else Ref(b.graph.constant(number(value)))
    source = source if b.graph.nodes[a].boolean else b.real(source)
    return source if b.shape(source) == b.shape(a) else b.op("expand", source, shape=b.shape(a))


@handles(HANDLERS, "slice_scatter")
def _slice_scatter(
    b: Builder, a: Ref, part: Ref, dim: int = 0, start=None, stop=None, step: int = 1
) -> Ref:
    """What is left of `a[..., start:stop] = part`, a write to a tensor of the step's own."""
    if step == 1 and _slice(b, a, dim, start, stop) == a:
        return part
    axis = b.axis(a, dim)
    first, last, _ = slice(start, stop).indices(int(b.shape(a)[axis]))
    return written_into(b, a, part, axis, range(first, max(first, last), step))


@handles(HANDLERS, "select_scatter")
def _select_scatter(b: Builder, a: Ref, part: Ref, dim: int, index: int) -> Ref:
    axis = b.axis(a, dim)
    k = index % int(b.shape(a)[axis])
    shape = b.shape(a)
    wide = (*shape[:axis], 1, *shape[len(shape) + axis + 1 :])
    return _slice_scatter(b, a, b.reshape(part, wide), axis, k, k + 1)


@handles(HANDLERS, "repeat")
def _repeat(b: Builder, a: Ref, times: list[Any]) -> Ref:
    shape = (1,) * (len(times) - len(b.shape(a))) + b.shape(a)
    a = b.reshape(a, shape)
    for k, count in enumerate(times):
        if count == BATCH:
            raise Unsupported("it depends on the batch size")
        if not count:
            a = Ref(views.settle(b.graph, views.nothing(b.graph, a, k)))
        elif count != 1:
            a = _again(b, a, b.axis(a, k), count)
    return a


def _again(b: Builder, a: Ref, axis: int, count: int) -> Ref:
    """An axis so many times: side by side, or, where that is often, stretched."""
    shape = b.shape(a)
    size, before, behind = int(shape[axis]), shape[:axis], shape[len(shape) + axis + 1 :]
    if size > 1 and count <= _FEW:
        return b.op("concat", *[a] * count, axis=axis)
    a = b.reshape(a, (*before, 1, size, *behind))
    return b.ungrouped(b.op("expand", a, shape=(*before, count, size, *behind)), axis)


@handles(HANDLERS, "flip")
def _flip(b: Builder, a: Ref, dims: list[int]) -> Ref:
    for dim in dims:
        a = _turned(b, a, b.axis(a, dim))
    return a


def _turned(b: Builder, a: Ref, axis: int) -> Ref:
    """An axis from the last place to the first: of many the groups, and each group in itself."""
    size = int(b.shape(a)[axis])
    group = next((k for k in range(math.isqrt(size), 1, -1) if size % k == 0), 1)
    if size <= MOST or group == 1:
        parts = [*map(Ref, reversed(places(b.graph, a, axis)))]
        return a if size == 1 else b.concat(parts, axis)
    groups = b.grouped(a, axis, group)
    return b.ungrouped(_turned(b, _turned(b, groups, axis), axis - 1), axis)


@handles(HANDLERS, "roll")
def _roll(b: Builder, a: Ref, shifts: list[int], dims: list[int] = []) -> Ref:  # noqa: B006
    if not dims:
        raise Unsupported("it works across the batch")
    for shift, dim in zip(shifts, dims, strict=True):
        axis = b.axis(a, dim)
        size = int(b.shape(a)[axis])
        cut = -shift % size
        if cut:
            a = b.op("concat", b.slice(a, axis, cut, size), b.slice(a, axis, 0, cut), axis=axis)
    return a


# Constants ----------------------------------------------------------------------------------------


def _filled(b: Builder, shape: Shape, value: float) -> Ref | views.View:
    constant = Ref(b.graph.constant(value))
    if BATCH not in shape[1:]:
        return b.op("expand", constant, shape=tuple(shape)) if len(shape) else constant
    place = shape.index(BATCH)
    rows = b.op("expand", constant, shape=(BATCH, *shape[:place], *shape[place + 1 :]))
    return views.permute(b.graph, rows, [*range(1, place + 1), 0, *range(place + 1, len(shape))])


HANDLERS |= {
    "full": lambda b, shape, value, **_: _filled(b, shape, number(value)),
    "zeros": lambda b, shape, **_: _filled(b, shape, 0.0),
    "ones": lambda b, shape, **_: _filled(b, shape, 1.0),
    "scalar_tensor": lambda b, value, **_: _filled(b, (), number(value)),
    # What nobody has written is no number; who reads it shall notice.
    "empty": lambda b, shape, **_: _filled(b, shape, math.nan),
    "empty_like": lambda b, a, **_: _filled(b, b.shape(a), math.nan),
    "new_empty": lambda b, a, shape, **_: _filled(b, shape, math.nan),
    "full_like": lambda b, a, value, **_: _filled(b, b.shape(a), number(value)),
    "zero": lambda b, a: _filled(b, b.shape(a), 0.0),
    "zeros_like": lambda b, a, **_: _filled(b, b.shape(a), 0.0),
    "ones_like": lambda b, a, **_: _filled(b, b.shape(a), 1.0),
}
