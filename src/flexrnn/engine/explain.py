"""`explain`: which engine runs a layer, what program its steps are, and why if they are none."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flexrnn.engine import autocast, engines, native, scan
from flexrnn.engine.batches import of_one_step
from flexrnn.engine.compiler.graph import Graph
from flexrnn.engine.compiler.passes import passes
from flexrnn.engine.compiler.pretty import formulas, pretty
from flexrnn.engine.compiler.program import Program, build
from flexrnn.engine.compiler.schedule import saved_floats
from flexrnn.engine.compiler.trace import CannotCompileError
from flexrnn.engine.ordinary import kind
from flexrnn.engine.paired import Paired, are_complex
from flexrnn.engine.step import CannotRunError, ComposedStep, wanted_of


class StepReport(NamedTuple):
    """What is known of one layer and direction."""

    name: str  # `layer 0`, `layer 0 reverse`
    engine: str  # that runs it; "" where the one that is named cannot
    causes: tuple[str, ...]  # why each faster one does not
    program: Program | None
    refusal: str  # why there is none: operation, file and line
    saved_bytes: int  # kept for the backward pass by the program, over all steps and rows
    stages: tuple[tuple[str, str], ...]  # the name of a pass and the formulas after it
    dtype: torch.dtype  # of the state

    @property
    def source(self) -> str:
        """The code that the engine generates, if it does."""
        return "" if self.program is None else engines.source(self.engine, self.program, self.dtype)


class _Seen(NamedTuple):
    """A run that has been asked for; operands as in `reference.run`."""

    step: ComposedStep
    state: tuple[Tensor, ...]
    xs: tuple[Tensor, ...]  # of the longest segment; with `batch_sizes`, of one step
    keep: tuple[int, ...]
    batch_sizes: Tensor | None
    rows: int  # over all steps


class Explanation(NamedTuple):
    """What `explain` found; `str` of it is a text for a person."""

    layer: str
    engine: str  # of all steps, or those of each
    steps: tuple[StepReport, ...]
    show_stages: bool

    def __str__(self) -> str:
        lines = [self.layer, f"engine: {self.engine}"]
        for step in self.steps:
            lines += ["", _summary(step)] if self.show_stages else [_summary(step)]
            for name, text in step.stages if self.show_stages else ():
                lines += ["", f"{step.name}, after {name} ".ljust(72, "-"), text]
        return "\n".join(lines)


def explain(layer: nn.Module, x: Any, *, stages: bool = False, **call: Any) -> Explanation:
    """Say how a layer is run on an input where it is differentiated; no sequence is run.

    Without derivatives the same engines run. A sequence of one step `auto` leaves to the reference,
    and that is what is said of it; but a call with nothing beside an input and a state runs
    compiled, of 512 units or more where it is not differentiated.

    Args:
        layer: a `FlexRNN` or a drop-in.
        x: an input as the layer takes it.
        stages: show what the step is after every pass of the compiler.
        call: what else the layer is called with, by name, such as `lengths` or `reset`.

    Returns:
        An `Explanation`; print it. Of every layer and direction it holds in `steps` the engine, the
        program and, where code is generated, its `source`, in which formulas name the lines of the
        step that they are from, and values have the names that the step has for them.

    Raises:
        TypeError: `layer` is none of ours, and holds none.
        TypeError, ValueError, RuntimeError: as the layer does for this input.

    Example:
        >>> import torch, flexrnn
        >>> print(flexrnn.explain(flexrnn.LSTM(3, 4), torch.randn(5, 2, 3)))
        LSTM(3, 4)
        engine: cpu
        layer 0: 2 products, 1 in the loop; 24 numbers saved a step and row, 960 B in all
    """
    seen: list[_Seen] = []

    def watch(
        step: ComposedStep,
        state: Any,
        xs: tuple[Tensor, ...],
        keep: Any,
        batch_sizes: Tensor | None,
    ) -> Any:
        lead = xs[0].shape[: 2 if batch_sizes is None else 1]
        if seen and seen[-1].step is step:  # one more segment of the same run
            last = seen[-1]
            longest = max(last.xs, xs, key=lambda xs: xs[0].shape[0])
            seen[-1] = last._replace(xs=longest, rows=last.rows + lead.numel())
        else:
            one = xs
            if batch_sizes is not None:
                one = tuple(of_one_step(x, len(state[0])) for x in xs)
            seen.append(_Seen(step, tuple(state), one, tuple(keep), batch_sizes, lead.numel()))
        learns = any(t.requires_grad for t in (*step.tensors.values(), *xs))
        like = [state[k] for k in keep]
        history = (s.new_zeros(*lead, *s.shape[1:]).requires_grad_(learns) for s in like)
        return tuple(history), state

    with torch.enable_grad(), scan.watched(watch):
        layer(x, **call)
    if not seen:
        raise TypeError(f"layer: expected a FlexRNN, got {type(layer).__name__}")
    backend = scan.in_force(getattr(layer, "backend", "auto"))
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    reports = []
    for k, run in enumerate(seen):
        name = f"layer {k // directions}" + (" reverse" if k % directions else "")
        reports.append(_report(name, backend, run))
    head = repr(layer).splitlines()
    title = head[0] if len(head) == 1 else f"{head[0]}{head[1].strip()})"  # without the cells
    names = dict.fromkeys(report.engine or "none" for report in reports)
    return Explanation(title, ", ".join(names), tuple(reports), stages)


def _report(
    name: str,
    backend: str,
    run: _Seen,
    tried: tuple[str, ...] = (),
) -> StepReport:
    """Of one layer in one direction, for which these engines are tried; nothing: not known yet."""
    step, state, xs, keep, batch_sizes, rows = run
    if are_complex((*state, *xs)):
        real = Paired(step, state, xs, keep)
        parts = {"step": real.step, "state": tuple(real.state), "xs": real.xs}
        return _report(name, backend, run._replace(**parts, keep=tuple(real.keep)))
    tried = tried or scan.order(backend, step, state, xs, keep, batch_sizes)
    dtype = engines.cast_to(tried[0], state[0])
    narrow = engines.is_narrow(tried[0], state[0])
    if dtype is not None:
        with autocast.off(state[0]):
            xs, state = (tuple(autocast.cast(t, dtype) for t in group) for group in (xs, state))
            cast = autocast.CastStep(step, dtype, narrow=narrow)
            return _report(name, backend, run._replace(step=cast, state=state, xs=xs), tried)
    try:
        graphs = passes(step, xs, state, wanted_of(step, state, xs))
    except CannotCompileError as refusal:
        chosen = _choose(backend, tried, run, None, str(refusal))
        return StepReport(name, *chosen, None, str(refusal), 0, (), state[0].dtype)
    program = build(graphs[-1][1])
    chosen = _choose(backend, tried, run, program, "")
    texts = [(after, formulas(graph)) for after, graph in graphs]
    saved = saved_floats(*program) * rows * state[0].element_size()
    stages = (*texts, ("schedule", pretty(program)))
    return StepReport(name, *chosen, program, "", saved, stages, state[0].dtype)


def _choose(
    backend: str,
    tried: tuple[str, ...],
    run: _Seen,
    program: Program | None,
    refusal: str,
) -> tuple[str, tuple[str, ...]]:
    """The engine that `scan.run` comes to, and why none before it."""
    step, state, xs, keep, *_ = run
    like = state[0]
    causes: list[str] = []
    for engine in ("torch", *engines.AUTO) if backend == "auto" else tried:
        if engine not in tried:
            reason = engines.not_served(engine, like)
            if reason and not (engine == "cuda" and like.is_cpu):  # where nobody expects it
                causes.append(f"{engine}: {reason}")
            continue
        if engine == "reference":
            return engine, tuple(causes)
        try:
            kind((*xs, *state, *step.tensors.values()))
            if engine == "torch":
                native.check(step, state, xs, keep)
                return engine, tuple(causes)
            if program is None:
                raise CannotRunError(refusal)
            engines.ENGINES[engine].prepare(program, like)
        except CannotRunError as cause:
            causes.append(f"{engine}: {cause}")
        else:
            return engine, tuple(causes)
    return "", tuple(causes)


def _summary(step: StepReport) -> str:
    if step.engine == "torch":
        return f"{step.name}: a kernel of torch's own"
    if step.program is None:
        return f"{step.name}: no program: {step.refusal}"
    graph, plan = step.program
    loop = sum(graph.nodes[i].op == "product" for i in plan.loop)
    products = loop + sum(graph.nodes[i].op == "product" for i in plan.hoisted)
    return (
        f"{step.name}: {_made(graph)}{_count(products)}, {loop} in the loop; "
        f"{saved_floats(graph, plan)} "
        f"numbers saved a step and row, {_bytes(step.saved_bytes)} in all"
        + "".join(f"; not by {cause}" for cause in step.causes)
    )


def _made(graph: Graph) -> str:
    count = 0 if graph.ahead is None else len(graph.ahead.names)
    return f"{count} made ahead by torch; " if count else ""


def _count(products: int) -> str:
    return "1 product" if products == 1 else f"{products} products"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
