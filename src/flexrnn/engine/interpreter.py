"""The interpreter: programs run node by node in Python. Every engine is judged against it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.compiler.graph import BATCH, Node
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.program import Program

Values = dict[int, Tensor]


class Run(NamedTuple):
    """What a forward pass leaves behind."""

    history: dict[str, Tensor]  # of every kept field, (T, B, ...)
    final: tuple[Tensor, ...]
    saved: Values  # (T, B, ...)


def forward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
) -> Run:
    """Run a program over time.

    Args:
        program: what to run.
        xs: the inputs, each `(T, B, ...)`.
        state: the state before the first step, each `(B, ...)`.
        tensors: parameters and such, by name.
        keep: fields of the state that are wanted at every step.
    """
    graph, plan = program
    fixed = _fixed(program, tensors)
    compute_nodes(program, plan.once, fixed, state[0].shape[:1], state[0])
    whole = {graph.inputs[f"x{k}"]: x for k, x in enumerate(xs)} | fixed
    compute_nodes(program, plan.hoisted, whole, xs[0].shape[:2], state[0])
    timed = [i for i in whole if i not in fixed]

    news = [graph.outputs[f"state.{field}"] for field in program.fields]
    olds = [graph.inputs[f"state.{field}"] for field in program.fields]
    wanted = dict.fromkeys([*plan.saved, *(news[program.fields.index(f)] for f in keep)])
    rows: dict[int, list[Tensor]] = {i: [] for i in wanted}
    for t in range(xs[0].shape[0]):
        values = fixed | {i: whole[i][t] for i in timed} | dict(zip(olds, state, strict=True))
        compute_nodes(program, plan.loop, values, state[0].shape[:1], state[0])
        state = [values[i] for i in news]
        for i, kept in rows.items():
            kept.append(values[i])
    stacked = {i: torch.stack(kept) for i, kept in rows.items()}
    history = {field: stacked[news[program.fields.index(field)]] for field in keep}
    return Run(history, tuple(state), {i: stacked[i] for i in plan.saved})


def backward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    saved: Values,
    history: Mapping[str, Tensor],
    final: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Run a program's backward pass.

    Args:
        program, xs, state, tensors: as in the forward pass.
        saved: what that left behind.
        history: the loss's derivative by each kept field at every step, `(T, B, ...)`.
        final: the loss's derivative by the last state, each `(B, ...)`.

    Returns:
        The gradients that the program computes, by the name of the input.
    """
    graph, plan = program
    steps, batch = xs[0].shape[:2]
    fixed = _fixed(program, tensors)
    compute_nodes(program, (*plan.once, *plan.prepare), fixed, (batch,), state[0])
    given = {graph.inputs[f"x{k}"]: x for k, x in enumerate(xs)} | saved
    for field, initial in zip(program.fields, state, strict=True):
        old, new = graph.inputs[f"state.{field}"], graph.outputs[f"state.{field}"]
        if old == new:  # it never changes
            given[old] = initial.expand(steps, *initial.shape)
        elif new in saved:  # the state before each step: the initial one, then all but the last
            before = torch.cat([initial[None], saved[new][:-1]])
            given[old] = before

    cotangents = dict(zip(program.fields, final, strict=True))
    rows: dict[int, list[Tensor]] = {i: [] for i in plan.kept}
    for t in reversed(range(steps)):
        values = fixed | {i: value[t] for i, value in given.items()}
        for field, cotangent in cotangents.items():
            total = cotangent + history[field][t] if field in history else cotangent
            values[graph.inputs[f"cotangent.{field}"]] = total
        compute_nodes(program, plan.reverse, values, (batch,), state[0])
        for i, kept in rows.items():
            kept.append(values[i])
        for field, cotangent in cotangents.items():
            index = graph.outputs.get(f"grad.state.{field}")
            cotangents[field] = torch.zeros_like(cotangent) if index is None else values[index]
    kept = {i: torch.stack(row[::-1]) for i, row in rows.items()}

    whole = fixed | given | kept
    compute_nodes(program, plan.after, whole, (steps, batch), state[0])
    gradients = {f"state.{field}": value for field, value in cotangents.items()}
    for name, index in graph.outputs.items():
        kind, _, target = name.partition(".")
        if kind == "grad" and target not in gradients:
            gradients[target] = whole[index]
    return gradients


def _fixed(program: Program, tensors: Mapping[str, Tensor]) -> Values:
    names = program.graph.inputs
    return {names[f"param.{name}"]: tensor for name, tensor in tensors.items()}


def compute_nodes(
    program: Program,
    indices: Sequence[int],
    values: Values,
    batch: tuple[int, ...],
    like: Tensor,
) -> None:
    """Compute nodes, in an order in which they can be, into `values`; see `compute`."""
    nodes = program.graph.nodes
    for index in indices:
        if index not in values:
            node = nodes[index]
            args = [values[a] for a in node.args]
            values[index] = compute(node, args, tuple(batch), like)


def compute(node: Node, args: list[Tensor], batch: tuple[int, ...], like: Tensor) -> Tensor:
    """One node on tensors.

    Args:
        node: its shape begins with the batch, or has none.
        args: the operands; where a shape begins with the batch, `batch` stands in its place.
        batch: `(B,)` at one step, `(T, B)` for all steps at once.
        like: of whose dtype and device constants are.
    """
    shape = [k for s in node.shape for k in (batch if s == BATCH else (int(s),))]
    if node.op in OPS:
        return OPS[node.op].torch(*args, **dict(node.attrs))
    match node.op:
        case "constant":
            return torch.full((), node.attr("value"), dtype=like.dtype, device=like.device)
        case "product":
            a, w = args
            return a @ w if w.dim() == 2 else torch.einsum("...gk,gkn->...gn", a, w)
        case "outer":
            a, g = args
            if len(node.shape) == 2:
                return a.reshape(-1, a.shape[-1]).T @ g.reshape(-1, g.shape[-1])
            return torch.einsum("...gk,...gn->gkn", a, g)
        case "transpose":
            return args[0].transpose(-1, -2)
        case "detach":
            return args[0]
        case "slice":
            start, stop = node.attr("start"), node.attr("stop")
            return args[0].narrow(node.attr("axis"), start, stop - start)
        case "concat":
            return torch.cat(args, node.attr("axis"))
        case "reshape":
            return args[0].reshape(shape)
        case "expand":
            return args[0].expand(shape)
        case "sum":
            return args[0].sum(-1, keepdim=True)
        case "amax":
            return args[0].amax(-1, keepdim=True)
        case "batch_sum":
            return args[0].sum_to_size(shape)
    raise ValueError(f"program: expected an operation that is known, got {node.op!r}")
