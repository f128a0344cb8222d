"""The interpreter: programs run node by node in Python. Every engine is judged against it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexrnn.engine.batches import Time
from flexrnn.engine.compiler.graph import BATCH, Node
from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.step import CannotRunError

Values = dict[int, Tensor]


class Run(NamedTuple):
    """What a forward pass leaves behind: memory of its own, none of it an operand's."""

    history: dict[str, Tensor]  # of every kept field, (T, B, ...)
    final: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]  # what `backward` is given; may be of the history


def prepare(program: Program, like: Tensor) -> None:
    """Do nothing: every program runs, on every device."""


def forward(
    program: Program,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    keep: Sequence[str],
    *,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> Run:
    """Run a program over time.

    Args:
        program: what to run.
        xs: the inputs, each `(T, B, ...)`.
        state: the state before the first step, each `(B, ...)`.
        tensors: parameters and such, by name.
        keep: fields of the state that are wanted at every step.
        reverse: from the last t to the first. Everything over time stays in the order of time.
        batch_sizes: `(T,)`, where sequences end at different steps; see `engine.batches`. The
            longest is the first of the state. What is `(T, B, ...)` otherwise is `(N, ...)` then.
    """
    graph, plan = program
    time = Time(xs[0], batch_sizes)
    fixed = _fixed(program, tensors)
    compute_nodes(program, plan.once, fixed, state[0].shape[:1], state[0])
    whole = {graph.inputs[f"x{k}"]: x for k, x in enumerate(xs)} | fixed
    compute_nodes(program, plan.hoisted, whole, time.lead, state[0])
    timed = [i for i in whole if i not in fixed]

    news = [graph.outputs[f"state.{field}"] for field in program.fields]
    olds = [graph.inputs[f"state.{field}"] for field in program.fields]
    wanted = dict.fromkeys([*plan.saved, *(news[program.fields.index(f)] for f in keep)])
    rows: dict[int, list[Tensor]] = {i: [] for i in wanted}
    for t in time.steps(reverse):
        old = [time.running(s, t) for s in state]
        values = (
            fixed | {i: time.at(whole[i], t) for i in timed} | dict(zip(olds, old, strict=True))
        )
        compute_nodes(program, plan.loop, values, old[0].shape[:1], state[0])
        state = [time.put(values[i], s) for i, s in zip(news, state, strict=True)]
        for i, kept in rows.items():
            kept.append(values[i])
    stacked = {i: time.join(row[::-1] if reverse else row) for i, row in rows.items()}
    history: dict[str, Tensor] = {}
    for field in keep:
        value = stacked[news[program.fields.index(field)]]
        taken = any(value is other for other in history.values())  # two fields may be one
        history[field] = value.clone() if taken else value
    final = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
    return Run(history, final, tuple(stacked[i] for i in plan.saved))


def saved_like(
    program: Program, steps: int, like: Tensor, keep: Sequence[str]
) -> tuple[Tensor | str, ...]:
    """What `forward` saves, without running it: an empty tensor each, or whose history it is.

    Args:
        program, keep: as in the forward pass.
        steps: T.
        like: a state `(B, ...)`, of whose batch, dtype and device everything is.
    """
    graph, plan = program
    kept: dict[int, str] = {}
    for field in keep:
        kept.setdefault(graph.outputs[f"state.{field}"], field)

    def empty(node: Node) -> Tensor:
        shape = (steps, *shape_of(node, like.shape[:1]))
        return like.new_empty(shape, dtype=torch.bool if node.boolean else like.dtype)

    return tuple(kept.get(i) or empty(graph.nodes[i]) for i in plan.saved)


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
    batch_sizes: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run a program's backward pass.

    Args:
        program, xs, state, tensors, reverse, batch_sizes: as in the forward pass.
        saved: what that left behind.
        history: the loss's derivative by each kept field at every step, `(T, B, ...)`.
        final: the loss's derivative by the last state, each `(B, ...)`.

    Returns:
        The gradients that the program computes, by the name of the input. Two may be one tensor.
    """
    graph, plan = program
    time = Time(xs[0], batch_sizes)
    fixed = _fixed(program, tensors)
    compute_nodes(program, (*plan.once, *plan.prepare), fixed, state[0].shape[:1], state[0])
    values_saved = dict(zip(plan.saved, saved, strict=True))
    given = {graph.inputs[f"x{k}"]: x for k, x in enumerate(xs)} | values_saved
    for field, initial in zip(program.fields, state, strict=True):
        old, new = graph.inputs[f"state.{field}"], graph.outputs[f"state.{field}"]
        if old == new:  # it never changes
            given[old] = time.everywhere(initial)
        elif new in values_saved:
            given[old] = time.before(values_saved[new], initial, reverse=reverse)

    cotangents = dict(zip(program.fields, final, strict=True))
    rows: dict[int, list[Tensor]] = {i: [] for i in plan.kept}
    for t in time.steps(not reverse):
        values = fixed | {i: time.at(value, t) for i, value in given.items()}
        for field, cotangent in cotangents.items():
            total = time.running(cotangent, t)
            total = total + time.at(history[field], t) if field in history else total
            values[graph.inputs[f"cotangent.{field}"]] = total
        running = time.running(state[0], t)
        compute_nodes(program, plan.reverse, values, running.shape[:1], state[0])
        for i, kept in rows.items():
            kept.append(values[i])
        for field, cotangent in cotangents.items():
            index = graph.outputs.get(f"grad.state.{field}")
            running = time.running(cotangent, t)
            new = torch.zeros_like(running) if index is None else values[index]
            cotangents[field] = time.put(new, cotangent)
    kept = {i: time.join(row if reverse else row[::-1]) for i, row in rows.items()}

    whole = fixed | given | kept
    compute_nodes(program, plan.after, whole, time.lead, state[0])
    return by_name(program, cotangents, whole)


def by_name(
    program: Program, of_state: Mapping[str, Tensor], values: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """The gradients that a program computes, by the name of the input.

    Args:
        program: the program.
        of_state: of every field before the first step.
        values: the others, by the nodes that compute them.
    """
    gradients = {f"state.{field}": value for field, value in of_state.items()}
    nodes, taken = program.graph.nodes, set[int]()
    for name, index in program.graph.outputs.items():
        kind, _, target = name.partition(".")
        if kind == "grad" and target not in gradients:
            memory = index
            while nodes[memory].op == "reshape":
                memory = nodes[memory].args[0]
            # What somebody does to one gradient, such as clip it, is done to no other.
            gradients[target] = values[index].clone() if memory in taken else values[index]
            taken.add(memory)
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
    shape = shape_of(node, batch)
    if node.op in OPS:
        return OPS[node.op].torch(*args, **dict(node.attrs))
    match node.op:
        case "constant":
            return torch.full((), node.attr("value"), dtype=like.dtype, device=like.device)
        case "product":
            a, w = args
            return a @ w if w.dim() == 2 else torch.einsum("...gk,gkn->...gn", a, w)
        case "matmul":
            return args[0] @ args[1]
        case "outer":
            a, g = args
            if len(node.shape) == 2:
                return a.reshape(-1, a.shape[-1]).T @ g.reshape(-1, g.shape[-1])
            return torch.einsum("...gk,...gn->gkn", a, g)
        case "transpose":
            return args[0].transpose(-1, -2)
        case "opaque":
            if torch.is_grad_enabled() and args[0].requires_grad:  # see `recompute`
                raise CannotRunError(
                    "gradients of gradients of a step with a torch.autograd.Function are computed "
                    'by flexrnn.backend("reference") alone'
                )
            return args[0]
        case "detach":
            return args[0].detach()  # autograd may be recording: see `recompute`
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
        case "total":
            return args[0].sum(node.attr("axis"), keepdim=True)
        case "amax":
            return args[0].amax(-1, keepdim=True)
        case "moment":
            row, total = args
            return (row - total / row.shape[-1]).square().sum(-1, keepdim=True)
        case "batch_sum":
            return args[0].sum_to_size(shape)
    raise ValueError(f"program: expected an operation that is known, got {node.op!r}")


def shape_of(node: Node, batch: Sequence[int]) -> tuple[int, ...]:
    """A node's shape with numbers in the place of the batch."""
    return tuple(k for s in node.shape for k in (batch if s == BATCH else (int(s),)))
