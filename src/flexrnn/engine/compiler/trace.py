"""Trace: from a step, as a person wrote it, to a graph.

The step is run once on tensors without storage whose batch has no number, and what it does is
written down. What cannot be written down is refused by operation, file and line.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.overrides import TorchFunctionMode

from flexrnn.engine.compiler.aten import Builder, Value, lower
from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.views import Ref, Unsupported, settle


class CannotCompileError(RuntimeError):
    """A step does something that no program can say; the message names operation, file and line."""


Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Mapping[str, Tensor]], tuple[Tensor, ...]]


def trace(
    step: Step,
    xs: tuple[Tensor, ...],
    state: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
) -> Graph:
    """Write down one call of `step(xs, state, params)`.

    Args:
        step: the composed step, pure.
        xs: the inputs' rows at one step, each `(B, ...)`.
        state: the fields of the state, each `(B, ...)`.
        params: parameters, and other tensors that are the same at every step.

    Returns:
        A graph with inputs `x0, x1, ..., state.FIELD, param.NAME` and outputs `state.FIELD`.

    Raises:
        CannotCompileError: the step is not made of operations of the table, or not row by row.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv())
    batch = _fake(mode, torch.empty(7, 1), batched=True).shape[0]  # a number without a value

    def with_batch(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty((batch, *tensor.shape[1:]), dtype=tensor.dtype)

    args = (
        tuple(map(with_batch, xs)),
        tuple(map(with_batch, state.values())),
        {name: _fake(mode, param, batched=False) for name, param in params.items()},
    )

    def pure(xs: Any, state: Any, params: Any) -> Any:  # a plain function, as functionalize wants
        return step(xs, state, params)

    try:
        with torch.no_grad(), traceback.preserve_node_meta(), _Spelling():
            traced = make_fx(functionalize(pure))(*args)
    except CannotCompileError:
        raise
    except Exception as error:  # whatever a step raises on tensors without values
        where = _users_line(_frames_of(error))
        raise CannotCompileError(f"{_reason(error)}, {where}") from error
    guards = mode.shape_env.guards if mode.shape_env is not None else []
    if guards:
        raise CannotCompileError(
            f"the step's course depends on the batch size ({guards[0].expr}), "
            f"{guards[0].sloc.maybe_user_loc}"
        )
    fields = [f"state.{field}" for field in state]
    names = [*(f"x{k}" for k in range(len(xs))), *fields, *(f"param.{name}" for name in params)]
    return _read(traced.graph, names, fields)


def _read(traced: fx.Graph, names: list[str], outputs: list[str]) -> Graph:
    """The graph of what torch wrote down."""
    builder = Builder()
    values: dict[fx.Node, Value] = {}
    unnamed = iter(names)
    for node in traced.nodes:
        if node.op == "placeholder":
            meta = node.meta["val"]
            shape = tuple(_size(s) for s in meta.shape)
            name = next(unnamed)
            index = builder.graph.input(name, shape, boolean=meta.dtype == torch.bool)
            values[node] = Ref(index)
        elif node.op == "output":
            results = [settle(builder.graph, values[arg]) for arg in node.args[0]]
            builder.graph.outputs = dict(zip(outputs, map(int, results), strict=True))
        else:
            before = len(builder.graph.nodes)
            values[node] = _lowered(builder, node, values)
            where = node.meta.get("stack_trace") or ""
            for added in range(before, len(builder.graph.nodes)):
                builder.graph.sources[added] = where
    return builder.graph


def _lowered(builder: Builder, node: fx.Node, values: dict[fx.Node, Value]) -> Value:
    def value(arg: Any) -> Value:
        return values[arg] if isinstance(arg, fx.Node) else arg

    args: Any = fx.map_arg(node.args, value)
    if node.target is operator.getitem:
        return args[0][args[1]] if args[1] < len(args[0]) else None
    where = node.meta.get("stack_trace") or ""
    if node.op == "get_attr":
        raise CannotCompileError(f"a tensor from outside the step is used, {where}")
    if not isinstance(node.target, OpOverload):
        return _size(node.meta["val"]) if "val" in node.meta else None  # arithmetic on sizes
    name = node.target.overloadpacket.__name__
    if name in ("sym_size", "size"):
        return _size(node.meta["val"])
    kwargs = {k: fx.map_arg(v, value) for k, v in node.kwargs.items()}
    result = node.meta.get("val")
    if name in ("view", "_unsafe_view", "reshape") and isinstance(result, Tensor):
        args = (args[0], [_size(s) for s in result.shape])  # -1 has become a number
    try:
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unsupported("it draws random numbers")
        if name == "copy_":
            raise Unsupported("it writes into the input, the state or a parameter")
        if isinstance(result, Tensor) and not _is_number_kind(result, node):
            raise Unsupported(f"its result is of {result.dtype}")
        return lower(builder, name, args, kwargs)
    except (Unsupported, ValueError) as reason:
        raise CannotCompileError(f"{node.target} cannot be compiled: {reason}, {where}") from None


def _is_number_kind(result: Tensor, node: fx.Node) -> bool:
    """Whether a result is a truth value, or of the dtype of the operands: no conversion."""
    floats = {
        arg.meta["val"].dtype
        for arg in node.all_input_nodes
        if isinstance(arg.meta.get("val"), Tensor) and arg.meta["val"].is_floating_point()
    }
    return result.dtype == torch.bool or not floats or floats == {result.dtype}


def _size(size: Any) -> Any:
    """A size as shapes of the graph have it: a number, or the batch."""
    if isinstance(size, torch.SymInt):
        return BATCH if size.node.expr.is_symbol else -1
    return size


def _fake(mode: FakeTensorMode, tensor: Tensor, *, batched: bool) -> Tensor:
    sizes = [DimDynamic.STATIC] * tensor.dim()
    if batched:
        sizes[0] = DimDynamic.DYNAMIC
    context = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * len(sizes))
    return mode.from_tensor(tensor.detach(), symbolic_context=context)


class _Spelling(TorchFunctionMode):
    """Note the line of the person's code, and respell what torch would obscure on the way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        traceback.set_stack_trace([_users_line(_frames())])
        if func in (torch.where, Tensor.where) and len(args) == 3:
            like = next((a for a in args[1:] if isinstance(a, Tensor)), None)
            if like is not None:  # a number would come as a tensor from nowhere
                rest = (a if isinstance(a, Tensor) else torch.full_like(like, a) for a in args[1:])
                args = (args[0], *rest)
        if func in (torch.matmul, Tensor.matmul, Tensor.__matmul__) and not kwargs:
            a, w = args
            if a.dim() == 4 and a.shape[-2] == 1 and w.dim() == 3:  # would be copied for every row
                heads = torch.bmm(a.squeeze(-2).transpose(0, 1), w)
                return heads.transpose(0, 1).unsqueeze(-2)
        return func(*args, **(kwargs or {}))


_PACKAGE = Path(__file__).parents[2]
_NOT_THE_USERS = (
    str(Path(torch.__file__).parent),
    str(_PACKAGE / "engine"),
    *(str(_PACKAGE / f"{name}.py") for name in ("compose", "cell", "bind", "layer")),
    "<",  # code that was made at run time
)


def _users_line(frames: Iterable[tuple[str, int | None]]) -> str:
    """`at FILE:LINE` of the innermost frame that is neither torch's nor FlexRNN's own."""
    for file, line in frames:
        if not file.startswith(_NOT_THE_USERS):
            return f"at {file}:{line}"
    return "at a place that is not known"


def _frames() -> Iterator[tuple[str, int]]:
    """File and line of every caller, the innermost first."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _frames_of(error: Exception) -> Iterator[tuple[str, int | None]]:
    """File and line where an exception passed, the innermost first."""
    frames = [(t.tb_frame.f_code.co_filename, t.tb_lineno) for t in _chain(error.__traceback__)]
    yield from reversed(frames)


def _chain(last: TracebackType | None) -> Iterator[TracebackType]:
    while last is not None:
        yield last
        last = last.tb_next


def _reason(error: Exception) -> str:
    if "convert all Tensors to FakeTensors" in str(error):
        return "a tensor is used that is neither input, state nor an attribute of the cell"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the step cannot be traced: {first}"
