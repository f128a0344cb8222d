"""The values of a stage: a function that computes them for some rows of one vector of units."""

from flexrnn.engine.cpu.cpp import KEYWORDS, expression, vector_of_row
from flexrnn.engine.cpu.emit.context import Context
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.evaluation import Evaluation
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import Store

_EXPONENT = 4  # up to which a power is made of products, and of a square root
_EARLY = 2  # rows ahead of the present one whose saved values are asked for


def partial(context: Context, index: int) -> str:
    """The vector that a thread's units of a row give to a reduction, as it lies in memory."""
    name, heads = _partial(context, index)
    row = context.own_row()
    if heads != "1":
        row = f"({row} * {heads} + head)"
    return f"*(vec*)({name} + {row} * VL)"


def _partial(context: Context, index: int) -> tuple[str, str]:
    """The memory of what rows give to a reduction, and how many heads each has."""
    name, heads = context.buffer(context.loop.partial_name(index)), context.low.partial[index].heads
    return f"f.{name}", "1" if heads == 1 else context.size(f"{name}_heads", heads)


class Pointwise(Evaluation):
    """Writes `pointK`, for stage K.

    Behind products, it computes with a tile of sums, for some rows. Elsewhere for one of them, and
    who calls it for all units holds what these give to a reduction, in a vector. A stage of single
    numbers goes through some rows, too.
    """

    comment = "//"

    def __init__(self, context: Context, number: int, accumulators: Accumulators, width: int):
        super().__init__(context.loop)
        self.context, self.number, self.stage = context, number, context.loop.stages[number]
        self.accumulators, self.width = accumulators, width
        self.several = bool(self.stage.products) or self.stage.alone  # rows
        self.once: list[str] = []  # before the rows
        self.lines: list[str] = []  # for every row

    def text(self) -> str:
        """The function."""
        return self.readable(self._text(), KEYWORDS)

    def _text(self) -> str:
        for store in self.stage.stores:
            self._store(store)
        for k, index in enumerate(self.stage.reduced):
            self._gather(k, index)
        sums = [self._sum(k, store) for k, store in enumerate(self.stage.sums)]
        k = self.number
        head = f"{self.context.head(k)} head, " if self.context.headed(k) else ""
        if not self.several:
            gathered = "".join(f", vec {name}" for name in self.means)
            gathered += "".join(f", vec& {name}" for name in self.gathered)
            rest = f"{head}long unit, int n"
            text = _function(
                f"INLINE void point{k}(const Frame& f, long r, {rest}{gathered})",
                [*self.once, *self.lines],
            )
            total = _function(f"INLINE void total{k}(const Frame& f, {rest})", sums)
            return text + (total if sums else "")
        how, tile = ("static", "const REAL* tile, ") if self.stage.products else ("INLINE", "")
        return _function(
            f"{how} void point{k}(const Frame& f, {tile}long first, long rows, {head}long unit, "
            "int n)",
            [
                *self.once,
                *(f"vec sum{k} = {{}};" for k in range(len(sums))),
                "for (long i = 0; i < rows; i++) {",
                "    const long r = first + i;",
                *(f"    {line}" for line in self.lines),
                "}",
                *sums,
            ],
        )

    @property
    def gathered(self) -> list[str]:
        """The names of what the units of a thread give to reductions."""
        return [f"gathered{k}" for k in range(len(self.stage.reduced))]

    @property
    def means(self) -> list[str]:
        """The names of the means of a thread's units, where it goes through them once more."""
        return [] if self.stage.again is None else [f"mean{k}" for k in range(len(self.gathered))]

    def literal(self, value: float) -> str:
        """A number."""
        return self.context.literal(value)

    def assign(self, index: int, text: str) -> str:
        """A new variable for a node's value, and the line that sets it."""
        name = f"v{len(self.names)}"
        kind = "mask" if self.graph.nodes[index].boolean else "vec"
        lines = self.lines if self.low.rowed(index) else self.once
        lines.append(f"const {kind} {name} = {text};{self.remark(index)}")
        return name

    def accumulator(self, number: int) -> str:
        """The expression of a sum of products."""
        count = self.accumulators.count * self.width
        return f"*(const vec*)({vector_of_row('tile', 'i', count, number * self.width)})"

    def block(self, index: int) -> str:
        """The variable of a block of a product's columns."""
        return self.assign(index, self.accumulator(self.accumulators.of[index]))

    def operation(self, index: int, read: list[str]) -> str:
        """The expression of an elementwise operation on operands that are written."""
        node = self.graph.nodes[index]
        if node.op == "pow" and (halves := self._halves(node.args[1])):
            return f"power<{halves}>({read[0]})"
        return expression(node.op, *read, **dict(node.attrs))

    def _halves(self, exponent: int) -> int:
        """How many halves an exponent has, if it is a number that has few of them, else 0."""
        value = self.low.constant_of(exponent)
        few = value is not None and abs(value) <= _EXPONENT and float(2 * value).is_integer()
        return int(2 * value) if few and value is not None else 0

    def load(self, index: int) -> str:
        """The variable of what lies in memory.

        Going back through time, most of that was saved long ago, and where several stages read it
        in turn, caches do not guess what comes next: a layer-norm LSTM waits longer for it than it
        computes.
        """
        place, text = self.low.place(index), self.context.load(index, self.number)
        follows = any(not self.context.loop.stages[k].products for k in self._beside())
        if self.context.backward and follows and not self.several:
            kind = self.context.buffers[place.buffer].kind
            sizes = sizes_of(self.graph.nodes[index].shape)
            if kind == "timed" and sizes[-1] > 1:  # of single numbers a line holds many rows
                address = self.context.address(place, sizes, self.number)
                row = self.context.row(place.buffer)
                self.lines.append(f"__builtin_prefetch({address} + {_EARLY} * {row});")
        return self.assign(index, text)

    def _beside(self) -> list[int]:
        """The stages before this one and behind it."""
        count = len(self.context.loop.stages)
        return [k for k in (self.number - 1, self.number + 1) if 0 <= k < count]

    def _gather(self, k: int, index: int) -> None:
        """Add this vector's lanes to what the thread has found so far in the row."""
        value = self.use(self.graph.nodes[index].args[0])
        into = self.gathered[k]
        if self.stage.products:
            into = partial(self.context, index)
        op = self.graph.nodes[index].op
        if op == "moment":
            value = f"squared({value} - {self.means[k]})"
        if op in ("sum", "moment"):
            self.lines.append(f"{into} += within<TAIL>({value}, n);")
        else:
            inside = f"within<TAIL>({value}, n, broadcast(-HUGE))"
            self.lines.append(f"{into} = maximum({into}, {inside});")

    def total(self, index: int) -> str:
        """The variable with what all threads have found together."""
        name, heads = _partial(self.context, index)
        row, apart, head, several = "r", "f.B", "", heads != "1"
        if several:  # the number of a lane's head among all that were gathered
            before = f"head * f.W{self.number} + " if self.context.headed(self.number) else ""
            head = f"{before}unit + lane"
            row, apart = f"(r * {heads} + {head})", f"f.B * {heads}"
        self.context.apart = True
        node, given = self.graph.nodes[index], f"{name} + {row} * VL, {apart} * VL, f.of"
        if node.op == "moment":
            given += self._parts(index, node.args[1], row, head)
        which = {"sum": "sum", "amax": "max", "moment": "moment"}[node.op]
        text = f"{which}_of_all({given})"
        if several:
            return self.assign(index, f"each_lane<TAIL>([&](long lane) {{ return {text}; }}, n)")
        return self.assign(index, f"broadcast({text})")

    def matmul(self, index: int) -> str:
        """The variable of these units of a row of a matrix, times another."""
        context, (a, w) = self.context, self.graph.nodes[index].args
        (left, right), number = map(self.low.place, (a, w)), self.number
        of_left, of_right = (sizes_of(self.graph.nodes[arg].shape) for arg in (a, w))
        first = context.address(left, (*of_left[:-1], 1), number)  # of k = 0
        column = context.address(right, (*of_right[:-2], 1, of_right[-1]), number)
        inner = context.size(f"k{len(context.sizes)}", of_left[-1])
        apart = context.offset(right.strides[-2], number)
        return self.assign(index, f"row_times<TAIL>({first}, {column}, {apart}, {inner}, n)")

    def _parts(self, index: int, total: int, row: str, head: str) -> str:
        """What a moment wants to know besides: of the sum, and of the units of every thread."""
        sums, number = _partial(self.context, total)[0], self.low.gathered[index]
        which, lane = (f", {head}", "lane") if head else ("", "0")
        part = f"[&](long id) {{ return part{number}(f, id{which}); }}"
        return f", {sums} + {row} * VL, {self.use(total)}[{lane}] / f.W{number}, {part}"

    def _store(self, store: Store) -> None:
        node = self.graph.nodes[store.node]
        if node.op == "total":
            self._add(store, node.attr("axis"))
            return
        value = self.use(store.node)
        value = f"real({value})" if node.boolean else value
        sizes = sizes_of(node.shape)
        address = self.context.address(store.place, sizes, self.number)
        shared = self.stage.alone and store.place.buffer not in self.context.loop.copied
        where = "if (f.id == 0) " if shared else ""
        one = self.stage.domain.units == 1
        stored = f"*({address}) = {value}[0];" if one else f"store<TAIL>({address}, {value}, n);"
        if (apart := self.context.stride(store.place, sizes, self.number)) != 1:
            distance = self.context.offset(apart, self.number)
            stored = f"scatter<TAIL>({address}, {distance}, {value}, n);"
        self.lines.append(f"{where}{stored}")

    def _add(self, store: Store, axis: int) -> None:
        """Add to a sum along an axis of heads, which begins with the first place there."""
        (term,) = self.graph.nodes[store.node].args
        value, sizes = self.use(term), sizes_of(self.graph.nodes[store.node].shape)
        address = self.context.address(store.place, sizes, self.number)
        place = self.context.place_of_head(axis + self.stage.domain.behind, self.number)
        self.lines.append(f"add_term<TAIL>({address}, {place}, {value}, n);")

    def _sum(self, k: int, store: Store) -> str:
        """Sum a value over rows; the line that adds the sum to the memory.

        That has three parts: what has been added, what rounding has cut off from that, and, where
        rows come one by one, those that have come since.
        """
        value = self.use(store.node)
        sizes = sizes_of(self.graph.nodes[store.node].shape)
        address = self.context.address(store.place, sizes, self.number, rowed=False)
        part = self.context.row(store.place.buffer)
        if self.several:
            self.lines.append(f"sum{k} += {value};")
            return f"add_exactly<TAIL>({address}, {part}, sum{k}, n);"
        self.lines.append(f"add<TAIL>({address} + 2 * {part}, {value}, n);")
        return f"add_exactly<TAIL>({address}, {part}, n);"


def _function(head: str, lines: list[str]) -> str:
    return "\n".join(["template <bool TAIL>", f"{head} {{", *(f"    {li}" for li in lines), "}\n"])
