# pyright: reportPrivateUsage=false
# Whether a tensor is one of zeros that has no memory has no public name.
"""One run of a loop: its memory by name, and what torch computes before and after it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cuda import tiers
from flexrnn.engine.cuda.calls import Call
from flexrnn.engine.cuda.emit import ROUNDED, Source, at_next_step, is_only_multiplied
from flexrnn.engine.cuda.written import REAL, Written

_ALIGNED = 16  # bytes: kernels read so many at once


class Loop:
    """A loop of a program, with the memory of one call.

    Args:
        program: the program.
        kernels: of the loop.
        like: a state.
        call: the sizes of the call.
        lead: of what is known at every step, `(T, B)`, or `(N,)` where the call has a layout.
        forth: it runs from the first step to the last.

    Attributes:
        memory: what is known of the loop's memory, by name.
        values: nodes of the program as torch computes with them; those with rows are `(T, B, ...)`.
    """

    def __init__(
        self,
        program: Program,
        kernels: Written,
        like: Tensor,
        call: Call,
        lead: tuple[int, ...],
        *,
        forth: bool,
    ):
        self.program, self.kernels, self.like, self.call = program, kernels, like, call
        self.lead, self.forth = lead, forth
        self.memory: dict[str, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def ring(self, field: str, first: Tensor, old: str, new: str) -> Tensor:
        """Memory for a state that travels, in two slots; the first is given.

        After n steps in the order of time, or before those behind them, it is in slot n % 2. It is
        of the type of registers, for a state is not rounded from step to step; but one that only
        products read is of the type to which they round it.
        """
        rounded = is_only_multiplied(self.kernels.stages, f"{old}.{field}")
        dtype = self.like.dtype if rounded else REAL[self.like.dtype]
        ring = self.like.new_empty((2, *first.shape), dtype=dtype)
        ring.copy_(first)  # both: sequences may begin at different steps
        self.memory[f"{old}.{field}"] = self.memory[f"{new}.{field}"] = ring
        return ring

    def last(self, ring: Tensor) -> Tensor:
        """The state in a ring when the loop has run."""
        steps, layout = self.call.steps, self.call.layout
        if layout is None or not self.forth:
            return ring[steps % 2 if self.forth else 0].to(self.like.dtype)
        own = layout[: self.call.batch]
        return ring[own % 2, torch.arange(len(own), device=own.device)].to(self.like.dtype)

    def timed(self, index: int) -> Tensor:
        """Memory for a node at every step."""
        node = self.program.graph.nodes[index]
        shape = interpreter.shape_of(node, self.lead)
        return self.like.new_empty(shape, dtype=torch.bool if node.boolean else self.like.dtype)

    def run(self, rows: tuple[int, ...]) -> None:
        """Run it.

        Args:
            rows: what stands in the place of the batch in what is computed before.
        """

        def memory(source: Source) -> dict[str, Tensor]:
            unknown = (name for name in source.buffers if name not in self.memory)
            made = {n: index for n in unknown if (index := self._node(n)) is not None}
            compute(self.program, tuple(made.values()), self.values, rows, self.like)
            known = self.memory | {name: self.values[index] for name, index in made.items()}
            known |= self._rounded(source)
            return {name: self._pointer(source, name, known.get(name)) for name in source.buffers}

        with torch.cuda.device_of(self.like):  # kernels run on the device that is current
            tiers.run(self.kernels, self.call, memory)

    def _rounded(self, source: Source) -> dict[str, Tensor]:
        """Rings as products round them, beside those that others read; both names have the same."""
        names = [name for name in source.buffers if name.endswith(ROUNDED)]
        rings = {at_next_step(name): self.memory[name.removesuffix(ROUNDED)] for name in names}
        rounded = {name: ring.to(self.like.dtype) for name, ring in rings.items()}
        return {name: rounded[at_next_step(name)] for name in names}

    def _node(self, name: str) -> int | None:
        """The node of the program that a piece of memory holds, if torch knows it."""
        kind, _, rest = name.partition(".")
        return int(rest) if kind in ("hoisted", "once") else self.program.graph.inputs.get(name)

    def _pointer(self, source: Source, name: str, tensor: Tensor | None) -> Tensor:
        """Memory as kernels read it: numbers side by side, of the types in the source."""
        if tensor is None:
            return self._own(source, name)
        if tensor.dtype not in (torch.bool, self.like.dtype, REAL[self.like.dtype]):
            tensor = tensor.to(self.like.dtype)
        if tensor._is_zerotensor():
            tensor = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        tensor = tensor.resolve_neg().contiguous()
        if tensor.data_ptr() % _ALIGNED:
            tensor = tensor.clone()
        return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor

    def _own(self, source: Source, name: str) -> Tensor:
        """Memory that the loop wants for itself."""
        stages, row = self.kernels.stages, source.buffers[name].row
        if name in source.grid.copied:
            row *= source.grid.programs
        if name.startswith("partial."):
            row *= source.parts[stages.lowering.gathered[stages.reduction_of(name)]]
        return self.like.new_empty((self.call.batch * row,), dtype=REAL[self.like.dtype])


def compute(
    program: Program,
    wanted: Sequence[int],
    values: dict[int, Tensor],
    rows: tuple[int, ...],
    like: Tensor,
) -> None:
    """Compute nodes, and before them what they are made of, into `values`; by torch."""
    nodes, order = program.graph.nodes, set[int]()
    pending = list(wanted)
    while pending:
        index = pending.pop()
        if index not in values and index not in order:
            order.add(index)
            pending.extend(nodes[index].args)
    interpreter.compute_nodes(program, sorted(order), values, rows, like)
