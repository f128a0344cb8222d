# pyright: reportPrivateUsage=false
# Dynamo's table of compilers has no public name.
"""What `torch.compile` sees of a layer: how many nodes, and how many of them are loops."""

from typing import Any

import torch


class Graphs:
    """A compiler that notes what Dynamo hands it, and leaves the rest to AOTAutograd."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.scans: list[int] = []

    def __call__(self, graph: Any, examples: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes]
        self.sizes.append(len(names))
        self.scans.append(names.count("flexrnn.scan.default"))
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)


def compiled(call: Any, **options: Any) -> tuple[Any, Graphs]:
    """A call as Dynamo compiles it, whole, and what it has seen."""
    graphs = Graphs()
    return torch.compile(call, fullgraph=True, backend=graphs, **options), graphs
