"""What the writers of stages share: how a node's value comes into a variable of Triton's."""

from flexrnn.engine.cuda.emit.names import Names
from flexrnn.engine.cuda.emit.tiles import Tile
from flexrnn.engine.cuda.expression import expression, is_operator, literal
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.evaluation import Evaluation
from flexrnn.engine.lowering.places import Place, sizes_of
from flexrnn.engine.lowering.stages import Store

NEUTRAL = {"sum": "0.0", "amax": 'float("-inf")', "moment": "0.0"}  # of a row's reduction


class Values(Evaluation):
    """Writes what a program computes for its rows and the units of a tile.

    Args:
        names: of the loop's memory.
    """

    comment = "#"
    unit = "unit"  # the variables of the tile's units, and of which of them are there
    inside = "inside"

    def __init__(self, names: Names):
        super().__init__(names.loop)
        self.buffers, self.real, self.operand = names, names.real, names.operand
        self.lines: list[str] = []
        self.early: list[str] = []  # reads that come before them, since they wait for nothing
        self.used: dict[str, None] = {}  # pointers, in the order in which they are first needed

    def turn_to(self, number: int, tile: Tile) -> None:
        """Go on with a stage."""
        self.number, self.tile = number, tile
        self.stage, self.accumulators = self.loop.stages[number], Accumulators(self.loop, number)
        self.units = self.stage.domain.units

    def literal(self, value: float) -> str:
        """A number."""
        return literal(value)

    def block(self, index: int) -> str:
        """The variable of a block of a product's columns."""
        return self.accumulator(self.accumulators.of[index])

    def operation(self, index: int, read: list[str]) -> str:
        """The expression of an elementwise operation on operands that are written."""
        node = self.graph.nodes[index]
        named = zip(node.args, read, strict=True)
        operands = (self._operand(node.op, a, text) for a, text in named)
        return expression(node.op, *operands, **dict(node.attrs))

    def _operand(self, op: str, index: int, text: str) -> str:
        """An operand's text; functions want a number to have a type, which operators give it."""
        number = None if index in self.names else self.low.constant_of(index)
        if number is None or is_operator(op):
            return text
        return literal(number, self.real.removeprefix("tl."))

    def assign(self, index: int, text: str) -> str:
        """A new variable for a node's value."""
        name = f"v{len(self.names)}"
        self.line(index, f"{name} = {text}{self.remark(index)}")
        return name

    def line(self, index: int, text: str) -> None:
        """Write a line that computes a node."""
        self.lines.append(text)

    def accumulator(self, number: int) -> str:
        """The variable of a sum of products."""
        return f"acc{number}"

    def pointer(self, name: str) -> str:
        """The pointer to a piece of memory, at this step."""
        pointer = self.buffers.buffer(name)
        self.used[name] = None
        return pointer

    def address(self, place: Place, sizes: tuple[int, ...], *, rowed: bool = True) -> str:
        """Where a place's units lie, of these rows and this head."""
        pointer = self.pointer(place.buffer)
        return self.buffers.address(place, sizes, self.number, pointer, self.unit, rowed)

    @property
    def is_whole(self) -> bool:
        """Whether the units of a stage fill all its tiles."""
        return self.units % self.tile.units == 0

    def load(self, index: int) -> str:
        """Read a node from memory, at these rows, this head and these units."""
        node, rowed = self.graph.nodes[index], self.low.rowed(index)
        place, sizes = self.low.place(index), sizes_of(node.shape)
        address = self.address(place, sizes, rowed=rowed)
        ragged = sizes[-1] > 1 and place.strides[-1] != 0 and not self.is_whole
        masks = {(True, True): self.inside, (True, False): "live",
                 (False, True): f"{self.unit} < {self.units}"}  # fmt: skip
        rows = rowed and self.buffers.buffers[place.buffer].row > 0  # else all have the same
        mask = masks.get((rows, ragged))
        text = (
            f"tl.load({address})" if mask is None else f"tl.load({address}, mask={mask}, other=0.0)"
        )
        text = self.fetched(index, text)
        return self.assign(index, f"{text} != 0" if node.boolean else f"{text}.to({self.real})")

    def fetched(self, index: int, text: str) -> str:
        """What a read gives as it lies in memory, where the node is needed."""
        return text

    def fetched_early(self, text: str) -> str:
        """A variable for that, read before all else.

        To the card any store may change what a later load reads, so that loads which stand among
        stores wait for one another. What is read early is converted where it is needed: to convert
        it hands it from thread to thread, which would wait for it.
        """
        name = f"raw{len(self.names)}"
        self.early.append(f"{name} = {text}")
        return name

    def products(self) -> None:
        """Add up the products of the stage."""
        for products, sums in self.accumulators.groups:
            for s in sums:
                zeros = f"tl.zeros((M, {self.tile.units}), {self.real})"
                self.lines.append(f"{self.accumulator(s)} = {zeros}")
            for k in products:
                self.product(k)

    def of_product(self, k: int) -> str:
        """What the names of a product's variables end in.

        Each has its own, where there are several: what a loop of Triton's sets has to have had the
        same shape before.
        """
        return str(k) if len(self.stage.products) > 1 else ""

    def product(self, k: int) -> None:
        """Add one product of the stage to its sums, some columns of its left operand at a time."""
        product, own = self.stage.products[k], self.of_product(k)
        j, a, w = (f"{name}{own}" for name in "kaw")
        weight = self.graph.nodes[product.weight]
        inner, columns = int(weight.shape[-2]), int(weight.shape[-1])
        left = self.low.place(product.left)
        sizes = sizes_of(self.graph.nodes[product.left].shape)
        address = self.address(left, (*sizes[:-1], 1))  # of k = 0
        pointer = self.pointer(weight.attr("name"))
        head = f" + head * {inner * columns}" if len(weight.shape) == 3 else ""
        step = self.tile.inner(inner)
        whole = inner % step == 0
        mask = "live" if whole else f"live & ({j} < {inner})[None, :]"
        tests = [] if whole else [f"({j} < {inner})[:, None]"]
        tests += [] if self.is_whole else [f"({self.unit} < {self.units})"]
        some = f", mask={' & '.join(tests)}, other=0.0" if tests else ""
        body = [
            f"{a} = tl.load({address} + {j}[None, :], mask={mask}, other=0.0).to({self.operand})",
            f"{w} = {pointer}{head} + {j}[:, None] * {columns} + {self.unit}",
        ]
        for block, index in sorted(product.blocks.items()):
            acc = self.accumulator(self.accumulators.of[index])
            shift = f" + {block * self.units}" if block else ""
            body.append(f"{acc} = product({a}, tl.load({w}{shift}{some}), {acc}, PRECISION)")
        if step >= inner:
            self.lines += [f"{j} = tl.arange(0, {step})", *body]
        else:
            self.lines.append(f"for first in range(0, {inner}, {step}):")
            body.insert(0, f"{j} = first + tl.arange(0, {step})")
            self.lines += [f"    {line}" for line in body]

    def stored(self, store: Store) -> str:
        """The line that writes a value to memory."""
        node, value = self.graph.nodes[store.node], self.use(store.node)
        address = self.address(store.place, sizes_of(node.shape))
        if self.units == 1 and self.tile.units > 1:  # one unit, in a tile that a product wants
            address = f"{address} + {self.unit}"
        value = f"({value}).to(tl.uint8)" if node.boolean else value
        return f"tl.store({address}, {value}, mask={self.inside})"

    def gathered(self, index: int) -> str:
        """The expression that reduces this tile's part of each row, for a `sum` or an `amax`."""
        node = self.graph.nodes[index]
        value = self.use(node.args[0])
        if not self.low.rowed(node.args[0]) or self.low.constant_of(node.args[0]) is not None:
            value = f"(tl.zeros((M, {self.tile.units}), {self.real}) + {value})"
        mask = "live" if self.is_whole else self.inside
        if node.op == "moment":
            return f"row_moment({value}, {mask}, {self.present()})"
        return f"row_{node.op}(tl.where({mask}, {value}, {NEUTRAL[node.op]}))"

    def present(self) -> str:
        """How many units of the stage a tile has."""
        return str(self.units)
