"""The engine's interface: programs run by Triton's kernels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cuda import kernels, tiers
from flexrnn.engine.cuda.calls import Call
from flexrnn.engine.cuda.plan import REAL, Kernels, Plan, plan_of
from flexrnn.engine.interpreter import Run
from flexrnn.engine.step import CannotRunError

DTYPES = tuple(REAL)
ALIGNED = 16  # bytes: kernels read so many at once


def _check(like: Tensor) -> None:
    kernels.check(like)
    if like.dtype not in DTYPES:
        raise CannotRunError(f"the cuda engine computes in {DTYPES}, got {like.dtype}")


def prepare(program: Program, like: Tensor) -> None:
    """Refuse a program, a dtype, a device or a machine that this engine cannot serve.

    Raises:
        CannotRunError: as it says.
    """
    _check(like)
    plan_of(program, program.fields[:1], like.dtype)


def source(program: Program, dtype: torch.dtype) -> str:
    """The Triton that is generated for a program: the loop there and the loop back."""
    plan = plan_of(program, program.fields[:1], dtype)
    texts = [f"# The forward loop.\n\n{plan.forward.source.sequence.text}"]
    if plan.backward is not None:
        texts.append(f"# The backward loop.\n\n{plan.backward.source.sequence.text}")
    return "\n\n".join(texts)


saved_like = interpreter.saved_like


class _Loop:
    """A call of one loop: its memory by name, and what torch makes of parameters and inputs."""

    def __init__(self, program: Program, kernels: Kernels, like: Tensor, sizes: Call):
        self.program, self.kernels, self.like, self.sizes = program, kernels, like, sizes
        self.real = REAL[like.dtype]
        self.memory: dict[str, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def ring(self, field: str, first: Tensor, old: str, new: str) -> Tensor:
        """Memory for a state that travels: of two steps, the first of which is given."""
        ring = self.like.new_empty((2, *first.shape), dtype=self.real)
        ring[0] = first
        self.memory[f"{old}.{field}"] = self.memory[f"{new}.{field}"] = ring
        return ring

    def timed(self, index: int) -> Tensor:
        """Memory for a node at every step."""
        node = self.program.graph.nodes[index]
        shape = (self.sizes.steps, *interpreter.shape_of(node, (self.sizes.batch,)))
        return self.like.new_empty(shape, dtype=torch.bool if node.boolean else self.like.dtype)

    def run(self, rows: tuple[int, ...]) -> None:
        """Compute before the loop what it reads, and run it."""
        _compute(self.program, [i for i in needed if i is not None], self.values, rows, self.like)
        for index, name in needed.items():
            self.memory[name] = self.values[index]
        tier = tiers.choose(self.kernels.source, self.sizes)
        memory = {name: self._pointer(name) for name in self.kernels.source.buffers}
        tier.launch(self.kernels.source, memory, self.sizes)

    def _node(self, name: str) -> int | None:
        kind, _, rest = name.partition(".")
        if kind in ("hoisted", "once"):
            return int(rest)
        return self.program.graph.inputs.get(name)

    def _pointer(self, name: str) -> Tensor:
        tensor = self.memory.get(name)
        if tensor is None:
            tensor = self._own(name)
        tensor = tensor.contiguous()
        if tensor.data_ptr() % ALIGNED:
            tensor = tensor.clone()
        return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor

    def _own(self, name: str) -> Tensor:
        """Memory that the loop wants for itself."""
        loop, source = self.kernels.loop, self.kernels.source
        row = source.buffers[name].row
        if name.startswith("partial."):
            index = sorted(loop.partial)[int(name.partition(".")[2])]
            row *= source.parts[loop.lowering.gathered[index]]
        return self.like.new_empty((self.sizes.batch * row,), dtype=self.real)


def _operands(program: Program, xs, state, tensors) -> dict[int, Tensor]:
    names = program.graph.inputs
    values = {names[f"x{k}"]: x for k, x in enumerate(xs)}
    values |= {names[f"param.{name}"]: tensor for name, tensor in tensors.items()}
    return values


def _compute(
    program: Program,
    wanted: Sequence[int],
    values: dict[int, Tensor],
    rows: tuple[int, ...],
    like: Tensor,
) -> None:
    """Compute nodes, and before them what they are made of, into `values`."""
    nodes, order = program.graph.nodes, set[int]()
    pending = list(wanted)
    while pending:
        index = pending.pop()
        if index not in values and index not in order:
            order.add(index)
            pending.extend(nodes[index].args)
    interpreter.compute_nodes(program, sorted(order), values, rows, like)


def _call(like: Tensor, steps: int, batch: int, reverse: bool) -> Call:
    allowed = like.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return Call(
        steps,
        batch,
        reverse,
        precision="tf32" if allowed else "ieee",
        itemsize=like.itemsize,
        processors=kernels.processors(like.device),
    )


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
    like = state[0]
    _check(like)
    steps, batch = xs[0].shape[:2]
    plan = plan_of(program, keep, like.dtype)
    call = _Loop(program, plan.forward, like, _call(like, steps, batch, reverse))
    call.values = _operands(program, xs, state, tensors)
    graph, outputs = program.graph, plan.parts.forward.graph.outputs
    rings, history = {}, {}
    for field, first in zip(program.fields, state, strict=True):
        if field in plan.parts.constant:
            call.memory[f"const.{field}"] = first
            continue
        rings[field] = call.ring(field, first, "before", "after")
        if f"history.{field}" in outputs:
            history[field] = call.timed(graph.outputs[f"state.{field}"])
            call.memory[f"history.{field}"] = history[field]
    for index in program.schedule.saved:
        if f"saved.{index}" in outputs:
            call.memory[f"saved.{index}"] = call.timed(index)
    call.run((steps, batch))
    final = [
        rings[field][steps % 2].to(like.dtype) if field in rings else first.clone()
        for field, first in zip(program.fields, state, strict=True)
    ]
    saved = tuple(_saved(program, plan, call, history, index) for index in program.schedule.saved)
    kept = {
        field: history[field] if field in history else _constant(program, field, state, steps)
        for field in keep
    }
    return Run(kept, tuple(final), saved)


def _constant(program: Program, field: str, state: Sequence[Tensor], steps: int) -> Tensor:
    first = state[program.fields.index(field)]
    return first.repeat(steps, *[1] * first.dim())


def _saved(
    program: Program, plan: Plan, call: _Loop, history: dict[str, Tensor], index: int
) -> Tensor:
    """A saved value, once the loop is done."""
    if f"saved.{index}" in call.memory:
        return call.memory[f"saved.{index}"]
    news = program.graph.outputs
    field = next((f for f in history if news[f"state.{f}"] == index), None)
    return call.values[index] if field is None else history[field]


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
    like = state[0]
    _check(like)
    steps, batch = xs[0].shape[:2]
    plan = plan_of(program, tuple(history), like.dtype)
    part, loop = plan.parts.backward, plan.backward
    assert part is not None
    assert loop is not None
    call = _Loop(program, loop, like, _call(like, steps, batch, reverse))
    graph = program.graph
    call.values = _operands(program, xs, state, tensors)
    values = call.values | dict(zip(program.schedule.saved, saved, strict=True))
    rings = {}
    for field, first, cotangent in zip(program.fields, state, final, strict=True):
        old, new = graph.inputs[f"state.{field}"], graph.outputs[f"state.{field}"]
        if old == new:
            values[old] = first.expand(steps, *first.shape)
            call.memory[f"const.{field}"] = first
        elif new in values:
            after = values[new]
            pieces = (after[1:], first[None]) if reverse else (first[None], after[:-1])
            values[old] = call.memory[f"before.{field}"] = torch.cat(pieces)
            call.memory[f"after.{field}"] = after
        rings[field] = call.ring(field, cotangent, "carry", "passed")
        if field in history:
            call.memory[f"grad.{field}"] = history[field]
    for index in program.schedule.saved:
        call.memory[f"saved.{index}"] = values[index]
    for name in part.graph.outputs:
        if name.startswith("kept."):
            index = int(name[5:])
            values[index] = call.memory[name] = call.timed(index)
    call.run((batch,))
    values |= call.values
    _compute(program, part.after, values, (steps, batch), like)
    gradients = {f: ring[steps % 2].to(like.dtype) for f, ring in rings.items()}
    found = {f"state.{f}": g for f, g in gradients.items()}
    for name, index in graph.outputs.items():
        kind, _, target = name.partition(".")
        if kind == "grad" and target not in found:
            found[target] = values[index]
    return found
