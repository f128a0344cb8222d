"""The CPU engine: programs run by generated C++, and by torch's products before and after it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu import openmp
from flexrnn.engine.cpu.extract import Extract, extract
from flexrnn.engine.cpu.kernel import Kernel, Rows
from flexrnn.engine.cpu.stages import lower
from flexrnn.engine.cpu.toolchain import library
from flexrnn.engine.interpreter import Run
from flexrnn.engine.step import CannotRunError

_CACHED_WEIGHTS = 4 << 20  # bytes of weights above which threads share units instead of rows


class Plan(NamedTuple):
    """A program, compiled for one kind of call."""

    parts: Extract
    forward: Kernel
    backward: Kernel | None


_plans: WeakKeyDictionary[Graph, dict[Any, Plan]] = WeakKeyDictionary()


def plan_of(program: Program, keep: Sequence[str], *, single: bool, dtype: torch.dtype) -> Plan:
    """Compile a program, or find it compiled."""
    plans = _plans.setdefault(program.graph, {})
    key = (tuple(keep), single, dtype)
    if key not in plans:
        parts = extract(program, hoist=single, keep=keep)
        forward = Kernel(parts.forward.graph, backward=False, single=single, dtype=dtype)
        backward = None
        if parts.backward is not None:
            backward = Kernel(parts.backward.graph, backward=True, single=single, dtype=dtype)
        plans[key] = Plan(parts, forward, backward)
    return plans[key]


def _check(like: Tensor) -> None:
    if like.device.type != "cpu":
        raise CannotRunError(f"the cpu engine runs on the CPU, got tensors on {like.device}")
    if like.dtype not in (torch.float32, torch.float64):
        raise CannotRunError(f"the cpu engine computes in float32 and float64, got {like.dtype}")


def prepare(program: Program, like: Tensor) -> None:
    """Refuse a program, a dtype, a device or a machine that this engine cannot serve.

    Raises:
        CannotRunError: as it says.
    """
    _check(like)
    if program.graph not in _plans:
        parts = extract(program, hoist=False, keep=())
        for part in (parts.forward, parts.backward):
            if part is not None:
                lower(part.graph)
    library('extern "C" void nothing() {}')  # there is a compiler, and a place for what it makes


def saved_like(
    program: Program, steps: int, like: Tensor, keep: Sequence[str]
) -> tuple[Tensor | str, ...]:
    """What `forward` saves; as `interpreter.saved_like`, but truth values are numbers here."""
    found = interpreter.saved_like(program, steps, like, keep)
    return tuple(s if isinstance(s, str) else s.to(like.dtype) for s in found)


def _field_of(program: Program, index: int, keep: Sequence[str]) -> str:
    """The field whose new value a node is, the first of those whose history is kept."""
    fields = (*keep, *program.fields)
    return next(f for f in fields if program.graph.outputs[f"state.{f}"] == index)


def forward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
    *,
    reverse: bool = False,
) -> Run:
    """Run a program over time; as `interpreter.forward`."""
    graph, plan = program
    like = state[0]
    _check(like)
    steps, batch = xs[0].shape[:2]
    compiled = plan_of(program, keep, single=batch == 1, dtype=like.dtype)
    parts = compiled.parts
    values = _given(program, xs, tensors)
    interpreter.compute_nodes(program, parts.forward.before, values, (steps, batch), like)

    rows: dict[str, Rows] = {}
    history, ends = {}, []
    for field, first in zip(program.fields, state, strict=True):
        if field in parts.constant:
            rows[f"const.{field}"] = Rows(first.contiguous(), row=_width(first))
            if field in keep:
                history[field] = first.expand(steps, *first.shape).contiguous()
            ends.append(first)
            continue
        whole = field in keep or field in parts.recorded
        made = like.new_empty(steps if whole else 2, *first.shape)
        if whole:
            history[field] = made
        wide = _width(first)
        last = (0 if reverse else steps - 1) if whole else (steps - 1) & 1
        first = first.contiguous()
        rows[f"before.{field}"] = Rows(made, batch * wide, wide, not whole, first)
        rows[f"after.{field}"] = Rows(made, batch * wide, wide, not whole)
        ends.append(made[last])
    saved: list[Tensor] = []
    for index in plan.saved:
        if f"saved.{index}" in parts.forward.graph.outputs:
            shape = graph.nodes[index].shape[1:]
            made = like.new_empty(steps, batch, *map(int, shape))
            rows[f"saved.{index}"] = _rows(made)
            saved.append(made)
        elif index in values:  # a product that torch has done for all steps
            saved.append(values[index])
        else:
            saved.append(history[_field_of(program, index, keep)])
    _inputs(rows, compiled.forward, program, xs, values, like)
    _call(compiled.forward, program, rows, values, steps, batch, reverse)
    kept = {field: history[field] for field in keep}
    return Run(kept, tuple(end.clone() for end in ends), tuple(saved))


def backward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    saved: Sequence[Tensor],
    history: Mapping[str, Tensor],
    final: Sequence[Tensor],
    *,
    reverse: bool = False,
) -> dict[str, Tensor]:
    """Run a program's backward pass; as `interpreter.backward`."""
    graph, plan = program
    like = state[0]
    _check(like)
    steps, batch = xs[0].shape[:2]
    compiled = plan_of(program, tuple(history), single=batch == 1, dtype=like.dtype)
    parts, kernel = compiled.parts.backward, compiled.backward
    assert parts is not None
    assert kernel is not None
    values = _given(program, xs, tensors) | {
        index: _truth(graph, index, made) for index, made in zip(plan.saved, saved, strict=True)
    }
    interpreter.compute_nodes(program, parts.before, values, (batch,), like)

    threads = openmp.threads()
    rows: dict[str, Rows] = {}
    for index, made in zip(plan.saved, saved, strict=True):
        rows[f"saved.{index}"] = _rows(made)
    carried = {}
    for field, initial, cotangent in zip(program.fields, state, final, strict=True):
        wide = _width(initial)
        new = graph.outputs[f"state.{field}"]
        if field in compiled.parts.constant:
            rows[f"const.{field}"] = Rows(initial.contiguous(), row=wide)
        elif new in values:
            made = values[new]
            rows[f"after.{field}"] = _rows(made)
            rows[f"before.{field}"] = Rows(made, batch * wide, wide, False, initial.contiguous())
        ring = like.new_empty(2, *initial.shape)
        carried[field] = ring
        rows[f"carry.{field}"] = Rows(ring, batch * wide, wide, True, cotangent.contiguous())
        rows[f"passed.{field}"] = Rows(ring, batch * wide, wide, True)
        if field in history:
            rows[f"grad.{field}"] = _rows(_dense(history[field]))
    for name in parts.graph.outputs:
        kind, _, rest = name.partition(".")
        if kind == "kept":
            index = int(rest)
            shape = tuple(map(int, graph.nodes[index].shape[1:]))
            values[index] = like.new_empty(steps, batch, *shape)
            rows[name] = _rows(values[index])
        elif kind == "sum":
            count = kernel.loop.sums[name]
            rows[name] = Rows(like.new_zeros(threads, count), row=count)
    _inputs(rows, kernel, program, xs, values, like)
    _call(kernel, program, rows, values, steps, batch, reverse)
    gradients = {f"state.{field}": ring[(steps - 1) & 1] for field, ring in carried.items()}
    for name in parts.graph.outputs:
        kind, _, rest = name.partition(".")
        if kind == "kept":
            values[int(rest)] = _truth(graph, int(rest), values[int(rest)])
        elif kind == "sum":
            index = int(rest)
            node = graph.nodes[index]
            inner = tuple(map(int, graph.nodes[node.args[0]].shape[1:]))
            total = rows[name].data.sum(0).reshape(1, *inner)
            values[index] = total.sum_to_size(tuple(map(int, node.shape)))
    _after(program, parts.after, values, state, like, reverse)
    for name, index in graph.outputs.items():
        kind, _, target = name.partition(".")
        if kind == "grad" and target not in gradients:
            gradients[target] = values[index]
    return gradients


def _after(
    program: Program,
    indices: Sequence[int],
    values: dict[int, Tensor],
    state: Sequence[Tensor],
    like: Tensor,
    reverse: bool,
) -> None:
    """Gradients of weights and of the input: products over all steps and rows."""
    graph = program.graph
    steps, batch = values[graph.inputs["x0"]].shape[:2]
    olds = {graph.inputs[f"state.{f}"]: k for k, f in enumerate(program.fields)}
    for index in indices:
        if index in values:
            continue
        node = graph.nodes[index]
        for arg in node.args:
            if arg in olds and arg not in values:
                field = program.fields[olds[arg]]
                new, initial = graph.outputs[f"state.{field}"], state[olds[arg]][None]
                if new == arg:
                    values[arg] = initial.expand(steps, *initial.shape[1:])
                elif reverse:
                    values[arg] = torch.cat([values[new][1:], initial])
                else:
                    values[arg] = torch.cat([initial, values[new][:-1]])
        interpreter.compute_nodes(
            program, _missing(program, index, values), values, (steps, batch), like
        )


def _missing(program: Program, index: int, values: dict[int, Tensor]) -> list[int]:
    found, pending = [], [index]
    while pending:
        node = pending.pop()
        if node not in values and node not in found:
            found.append(node)
            pending.extend(program.graph.nodes[node].args)
    return sorted(found)


def _truth(graph: Graph, index: int, numbers: Tensor) -> Tensor:
    """Truth values as torch has them; in a loop's memory they are 1 and 0."""
    return numbers != 0 if graph.nodes[index].boolean else numbers


def _given(
    program: Program, xs: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    inputs = program.graph.inputs
    values = {inputs[f"param.{name}"]: tensor for name, tensor in tensors.items()}
    values |= {inputs[f"x{k}"]: x for k, x in enumerate(xs)}
    return values


def _inputs(
    rows: dict[str, Rows],
    kernel: Kernel,
    program: Program,
    xs: Sequence[Tensor],
    values: dict[int, Tensor],
    like: Tensor,
) -> None:
    """What the loop reads and no one has given it yet."""
    for name in kernel.source.buffers:
        if name in rows or name.startswith(("temporary", "partial")):
            continue
        kind, _, rest = name.partition(".")
        if kind == "param":
            rows[name] = Rows(values[program.graph.inputs[name]].to(like.dtype).contiguous())
        elif kind == "once":
            rows[name] = Rows(values[int(rest)].contiguous())
        elif kind == "hoisted":
            rows[name] = _rows(values[int(rest)])
        else:
            rows[name] = _rows(_dense(xs[int(kind[1:])].to(like.dtype)))


def _call(
    kernel: Kernel,
    program: Program,
    rows: dict[str, Rows],
    values: dict[int, Tensor],
    steps: int,
    batch: int,
    reverse: bool,
) -> None:
    weights = {}
    for weight in kernel.source.weights:
        kind, _, rest = weight.weight.partition(".")
        index = int(rest) if kind == "once" else program.graph.inputs[weight.weight]
        weights[weight.weight] = values[index]
    threads = openmp.threads()
    size = sum(w.numel() * w.element_size() for w in weights.values())
    across = threads > 1 and (batch < threads or size > _CACHED_WEIGHTS)
    kernel(rows, weights, steps=steps, batch=batch, reverse=reverse, across=across,
           threads=threads)  # fmt: skip


def _width(state: Tensor) -> int:
    """Numbers in a row of a state `(B, ...)`."""
    return math.prod(state.shape[1:])


def _rows(tensor: Tensor) -> Rows:
    """A tensor `(T, B, ...)` whose rows lie in one piece."""
    return Rows(tensor, tensor.stride(0), tensor.stride(1))


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, with the numbers of a row side by side."""
    if tensor.shape[1] == 0 or tensor[0, 0].is_contiguous():
        return tensor
    if tensor.stride(0) == tensor.stride(1) == 0:  # one row everywhere, as of the gradient of a sum
        return tensor[0, 0].contiguous().expand(tensor.shape)
    return tensor.contiguous()
