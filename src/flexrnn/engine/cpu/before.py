"""What is computed before a loop: weights that are made of others, and products of the input."""

from collections.abc import Collection, Mapping

from torch import Tensor

from flexrnn.engine import interpreter
from flexrnn.engine.compiler.graph import BATCH, Graph
from flexrnn.engine.compiler.program import Program
from flexrnn.engine.cpu.kernel import SCRATCH
from flexrnn.engine.cpu.nodes import compute, product_of_pieces
from flexrnn.engine.cpu.outer import multiply
from flexrnn.engine.cpu.pieces import Cut
from flexrnn.engine.cpu.saved import part


class Before:
    """What is computed, laid out for one kind of call. It keeps no operand alive.

    Args:
        graph: of the program.
        wanted: nodes that the loop reads, each in the memory `node.INDEX`.
        brief: products that it reads in `SCRATCH` while the steps of a chunk run, and where there.
        cut: of some of these, the pieces of their weights.
        threads: that there are.
        narrow: products round what they multiply to bfloat16.
    """

    def __init__(
        self,
        graph: Graph,
        wanted: Collection[int],
        brief: Mapping[int, int],
        cut: Mapping[int, Cut],
        threads: int,
        *,
        narrow: bool,
    ):
        self.wanted, self.brief, self.threads, self.narrow = tuple(wanted), brief, threads, narrow
        self.cut = cut
        rows = {graph.nodes[i].args[0] for i in cut}  # their weights are read piece by piece
        needed = sorted(graph.ancestors({*wanted, *brief, *rows} - cut.keys()) | cut.keys())
        made = [i for i in needed if graph.nodes[i].op != "input"]
        self.timed = frozenset(i for i in needed if BATCH in graph.nodes[i].shape)
        self.inputs = tuple(self.timed.difference(made))
        self.chunk = tuple(i for i in made if i in self.timed)
        self.once = tuple(i for i in made if i not in self.timed)

    @property
    def reads(self) -> bool:
        """Whether it computes anything."""
        return bool(self.wanted or self.brief)

    def begin(
        self,
        program: Program,
        values: dict[int, Tensor],
        memory: dict[str, Tensor],
        like: Tensor,
    ) -> None:
        """Compute what serves all steps.

        Args:
            program: the program.
            values: inputs and parameters by their nodes; what is computed is added.
            memory: where the loop finds it.
            like: a state.
        """
        interpreter.compute_nodes(program, self.once, values, (), like)
        self._put(values, memory, like, timed=False)

    def add(
        self,
        program: Program,
        values: Mapping[int, Tensor],
        memory: dict[str, Tensor],
        like: Tensor,
        lead: tuple[int, ...],
        span: slice,
    ) -> None:
        """Compute what the steps of a chunk read; what those of the one before have read goes.

        Args:
            program, values, memory, like: as in `begin`, where `values` has grown.
            lead: the axes in front of what there is at every step of the chunk.
            span: these steps, in the order of time.
        """
        if not self.chunk:
            return
        for index in self.timed.intersection(self.wanted):
            memory.pop(f"node.{index}", None)
        some = dict(values) | {i: values[i][span] for i in self.inputs}
        for index in self.chunk:
            node = program.graph.nodes[index]
            into = None
            if index in self.brief:
                shape = (*lead, *(int(s) for s in node.shape[1:]))
                into = some[index] = part(memory[SCRATCH], shape, self.brief[index])
            if index in self.cut:
                rows = some[node.args[0]].to(like.dtype)
                whole = product_of_pieces(rows, self.cut[index], memory, some[index])
                multiply([whole], self.threads, narrow=self.narrow)
                continue
            args = [some[arg] for arg in node.args]
            some[index] = compute(node, args, lead, like, self.threads, into, narrow=self.narrow)
        self._put(some, memory, like, timed=True)

    def _put(
        self, values: Mapping[int, Tensor], memory: dict[str, Tensor], like: Tensor, *, timed: bool
    ) -> None:
        for index in self.wanted:
            if (index in self.timed) == timed:
                memory[f"node.{index}"] = values[index].to(like.dtype).contiguous()
