"""The values of a stage: a function that computes them for some rows of one vector of units."""

from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.cpu.cpp import expression
from flexrnn.engine.cpu.emit.context import Context
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import REDUCTIONS, Stage, Store


class Pointwise:
    """Writes `pointK`, for stage K."""

    def __init__(self, context: Context, number: int, accumulators: Accumulators, width: int):
        self.context, self.number = context, number
        self.graph, self.low = context.graph, context.low
        self.stage: Stage = context.loop.stages[number]
        self.accumulators, self.width = accumulators, width
        self.names: dict[int, str] = {}
        self.once: list[str] = []  # before the rows
        self.lines: list[str] = []  # for every row

    def text(self) -> str:
        """The function."""
        for store in self.stage.stores:
            self._store(store)
        for index in self.stage.reduced:
            self._gather(index)
        sums = [self._sum(k, store) for k, store in enumerate(self.stage.sums)]
        k = self.number
        return "\n".join([
            "template <bool TAIL>",
            f"static void point{k}(const Frame& f, const REAL* tile, long first, long rows, "
            "long head, long unit, int n) {",
            *(f"    {line}" for line in self.once),
            *(f"    vec sum{k} = {{}};" for k in range(len(sums))),
            "    for (long i = 0; i < rows; i++) {",
            "        const long r = first + i;",
            *(f"        {line}" for line in self.lines),
            "    }",
            *(f"    {line}" for line in sums),
            "}",
        ])  # fmt: skip

    def use(self, index: int) -> str:
        """The variable or expression that holds a node's value, computed where it is not yet."""
        pending = [index]
        while pending:  # no recursion, for a step may be longer than Python's stack is deep
            missing = [a for a in self._read(pending[-1]) if not self._is_at_hand(a)]
            if missing and not self._is_at_hand(pending[-1]):
                pending.extend(reversed(missing))
            else:
                self._define(pending.pop())
        constant = None if index in self.names else self.low.constant_of(index)
        return self.names[index] if constant is None else self.context.literal(constant)

    def _is_at_hand(self, index: int) -> bool:
        number = self.low.constant_of(index) is not None and not self.graph.nodes[index].boolean
        return number or index in self.names

    def _read(self, index: int) -> tuple[int, ...]:
        """What a node's line reads by name."""
        node, low = self.graph.nodes[index], self.low
        here = low.in_register(index, self.number, self.stage.domain)
        if here and (index in low.blocks or node.op in REDUCTIONS):
            return ()
        if node.op == "detach":
            return () if low.in_memory(index) else node.args
        inline = not low.rowed(index)  # of parameters alone
        if node.op not in OPS or not (here or inline):
            return ()
        terms = self.accumulators.sums.get(index)
        return node.args if terms is None else tuple(terms[1])

    def _define(self, index: int) -> None:
        if self._is_at_hand(index):
            return
        node, low = self.graph.nodes[index], self.low
        here = low.in_register(index, self.number, self.stage.domain)
        read = [self.use(a) for a in self._read(index)]
        if node.op == "detach" and read:
            self.names[index] = read[0]
            return
        name = self.names[index] = f"v{len(self.names)}"
        if here and index in low.blocks:
            text = self._tile(self.accumulators.of[index])
        elif here and node.op in REDUCTIONS:
            text = self._total(index)
        elif index in self.accumulators.sums:
            text = " + ".join([self._tile(self.accumulators.sums[index][0]), *read])
        elif node.op in OPS and (here or not low.rowed(index)):
            text = expression(node.op, *read, **dict(node.attrs))
        else:
            text = self.context.load(index, self.number)
        kind = "mask" if node.boolean else "vec"
        lines = self.lines if low.rowed(index) else self.once
        lines.append(f"const {kind} {name} = {text};")

    def _tile(self, accumulator: int) -> str:
        count = self.accumulators.count * self.width
        return f"*(const vec*)(tile + (i * {count} + {accumulator * self.width}) * VL)"

    def _partial(self, index: int) -> str:
        name = self.context.buffer(f"partial.{sorted(self.low.partial).index(index)}")
        over = self.low.partial[index]
        heads = self.context.size(f"{name}_heads", over.heads)
        return f"f.{name} + ((PART * f.B + r) * {heads} + head) * VL"

    def _gather(self, index: int) -> None:
        """Add this vector's lanes to what the thread has found so far in the row."""
        node = self.graph.nodes[index]
        value = self.use(node.args[0])
        into = f"*(vec*)({self._partial(index).replace('PART', 'f.part')})"
        if node.op == "sum":
            self.lines.append(
                f"{into} += TAIL ? select(lanes_below(n), {value}, vec{{}}) : {value};"
            )
        else:
            inside = f"select(lanes_below(n), {value}, broadcast(-REAL(__builtin_inf())))"
            self.lines.append(f"{into} = maximum({into}, TAIL ? {inside} : {value});")

    def _total(self, index: int) -> str:
        """What all threads have found together."""
        name = f"total{index}"
        operation = self.graph.nodes[index].op
        first = self._partial(index).replace("PART", "0")
        other = self._partial(index).replace("PART", "part")
        self.lines.append(f"vec {name} = *(const vec*)({first});")
        joined = (f"{name} += *(const vec*)({other});" if operation == "sum"
                  else f"{name} = maximum({name}, *(const vec*)({other}));")  # fmt: skip
        self.lines.append(f"for (long part = 1; part < f.parts; part++) {joined}")
        return f"broadcast({'sum' if operation == 'sum' else 'max'}({name}))"

    def _store(self, store: Store) -> None:
        value = self.use(store.node)
        node = self.graph.nodes[store.node]
        value = f"real({value})" if node.boolean else value
        address = self.context.address(store.place, sizes_of(node.shape), self.number)
        shared = self.stage.alone and store.place.buffer not in self.context.loop.copied
        where = "if (f.part == 0) " if shared else ""
        self.lines.append(f"{where}store<TAIL>({address}, {value}, n);")

    def _sum(self, k: int, store: Store) -> str:
        """Sum a value over the rows in a register; the line that adds it to the memory.

        The second half of that memory holds what rounding has cut off.
        """
        value = self.use(store.node)
        self.lines.append(f"sum{k} += {value};")
        sizes = sizes_of(self.graph.nodes[store.node].shape)
        address = self.context.address(store.place, sizes, self.number, rowed=False)
        lost = f"f.{self.context.buffer(store.place.buffer)}_row / 2"
        return f"add_exactly<TAIL>({address}, {address} + {lost}, sum{k}, n);"
