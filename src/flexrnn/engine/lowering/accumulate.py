"""Which sums of products a tile holds: products that are added up anyway share a register."""

from flexrnn.engine.lowering.stages import Loop


class Accumulators:
    """The sums of products of one stage.

    Attributes:
        of: block of a product -> number of its sum.
        sums: `add` node -> the sum that holds its products, and the operands that are no products.
        count: how many sums there are.
        groups: of products that share sums, the products' numbers and the sums.
    """

    def __init__(self, loop: Loop, number: int):
        self.loop, self.number = loop, number
        self.graph, self.low = loop.graph, loop.lowering
        self.stage = loop.stages[number]
        self.blocks = [b for product in self.stage.products for b in product.blocks.values()]
        self.sums: dict[int, tuple[int, list[int]]] = {}
        self.of: dict[int, int] = {}
        for index in reversed(self.stage.values):
            self._join(index)
        for block in self.blocks:
            if block not in self.of:
                self.of[block] = self._new()
        self._number()
        self.groups = self._grouped()

    @property
    def count(self) -> int:
        """How many sums there are."""
        return len(set(self.of.values()))

    @property
    def widest(self) -> int:
        """How many sums the products that share some have at most."""
        return max(len(sums) for _, sums in self.groups)

    @property
    def full(self) -> bool:
        """Whether every product adds to all sums of its group."""
        own = [{self.of[b] for b in product.blocks.values()} for product in self.stage.products]
        return all(own[k] == set(sums) for products, sums in self.groups for k in products)

    def _new(self) -> int:
        return self.count

    def _number(self) -> None:
        """Number sums as the products that add to them come: cells that differ in what they make of
        their sums have the same sums.
        """
        blocks = (block for p in self.stage.products for _, block in sorted(p.blocks.items()))
        order = {which: k for k, which in enumerate(dict.fromkeys(self.of[b] for b in blocks))}
        self.of = {block: order[which] for block, which in self.of.items()}
        self.sums = {add: (order[which], rest) for add, (which, rest) in self.sums.items()}

    def _grouped(self) -> list[tuple[list[int], list[int]]]:
        found: list[tuple[list[int], set[int]]] = []
        for k, product in enumerate(self.stage.products):
            sums = {self.of[block] for block in product.blocks.values()}
            shared = [group for group in found if group[1] & sums]
            found = [group for group in found if not group[1] & sums]
            products = [p for group in shared for p in group[0]]
            found.append(([*products, k], sums.union(*(group[1] for group in shared))))
        return [(products, sorted(sums)) for products, sums in found]

    def _join(self, index: int) -> None:
        """Let the products under a tree of additions share a sum."""
        if self.graph.nodes[index].op != "add" or self._interior(index):
            return
        leaves = self._leaves(index)
        products = [leaf for leaf in leaves if leaf in self.blocks and self._alone(leaf)]
        if len(products) < 2:
            return
        shared = self._new()
        for leaf in products:
            self.of[leaf] = shared
        self.sums[index] = (shared, [leaf for leaf in leaves if leaf not in products])

    def _leaves(self, index: int) -> list[int]:
        found, pending = [], list(reversed(self.graph.nodes[index].args))
        while pending:
            arg = pending.pop()
            if self._interior(arg):
                pending.extend(reversed(self.graph.nodes[arg].args))
            else:
                found.append(arg)
        return found

    def _interior(self, index: int) -> bool:
        """Whether an addition of this stage is read by another addition of it, and nowhere else."""
        if self.graph.nodes[index].op != "add" or index not in self.stage.values:
            return False
        return self._alone(index)

    def _alone(self, index: int) -> bool:
        readers = [u for u in self.low.users[index] if u in self.low.alive]
        return (
            len(readers) == 1
            and self.graph.nodes[readers[0]].op == "add"
            and self.graph.nodes[readers[0]].args.count(index) == 1
            and readers[0] in self.stage.values
            and index not in self.low.memory
            and index not in self.graph.outputs.values()
        )
