# pyright: reportPrivateUsage=false
# Whether an operation of torch's writes stands in its schema, which has no public name.
"""Trace: from a step, as a person wrote it, to a graph.

The step is run once on tensors without storage whose batch has no number, and what it does is
written down. What cannot be written down is refused by operation, file and line.
"""

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from flexrnn.engine.compiler import dtypes, ranges
from flexrnn.engine.compiler.aten import (
    CUSTOM,
    DECOMPOSED,
    VIEWS,
    Builder,
    Joined,
    Ref,
    Rows,
    Unsupported,
    Value,
    lower,
    promotes,
    settle,
)
from flexrnn.engine.compiler.called import place_of_node
from flexrnn.engine.compiler.complexes.rewrite import in_real_numbers
from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.parameters import Made, Parameters
from flexrnn.engine.compiler.ranges import is_whole
from flexrnn.engine.compiler.refusal import NOWHERE, TAKEN, CannotCompileError, told
from flexrnn.engine.compiler.spelling import DrawnError, Spelling
from flexrnn.engine.compiler.spelt.attached import attached, check_unset, stand_in
from flexrnn.engine.compiler.spelt.unseen import seen
from flexrnn.engine.compiler.surroundings import alone, as_written, unheard, unlogged

if TYPE_CHECKING:
    from flexrnn.engine.compiler.batch import BatchSize

_UNKNOWN = object()  # a number that depends on the batch size

Step = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Mapping[str, Tensor]], tuple[Tensor, ...]]


def make_ready() -> None:
    """Import what a trace needs of torch's algebra of sizes, and Dynamo, which that needs.

    They take as long to import as torch itself. Who imports FlexRNN and has no layer, as a process
    that loads data, need not wait for it, and neither is a layer's first call to.
    """
    from flexrnn.engine.compiler.batch import BatchSize

    if not torch._C._get_tracing_state():  # of torch.jit, for which sizes are tensors
        with alone():
            BatchSize.make_ready()


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
    from flexrnn.engine.compiler.batch import BatchSize, is_numbered_with_sizes

    with alone():
        sizes = BatchSize.free()
        try:
            graph = _traced(step, xs, state, params, sizes, watchful=False)
            names = () if graph.ahead is None or sizes.is_new else graph.ahead.names
            if any(is_numbered_with_sizes(name.removeprefix("param..")) for name in names):
                # So that the program is the same, whatever was traced before.
                graph = _traced(step, xs, state, params, BatchSize(), watchful=False)
            return graph
        except DrawnError:  # where? To ask at every operation takes a tenth of a trace's time.
            _traced(step, xs, state, params, BatchSize(), watchful=True)
            raise
        finally:
            sizes.give_back()


def _traced(
    step: Step,
    xs: tuple[Tensor, ...],
    state: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    sizes: "BatchSize",
    *,
    watchful: bool,
) -> Graph:
    dtype = next(iter(state.values())).dtype
    if not dtype.is_floating_point:
        raise CannotCompileError(f"expected a state of real numbers, got {dtype}")
    mode = FakeTensorMode(shape_env=sizes)

    def with_batch(tensor: Tensor) -> Tensor:
        with mode:
            size = (sizes.size, *tensor.shape[1:])
            return torch.empty(size, dtype=tensor.dtype, device=tensor.device)

    def alike(tensor: Tensor) -> Tensor:  # the tensor itself may be one without storage
        if tensor.layout != torch.strided:
            raise CannotCompileError(f"expected dense parameters, got one of {tensor.layout}")
        kind = {"dtype": tensor.dtype, "device": tensor.device}
        with mode:
            return torch.empty_strided(tuple(tensor.shape), tensor.stride(), **kind)

    args = (
        tuple(map(with_batch, xs)),
        tuple(map(with_batch, state.values())),
        {name: alike(param) for name, param in params.items()},
    )

    spelling = Spelling(sizes, watchful=watchful)

    def pure(xs: Any, state: Any, params: Any) -> Any:  # a plain function, as functionalize wants
        spelling.given = (*xs, *state, *params.values())
        stand_in(spelling.given)
        new = step(xs, state, params)
        check_unset(params.values(), spelling.last)
        return new

    try:
        with (
            mode,
            traceback.preserve_node_meta(),
            spelling,
            seen(),
            attached(),
            unlogged(),
            as_written(),
        ):
            try:
                traced = make_fx(functionalize(pure), _decompositions())(*args)
            finally:  # whatever the step raised may come of what it has drawn
                spelling.check_chance("at the end of the step")
    except (CannotCompileError, Warning):  # a warning may be an error today, and not tomorrow
        raise
    except Exception as error:  # whatever a step raises on tensors without values
        why = told(error, spelling.failed, spelling.last)
        raise CannotCompileError(_course(spelling) or why) from error
    fields = [f"state.{field}" for field in state]
    names = [*(f"x{k}" for k in range(len(xs))), *fields, *(f"param.{name}" for name in params)]
    with mode:
        in_real_numbers(traced.graph, names)
    if sizes.question:
        raise CannotCompileError(_course(spelling))
    graph, places = _read(traced, names, fields, next(iter(state.values())), spelling)
    if graph.ahead is not None and torch.is_grad_enabled():
        given = [params[name.removeprefix("param.")] for name in graph.ahead.given]
        given = [alike(param).requires_grad_(param.requires_grad) for param in given]
        with mode, unheard():
            failed = graph.ahead.without_derivative(given)
        if failed is not None:
            name = graph.ahead.calls[failed].name
            raise CannotCompileError(
                f"aten.{name} cannot be compiled: it has no derivative, {places[failed]}"
            )
    return graph


def _course(spelling: Spelling) -> str:
    """Who has asked for the batch size: the step itself, or an operation of torch's."""
    if spelling.sizes.question is None:
        return ""
    why = "the step's course depends on the batch size"
    if not spelling.asked and "IntTrueDiv(B, 1)" in spelling.sizes.question:
        why = "NumPy's arange, for which torch.arange would do, asks for the batch size"
    if spelling.asked:
        why = f"{spelling.asked} cannot be compiled: it asks for the batch size"
    return f"{why} {spelling.sizes.question}"


def _read(
    traced: fx.GraphModule, names: list[str], outputs: list[str], like: Tensor, spelling: Spelling
) -> tuple[Graph, list[str]]:
    """The graph of what torch wrote down, all of the dtype of a state.

    Also, of every operation that torch is to do ahead, the person's line.
    """
    builder = Builder()
    values: dict[fx.Node, Value] = {}
    parameters = Parameters(like.dtype, like.device)
    unnamed, needed = iter(names), _needed(traced.graph)
    called = spelling.called.nodes(traced.graph)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            meta = node.meta["val"]
            shape = tuple(_size(s) for s in meta.shape)
            name = next(unnamed)
            index = builder.graph.input(name, shape, boolean=meta.dtype == torch.bool)
            if name.startswith("state."):
                builder.graph.called[index] = name.removeprefix("state.")
            values[node] = parameters.given(node, name) or Ref(index)
            if not name.startswith("param."):
                dtypes.given(node, like.dtype)
        elif node.op == "output":
            for name, arg in zip(outputs, node.args[0], strict=True):
                why = ranges.why_not_next(arg, name.removeprefix("state."), like.dtype)
                if why is not None:
                    raise CannotCompileError(f"{why}, {place_of_node(arg) or NOWHERE}")
            results = [settle(builder.graph, values[arg]) for arg in node.args[0]]
            builder.graph.outputs = dict(zip(outputs, map(int, results), strict=True))
            for field, index in builder.graph.outputs.items():
                builder.graph.called.setdefault(index, field.removeprefix("state."))
        elif node.op == "get_attr":  # made in the step of numbers of Python's
            values[node] = parameters.constant(node, getattr(traced, node.target))
        else:
            parameters.note(node)
            if node not in needed:
                continue
            before = len(builder.graph.nodes)
            values[node] = _lowered_or_made(builder, node, values, parameters)
            where = place_of_node(node) or NOWHERE
            if where not in (spelling.outside, NOWHERE):  # it is the step's
                for added in range(before, len(builder.graph.nodes)):
                    builder.graph.sources[added] = where
            made = values[node]
            if node in called and isinstance(made, Ref):
                builder.graph.called.setdefault(int(made), called[node])
    builder.graph.ahead = parameters.ahead()
    return builder.graph, parameters.places


def _needed(traced: fx.Graph) -> set[fx.Node]:
    """What the result depends on, and what acts on the world: the rest need not be known."""
    needed: set[fx.Node] = set()
    for node in reversed(traced.nodes):
        if node.op == "output" or node in needed or _acts(node):
            needed.update((node, *node.all_input_nodes))
    return needed


def _acts(node: fx.Node) -> bool:
    overload = node.target
    return isinstance(overload, OpOverload) and (
        overload._schema.is_mutable or torch.Tag.nondeterministic_seeded in overload.tags
    )


def _lowered_or_made(
    builder: Builder, node: fx.Node, values: dict[fx.Node, Value], parameters: Parameters
) -> Value:
    """What a node becomes; what no program says of parameters alone, torch computes ahead."""
    fixed = [arg for arg in node.all_input_nodes if parameters.has(arg)]
    if parameters.has(node) and any(isinstance(values[arg], Made) for arg in fixed):
        return parameters.made(node)
    try:
        return _lowered(builder, node, values, parameters)
    except CannotCompileError:
        if parameters.has(node):
            return parameters.made(node)
        made = {arg: parameters.made(arg) for arg in fixed if arg.op == "call_function"}
        if made:  # it helps where axes of a parameter lie as no product wants them
            with suppress(CannotCompileError):
                return _lowered(builder, node, values | made, parameters)
        raise


def _lowered(
    builder: Builder, node: fx.Node, values: dict[fx.Node, Value], parameters: Parameters
) -> Value:
    def value(arg: Any) -> Value:
        found = values[arg]
        if found is _UNKNOWN or isinstance(found, Rows):
            raise Unsupported("it depends on the batch size")
        if isinstance(found, Made):
            mixes = promotes(name) or dtypes.moves(name)
            counts = is_whole(result) or not any(map(_is_real, node.all_input_nodes))
            return parameters.input(builder, found, promotes=mixes, counts=counts)
        return found

    where = place_of_node(node)
    if node.target is operator.getitem:
        several: Any = node.args[0]
        index: Any = node.args[1]
        found = values[several]
        if index >= len(found):  # of a maximum the value alone, of a norm what is normalised
            raise CannotCompileError(
                f"{several.target} cannot be compiled: a program has no result {index} of it, "
                f"{where}"
            )
        node.meta |= {key: several.meta[key] for key in dtypes.NOTED if key in several.meta}
        return found[index]
    if node.target is torch.ops.aten._local_scalar_dense.default:
        raise CannotCompileError(f"item cannot be compiled: {TAKEN}, {where}")
    result = node.meta.get("val")
    if not isinstance(node.target, OpOverload) or not isinstance(result, (Tensor, list, tuple)):
        return _size(result)  # arithmetic on sizes
    name = node.target.overloadpacket.__name__
    if node.target.namespace != "aten" and name not in CUSTOM:
        raise CannotCompileError(
            f"{node.target} cannot be compiled: it is not torch's own, {where}"
        )
    try:
        _check(node, values, parameters.dtype)
        viewed = result if name in VIEWS else None
        args: Any = fx.map_arg(node.args[:1] if viewed is not None else node.args, value)
        kwargs: Any = fx.map_arg(node.kwargs, value)
        if isinstance(viewed, Tensor):
            args = (*args, [_size(s) for s in viewed.shape])  # -1 has become a number
        if dtypes.ROUNDED in node.meta:
            args = tuple(map(dtypes.rounded, args))
        made = lower(builder, name, args, kwargs)
        if (
            dtypes.ROUNDED in node.meta
            and isinstance(result, Tensor)
            and result.dtype != torch.bool
        ):
            made = lower(builder, "single", (made,), {})
        if isinstance(result, Tensor) and isinstance(made, (Ref, Joined)):
            kind = builder.truth if result.dtype == torch.bool else builder.real
            return kind(made) if isinstance(made, Ref) else made._replace(base=kind(made.base))
        return made
    except (Unsupported, ValueError) as reason:
        what = node.args[1] if name == "custom_vjp" else node.target
        raise CannotCompileError(f"{what} cannot be compiled: {reason}, {where}") from None


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _check(node: fx.Node, values: dict[fx.Node, Value], dtype: torch.dtype) -> None:
    """Refuse what acts on the world, and every dtype but the program's and truth values."""
    assert isinstance(node.target, OpOverload)
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        raise Unsupported("it draws random numbers")
    if node.target.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put):
        places: Any = node.args[1]
        masks = (arg for arg in places if isinstance(arg, fx.Node))
        if any(arg.meta["val"].dtype == torch.bool for arg in masks):
            raise Unsupported("it picks by a mask; torch.where would do")
        raise Unsupported(
            "it picks by number, other than units of real numbers along one axis behind the batch"
        )
    numbers = node.target.overloadpacket is torch.ops.aten.arange
    if numbers and _size(node.meta["val"].shape[0]) == BATCH:
        raise Unsupported("it numbers the rows, and not in x[torch.arange(B), numbers]")
    if node.target._schema.is_mutable:
        raise Unsupported("it writes into the input, the state, a parameter or a buffer")
    dtypes.check(node, [a for a in node.all_input_nodes if not isinstance(values[a], Made)], dtype)


def _size(size: Any) -> Any:
    """A size as shapes of the graph have it: a number, or the batch; several for each row."""
    if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expr = size.node.expr
        if expr.is_symbol:
            return BATCH
        times, rest = expr.as_coeff_Mul()
        return Rows(int(times)) if rest.is_symbol and times.is_Integer else _UNKNOWN
    return size


@cache
def _decompositions() -> Any:
    from torch._decomp import get_decompositions

    return get_decompositions([getattr(torch.ops.aten, name) for name in DECOMPOSED])
