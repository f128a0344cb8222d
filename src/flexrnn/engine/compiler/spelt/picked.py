# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# What an operation of torch's is, and what functionalisation holds, have no public names.
"""What a mask picks of rows and units, `x[mask]`, until it is put where the same mask picks.

How many there are is not known before the step runs. But what is computed with all of them one by
one, and put back by the same mask, is a choice: `y[m] = 2 * x[m]` is `torch.where(m, 2 * x, y)`.
Where the mask is of whole rows, so is what a layer makes of each: `y[m] = expert(x[m])`. Whatever
else is asked of what has been picked is refused.

Where nothing is picked every operand is 1, and so is every result: what is computed there is read
by nobody, but its derivative, times 0, must not be nan.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental import proxy_tensor
from torch.nn import functional as F  # noqa: N812

from flexrnn.engine.compiler.refusal import refused
from flexrnn.engine.compiler.spelt.rows import as_torch, has_rows, is_of_rows, where

_WHY = (
    "how many it picks is not known before the step runs; torch.where, or a product with the mask, "
    "would do"
)


def refuse(what: str = "") -> NoReturn:
    """Refuse a mask that picks, or what is asked of what it has picked."""
    raise refused("indexing by a mask", f"{what}{'; ' if what else ''}{_WHY}")


def covers(mask: Any, x: Tensor) -> bool:
    """Whether these are truth values of the first axes of a tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return False
    if not 0 < mask.dim() <= x.dim():
        return False
    # Sizes of two kinds are not compared: that would be a question.
    pairs = [*zip(mask.shape, x.shape, strict=False)]
    return all(type(a) is type(b) and a == b for a, b in pairs)


def wide(mask: Tensor, x: Tensor) -> Tensor:
    """A mask with as many axes as a tensor has."""
    return mask.view(*mask.shape, *(1 for _ in range(x.dim() - mask.dim())))


class Picked:
    """What a mask has picked of a tensor.

    It is no tensor, so that torch cannot take it for one, and says that it is, so that a step that
    asks goes on as it would with one.
    """

    def __init__(self, values: Tensor, mask: Tensor, node: fx.Node | None) -> None:
        self.values, self.mask, self.node = values, mask, node
        self.learns = torch.is_grad_enabled()
        self.shared = False  # another has its memory

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Tensor

    @classmethod
    def __torch_function__(cls, *args: Any) -> NoReturn:
        refuse()

    def __getattr__(self, name: str) -> Any:
        function = getattr(Tensor, name, None)
        if function not in _FUNCTIONS and function not in _BY_ROWS:
            refuse(f"{name} is asked of what it picks")
        return lambda *args, **kwargs: call(function, (self, *args), kwargs)


def _operator(name: str) -> Any:
    return lambda *args: call(getattr(Tensor, name), args, {})


def _in_place(name: str) -> Any:
    """What has been picked is a copy, and this writes to it alone."""

    def write(self: Picked, other: Any) -> Picked:
        if torch.is_grad_enabled() != self.learns:
            refuse("what it picks is written to where gradients are switched")
        if self.shared:
            refuse("what it picks is written to, and another has its memory")
        self.values = call(getattr(Tensor, name), (self, other), {}).values
        return self

    return write


def _unknown(name: str) -> Any:
    return lambda *args: refuse(f"{name} is asked of what it picks")


_OPERATORS = ("add", "sub", "mul", "truediv", "pow")
setattr(Picked, "__matmul__", _operator("__matmul__"))  # noqa: B010
for _name in _OPERATORS:
    setattr(Picked, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Picked, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(Picked, f"__i{_name}__", _in_place(f"__{_name}__"))
for _name in ("__neg__", "__abs__"):
    setattr(Picked, _name, _operator(_name))
for _name in (
    *("bool", "len", "iter", "getitem", "setitem", "contains", "float", "int", "index", "format"),
    *("eq", "ne", "lt", "le", "gt", "ge", "rmatmul", "hash", "reduce_ex", "array"),
    *("mod", "floordiv", "rmod", "rfloordiv", "and", "or", "xor", "invert", "imatmul"),
):
    setattr(Picked, f"__{_name}__", _unknown(f"__{_name}__"))


def pick(x: Tensor, mask: Any) -> Picked | None:
    """`x[mask]`, where the mask is of rows, or of units of rows; or `x[mask, k, ...]`, of rows."""
    if isinstance(mask, tuple):
        rows, *rest = mask
        plain = all(r is None or isinstance(r, (int, slice)) for r in rest)
        if not isinstance(rows, Tensor) or rows.dim() != 1 or not plain:
            return None
        x, mask = x[(slice(None), *rest)], rows
    if not isinstance(mask, Tensor) or not x.is_floating_point() or not is_of_rows(x):
        return None
    if not covers(mask, x):
        return None
    values = where(wide(mask, x), x, 1.0)
    return Picked(values, mask, _node(mask))


def _masked_select(input: Tensor, mask: Tensor) -> Any:
    if not has_rows(mask):
        return torch.masked_select(input, mask)
    found = pick(input, mask) if mask.dim() == input.dim() else None
    return refuse() if found is None else found


def call(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Picked:
    """What a function makes of what has been picked, one by one."""
    name = getattr(function, "__name__", "")
    if function in _BY_ROWS:
        return _by_rows(function, name, args, kwargs)
    plain = all(type(v) in (int, float, str) or v is False for v in kwargs.values())  # `inplace`
    if function not in _FUNCTIONS or not plain:
        refuse(f"{name} is asked of what it picks")
    first: Picked = next(arg for arg in args if type(arg) is Picked)
    given = [_beside(first, arg) for arg in args]
    values = function(*given, **kwargs)
    if values.dtype != first.values.dtype or values.dim() != first.values.dim():
        refuse(f"{name} makes another kind of what it picks")
    values = where(wide(first.mask, values), values, 1.0)
    made = Picked(values, first.mask, first.node)
    if name == "detach":
        first.shared = made.shared = True
    return made


def _by_rows(function: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Picked:
    """What a function makes of picked rows, each by itself; of ones it has a finite derivative."""
    first, *others = args
    rest = [*others, *kwargs.values()]
    own = type(first) is Picked and first.mask.dim() == 1
    own = own and (first.values.dim() > 1 or name == "unsqueeze")
    if not own or any(type(x) is Picked or (isinstance(x, Tensor) and has_rows(x)) for x in rest):
        refuse(f"{name} is asked of what it picks")
    values = function(first.values, *others, **kwargs)
    if values.dtype != first.values.dtype or not is_of_rows(values):
        refuse(f"{name} makes another kind of what it picks")
    return Picked(where(wide(first.mask, values), values, 1.0), first.mask, first.node)


def _beside(first: Picked, arg: Any) -> Any:
    """An operand beside what has been picked: picked like it, or the same for all."""
    values = first.values
    if type(arg) is Picked:
        if not _alike(arg.node, first.node) or arg.values.dim() != values.dim():
            refuse("what is beside it is picked by another mask")
        return arg.values
    if isinstance(arg, Tensor):
        alike = not has_rows(arg) and arg.dtype == values.dtype
        if not alike or arg.dim() > values.dim() - first.mask.dim():
            refuse("what is beside it is not picked by it")
        return where(wide(first.mask, values), arg, 1.0)
    if not _is_number(arg):
        refuse("what is beside it is not picked by it")
    return arg


def _is_number(value: Any) -> bool:
    return type(value) in (int, float, bool)


def _node(mask: Tensor) -> fx.Node | None:
    """What a mask is now, as it is written down: another, once somebody has written to it."""
    mode = proxy_tensor.get_proxy_mode()
    if mode is None or not torch._is_functional_tensor(mask):
        return None
    torch._sync(mask)
    found: Any = proxy_tensor.get_proxy_slot(torch._from_functional_tensor(mask), mode.tracer, None)
    return None if found is None else found.proxy.node


def _alike(a: Any, b: Any, deep: int = 6) -> bool:
    """Whether two values are one, or are computed of the same ones in the same way."""
    if isinstance(a, (list, tuple)):
        pairs = zip(a, b, strict=True) if type(a) is type(b) and len(a) == len(b) else None
        return pairs is not None and all(_alike(x, y, deep) for x, y in pairs)
    if not isinstance(a, fx.Node):
        return type(a) in _PLAIN and type(a) is type(b) and a == b
    if a is b:
        return True
    target = a.target
    if deep == 0 or not isinstance(b, fx.Node) or b.target is not target:
        return False
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return False  # others may be something else every time
    if a.kwargs or b.kwargs or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return _alike(a.args, b.args, deep - 1)


def put(x: Tensor, mask: Any, picked: Picked) -> None:
    """`x[mask] = picked`, by the mask that has picked it."""
    if not covers(mask, x) or not _alike(_node(mask), picked.node):
        refuse("what it picks is put where another mask picks")
    if x.dtype != picked.values.dtype or x.dim() != picked.values.dim():
        refuse("what it picks is of another kind than where it is put")
    x.copy_(torch.where(wide(mask, x), picked.values, x))


_PLAIN = (int, float, bool, str)
# At 1, and beside 1, each of these has a finite derivative.
_ONE_BY_ONE = (
    *("abs", "neg", "negative", "exp", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "sin"),
    *("cos", "tanh", "sigmoid", "relu", "reciprocal", "clamp", "clamp_min", "clamp_max"),
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow"),
    *("detach", "clone"),
)
_FUNCTIONS = {
    *(getattr(of, name) for of in (torch, Tensor) for name in _ONE_BY_ONE if hasattr(of, name)),
    *(getattr(Tensor, f"__{side}{name}__") for name in _OPERATORS for side in ("", "r")),
    *(Tensor.__neg__, Tensor.__abs__, Tensor.__rdiv__, F.relu, F.sigmoid, F.tanh),
    *(F.silu, F.gelu, F.elu, F.leaky_relu, F.softplus),
}
_BY_ROWS = {
    *(F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, F.layer_norm, F.rms_norm),
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, F.normalize, F.dropout),
    *(torch.unsqueeze, Tensor.unsqueeze),
}
SPELT: dict[Any, Any] = {
    original: as_torch(original, _masked_select)
    for original in (torch.masked_select, Tensor.masked_select)
}
