"""Of every operation of aten's on complex numbers of rows, how it is said in real ones.

A rule gets a writer, the operation and its arguments; in the place of what is complex there is a
pair. It returns a pair, or a node, where the result is real.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from flexrnn.engine.compiler.complexes import pairs
from flexrnn.engine.compiler.complexes.parts import is_number
from flexrnn.engine.compiler.complexes.writer import Pair, Part, Writer, aten

Rule = Callable[..., "Pair | fx.Node"]


def _is_pair(value: Any) -> bool:
    return isinstance(value, Pair)


def _as_pair(value: Any) -> Any:
    """What a number, or a node of real numbers, is among complex ones."""
    if _is_pair(value):
        return value
    if isinstance(value, complex):
        return Pair(value.real, value.imag)
    return Pair(value, 0)


def _arithmetic(rule: Callable[..., Any]) -> Rule:
    """Of operands that are complex or real."""
    return lambda w, target, *args: rule(w, *map(_as_pair, args))


def _sum(rule: Callable[[Writer, Pair, Pair], Pair]) -> Rule:
    def spelt(w: Writer, target: Any, a: Any, b: Any, *, alpha: Any = 1) -> Pair:
        b = _as_pair(b)
        return rule(w, _as_pair(a), b if alpha == 1 else pairs.scaled(w, b, alpha))

    return spelt


def _subtracted_from(w: Writer, _: Any, a: Any, b: Any, alpha: Any = 1) -> Pair:
    """`b - alpha a`."""
    return pairs.sub(w, _as_pair(b), pairs.scaled(w, _as_pair(a), alpha))


def _each(w: Writer, target: Any, a: Pair, *args: Any, **kwargs: Any) -> Pair:
    """What it does to numbers is the same for both parts, and to 0 nothing."""
    kwargs = {name: _real_dtype(value) for name, value in kwargs.items()}
    return Pair(*(p if is_number(p) else w(target, p, *args, **kwargs) for p in a))


def _joint(*places: int) -> Rule:
    """Like `_each`, where several operands, at these places, are put beside one another."""

    def spelt(w: Writer, target: Any, *args: Any, **kwargs: Any) -> Pair:
        given: list[Any] = []
        real = True
        for k, arg in enumerate(args):
            listed = isinstance(arg, list)
            joined = [*map(_as_pair, arg if listed else [arg])] if k in places else []
            real = real and all(is_number(p.imag) and not p.imag for p in joined)
            whole = [_of_one_kind(w, pair) for pair in joined]
            given.append(
                _Listed(whole) if listed and joined else _Single(*whole) if joined else arg
            )

        def part(k: int) -> fx.Node:
            return w(target, *(_part(arg, k) for arg in given), **kwargs)

        return Pair(part(0), 0 if real else part(1))

    return spelt


class _Single(NamedTuple):
    parts: tuple[Part, Part]


class _Listed(NamedTuple):
    parts: list[tuple[Part, Part]]


def _part(arg: Any, k: int) -> Any:
    if isinstance(arg, _Listed):
        return [parts[k] for parts in arg.parts]
    return arg.parts[k] if isinstance(arg, _Single) else arg


def _of_one_kind(w: Writer, pair: Pair) -> tuple[Part, Part]:
    """Two nodes, or two numbers."""
    return (*pair,) if all(map(is_number, pair)) else w.whole(pair)


def _by(target: Any) -> Callable[[Writer, Part, Part], Part]:
    """A product of real matrices, which is 0 where one of them is."""

    def by(w: Writer, a: Part, b: Part) -> Part:
        if is_number(a) or is_number(b):
            return 0
        return w(target, a, b)

    return by


def _product(w: Writer, target: Any, a: Any, b: Any) -> Pair:
    return pairs.product(w, _as_pair(a), _as_pair(b), _by(target))


def _added_product(of: Any) -> Rule:
    """`y + a b`, with numbers before both."""

    def spelt(
        w: Writer, target: Any, y: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1
    ) -> Pair:
        made = pairs.scaled(w, _product(w, of, a, b), alpha)
        return pairs.add(w, made, pairs.scaled(w, _as_pair(y), beta))

    return spelt


def _dtype_changed(w: Writer, target: Any, a: Any, **kwargs: Any) -> Any:
    dtype = kwargs.pop("dtype", None)
    if not _is_pair(a):
        return Pair(w(target, a, dtype=_real_dtype(dtype), **kwargs), 0)
    if dtype is None or dtype.is_complex:
        return _each(w, target, a, dtype=dtype, **kwargs)
    if not dtype.is_floating_point:
        raise w.refused("of complex numbers it makes others than real ones")
    return w(target, w.whole(a)[0], dtype=dtype, **kwargs)


def _real_dtype(value: Any) -> Any:
    complexes = isinstance(value, torch.dtype) and value.is_complex
    return value.to_real() if complexes else value


def _filled(number: Any = None) -> Rule:
    """A new tensor of one number; what is not said of it torch has said of the result."""

    def spelt(w: Writer, target: Any, like: Any, *args: Any, **kwargs: Any) -> Any:
        value = w.node.meta["val"]
        made = _as_pair(args[0] if number is None else number)
        if not value.is_complex():
            return w.filled(value, made.real)
        return made

    return spelt


def _compared(name: str, join: Any) -> Rule:
    tensor, scalar = getattr(aten, name).Tensor, getattr(aten, name).Scalar

    def spelt(w: Writer, _: Any, a: Any, b: Any) -> fx.Node:
        a, b = (_of_one_kind(w, _as_pair(x)) for x in (a, b))
        return w(join, *(w(scalar if is_number(y) else tensor, x, y)
                         for x, y in zip(a, b, strict=True)))  # fmt: skip

    return spelt


def _power(w: Writer, target: Any, a: Any, b: Any) -> Pair:
    if isinstance(b, (int, float, complex)):
        return pairs.power(w, _as_pair(a), b)
    if isinstance(a, (int, float, complex)):
        return pairs.power_of(w, a, _as_pair(b))
    raise w.refused("a power by exponents that are a tensor's, for which exp and log would do")


def _is_nan(w: Writer, target: Any, a: Pair) -> fx.Node:
    return w(aten.logical_or.default, *(w(target, part) for part in w.whole(a)))


def _norm(w: Writer, target: Any, a: Pair, *args: Any, **kwargs: Any) -> fx.Node:
    kwargs = {name: _real_dtype(value) for name, value in kwargs.items()}
    return w(target, pairs.magnitude(w, a), *args, **kwargs)


def _view_as_complex(w: Writer, target: Any, x: fx.Node) -> Pair:
    last = x.meta["val"].dim() - 1
    return Pair(*(w(aten.select.int, x, last, k) for k in (0, 1)))


def _view_as_real(w: Writer, target: Any, a: Pair) -> fx.Node:
    last = w.node.meta["val"].dim() - 1
    return w(aten.cat.default, [w(aten.unsqueeze.default, p, last) for p in w.whole(a)], last)


def _lerp(w: Writer, target: Any, a: Any, b: Any, weight: Any) -> Pair:
    a, b, weight = map(_as_pair, (a, b, weight))
    return pairs.add(w, a, pairs.mul(w, pairs.sub(w, b, a), weight))


def _square(w: Writer, a: Pair) -> Pair:
    return pairs.power(w, a, 2)


_EACH = (
    *("view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "transpose", "permute"),
    *("t", "select", "slice", "alias", "detach", "clone", "lift_fresh", "contiguous", "flip"),
    *("roll", "sum", "mean", "cumsum", "neg", "diagonal", "unfold", "repeat", "split", "unbind"),
    *("split_with_sizes", "index", "index_select", "gather", "tril", "triu", "resolve_conj"),
    *("resolve_neg", "_reshape_alias"),
)
_JOINT = {
    **dict.fromkeys(("cat", "stack"), (0,)),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter", "copy"), (0, 1)),
    **{"where": (1, 2), "index_put": (0, 2), "constant_pad_nd": (0, 2)},
}
RULES: dict[str, Rule] = {
    **dict.fromkeys(_EACH, _each),
    **{name: _joint(*places) for name, places in _JOINT.items()},
    "add": _sum(pairs.add),
    "sub": _sum(pairs.sub),
    "rsub": _subtracted_from,
    "mul": _arithmetic(pairs.mul),
    "div": _arithmetic(pairs.div),
    "reciprocal": _arithmetic(pairs.reciprocal),
    "square": _arithmetic(_square),
    "abs": _arithmetic(pairs.magnitude),
    "angle": _arithmetic(pairs.angle),
    "sgn": _arithmetic(pairs.sgn),
    "exp": _arithmetic(pairs.exp),
    "log": _arithmetic(pairs.log),
    "sin": _arithmetic(pairs.sin),
    "cos": _arithmetic(pairs.cos),
    "sinh": _arithmetic(pairs.sinh),
    "cosh": _arithmetic(pairs.cosh),
    "tan": _arithmetic(pairs.tan),
    "tanh": _arithmetic(pairs.tanh),
    "sigmoid": _arithmetic(pairs.sigmoid),
    "sqrt": _arithmetic(lambda w, a: pairs.power(w, a, 0.5)),
    "rsqrt": _arithmetic(lambda w, a: pairs.power(w, a, -0.5)),
    **dict.fromkeys(("_conj", "conj", "_conj_physical", "conj_physical"), _arithmetic(pairs.conj)),
    "_neg_view": _arithmetic(lambda w, a: pairs.scaled(w, a, -1)),
    "pow": _power,
    "lerp": _lerp,
    "mm": _product,
    "bmm": _product,
    "addmm": _added_product(aten.mm.default),
    "baddbmm": _added_product(aten.bmm.default),
    "_to_copy": _dtype_changed,
    "full": _filled(),
    "full_like": _filled(),
    "fill": _filled(),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "empty", "empty_like"), _filled(0)),
    **dict.fromkeys(("ones", "ones_like"), _filled(1)),
    "eq": _compared("eq", aten.logical_and.default),
    "ne": _compared("ne", aten.logical_or.default),
    "isnan": _is_nan,
    "linalg_vector_norm": _norm,
    "sym_size": lambda w, target, a, dim: w(target, w.whole(a)[0], dim),
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
}
