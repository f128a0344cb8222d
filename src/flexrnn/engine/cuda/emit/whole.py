"""The loop of a narrow cell as one kernel in which the state never leaves the registers.

Where every stage fits a single tile, a program holds whole rows. What a step hands to the next
stays where it was computed, products take their left operand from there, and what is made of
parameters alone is read before the loop, weights too where they are few. Memory sees what is
wanted of every step, and what is read elsewhere than where it was computed.
"""

import math
from keyword import kwlist

from flexrnn.engine.compiler.ops import OPS
from flexrnn.engine.cuda.emit.names import COMPILED, OWN_STEPS, Names
from flexrnn.engine.cuda.emit.tiles import LEAST, Tile, power_above
from flexrnn.engine.cuda.emit.values import Values
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import REDUCTIONS, Store

_WIDEST = 256  # bytes of units: more, and the registers would not hold sums and a weight's tile
_STEP = 64  # columns of a left operand at a time, where it is in memory
_HELD = 32 << 10  # bytes of weights that a processor holds beside everything else


class NotNarrowError(Exception):
    """A step reads its state otherwise than from registers, or more than they hold."""


class WholeWriter(Values):
    """Writes the kernel `sequence` of a narrow loop; arguments as in `Values`.

    Raises:
        NotNarrowError: the loop is not narrow.
    """

    def __init__(self, names: Names):
        super().__init__(names)
        stages = names.loop.stages
        self.old, self.new = ("carry", "passed") if names.backward else ("before", "after")
        self.ends = {name.partition(".")[2]: index for name, index in self.graph.outputs.items()
                     if name.startswith(f"{self.new}.")}  # fmt: skip
        self.multiplied = {s.domain.units for s in stages if s.products}
        itemsize = {"tl.float64": 8, "tl.float32": 4}.get(self.operand, 2)
        if (
            any(s.domain.heads > 1 or s.domain.units * itemsize > _WIDEST for s in stages)
            or any(i not in self.low.blocks and self.graph.nodes[i].op not in OPS
                   for i in self.ends.values())
            or (1 in self.multiplied and len(stages) > 1)
        ):  # fmt: skip
            raise NotNarrowError
        weights = (self.graph.nodes[p.weight] for s in stages for p in s.products)
        self.holds = sum(math.prod(map(int, w.shape)) for w in weights) * itemsize <= _HELD
        self.once: list[str] = []  # before the loop
        self.ready: set[str] = set()  # variables that stand there
        self.masks: dict[str, str] = {}  # those that say which rows and units there are
        self.waiting: set[str] = set()  # memory written since all threads have met
        self.spare: dict[int, str] = {}  # lines that write memory, needed where it is read back
        self.read_back: set[str] = set()
        self.full: set[int] = set()  # nodes whose variable has all rows and units

    def text(self) -> str:
        """The kernel."""
        return self.readable(self._text(), kwlist)

    def _text(self) -> str:
        begin, end = self._begin(), self._end()
        for number, stage in enumerate(self.loop.stages):
            self.turn_to(number, Tile(self._width(stage.domain.units), _STEP))
            self.unit, self.inside = self._units(self.units)
            self._stage()
        news = [self._block(field, index) for field, index in self.ends.items()]
        if self.read_back:
            self.lines.append("tl.debug_barrier()  # before the next step writes there again")
        unread = {at for at, name in self.spare.items() if name not in self.read_back}
        lines = [line for at, line in enumerate(self.lines) if at not in unread]
        for name in set(self.spare.values()) - self.read_back:
            del self.used[name]
        pointers = ", ".join(self.buffers.buffer(name) for name in self.used)
        variables = [f"old_{self._plain(field)}" for field in self.ends]
        olds = ", ".join(variables)
        kept = [f"tl.where(live, {new}, {old})" for new, old in zip(news, variables, strict=True)]
        return "\n".join([
            '@jit(do_not_specialize=("T", "B"))',
            f"def sequence(T, B, layout, {pointers}, {COMPILED}):",
            "    # Every program has rows of its own, and walks through all their steps.",
            "    row = (tl.program_id(0).to(tl.int64) * M + tl.arange(0, M))[:, None]",
            "    live = row < B",
            *(f"    {line}" for line in (*self.once, *begin, *OWN_STEPS)),
            "    for t in range(T):",
            *(f"        {line}" for line in self.buffers.advance(self.used)),
            *(f"        {line}" for line in (*self._live("count"), *self.early)),
            *(f"        {line}" for line in lines),
            "        if RAGGED:",
            f"            {olds} = {', '.join(kept)}",
            "        else:",
            f"            {olds} = {', '.join(news)}",
            *(f"    {line}" for line in self._live("B")),
            *(f"    {line}" for line in end),
            "",
        ])  # fmt: skip

    def _width(self, units: int) -> int:
        """Of the tile that holds so many units; the same in all stages that go over them."""
        multiplied = units > 1 or units in self.multiplied
        return max(LEAST, power_above(units)) if multiplied else 1

    def _units(self, units: int) -> tuple[str, str]:
        """The variables of a tile's units, and of which of them are there."""
        width = self._width(units)
        unit = self._ready(f"unit{units}", f"tl.arange(0, {width})[None, :]")
        if width == units:
            return unit, "live"
        name = f"inside{units}"
        self.masks[name] = f"live & ({unit} < {units})"
        return unit, self._ready(name, self.masks[name])

    def _live(self, count: str) -> list[str]:
        """Lines that say anew which rows there are."""
        masks = (f"    {name} = {text}" for name, text in self.masks.items())
        return ["if RAGGED:", f"    live = row < {count}", *masks]

    def _ready(self, name: str, text: str) -> str:
        """A variable that is set before the loop."""
        if name not in self.ready:
            self.ready.add(name)
            self.once.append(f"{name} = {text}")
        return name

    # The state --------------------------------------------------------------------------------

    def _plain(self, field: str) -> str:
        return self.buffers.buffer(f"{self.old}.{field}").removeprefix(f"{self.old}_")

    def _begin(self) -> list[str]:
        """Lines that read the state before the first step."""
        lines = []
        for field in self.ends:
            name = f"{self.old}.{field}"
            variable = f"old_{self._plain(field)}"
            if name in self.graph.inputs:
                self.names[self.graph.inputs[name]] = variable
                self.full.add(self.graph.inputs[name])
            place, inside = self._state(name)
            load = f"tl.load({place}, mask={inside}, other=0.0).to({self.real})"
            lines.append(f"{variable} = {load}")
        return lines

    def _end(self) -> list[str]:
        """Lines that write the state after the last step, into the slot of its time."""
        slot = (
            "last % 2 if REVERSE else 0" if self.buffers.backward else "0 if REVERSE else last % 2"
        )
        lines = [
            "last = tl.load(layout + row, mask=live, other=0) if RAGGED else T",
            f"last = ({slot}) * B.to(tl.int64)",
        ]
        for field in self.ends:
            place, inside = self._state(f"{self.new}.{field}", "(last + row)")
            lines.append(f"tl.store({place}, old_{self._plain(field)}, mask={inside})")
        return lines

    def _state(self, name: str, row: str = "row") -> tuple[str, str]:
        pointer = self.pointer(name)
        units = self.buffers.buffers[name].row
        unit, inside = self._units(units)
        return f"{pointer} + {row} * {units} + {unit}", inside

    def _block(self, field: str, index: int) -> str:
        """A new state, for all rows and units."""
        return self._whole(index, self.buffers.buffers[f"{self.new}.{field}"].row)

    def _whole(self, index: int, units: int) -> str:
        """A node's value with a number for every row and unit, also where all are the same."""
        value = self.names[index]
        if index in self.full or index in self.low.blocks:
            return value
        return f"(tl.zeros((M, {self._width(units)}), {self.real}) + {value})"

    # A stage ----------------------------------------------------------------------------------

    def _stage(self) -> None:
        self.products()
        for index in self.stage.reduced:
            self.names[index] = self.assign(index, self.gathered(index))
        for store in self.stage.stores:
            self._store(store)

    def accumulator(self, number: int) -> str:
        """The variable of a sum of products."""
        return f"acc{self.number}_{number}"

    def assign(self, index: int, text: str) -> str:
        """A new variable for a node's value."""
        node = self.graph.nodes[index]
        if node.op not in OPS:
            full = self._is_read_whole(index)
        else:
            width = sizes_of(node.shape)[-1:]  # an operand may be one number for all units
            full = any((a in self.full or a in self.low.blocks)
                       and sizes_of(self.graph.nodes[a].shape)[-1:] == width
                       for a in node.args)  # fmt: skip
        if full:
            self.full.add(index)
        return super().assign(index, text)

    def _is_read_whole(self, index: int) -> bool:
        """Whether what is read, or reduced, has a number for every row and unit of the tile."""
        node = self.graph.nodes[index]
        sizes = sizes_of(node.shape)
        if not self.low.rowed(index) or sizes[-1] != self.units:
            return False
        if node.op in REDUCTIONS:
            return self.tile.units == 1
        place = self.low.place(index)
        has_units = self.tile.units == 1 or (sizes[-1] > 1 and place.strides[-1] != 0)
        return has_units and self.buffers.buffers[place.buffer].row > 0

    def line(self, index: int, text: str) -> None:
        """Write a line that computes a node: before the loop if parameters alone are read."""
        (self.lines if self.low.rowed(index) else self.once).append(text)

    def pointer(self, name: str) -> str:
        """The pointer to a piece of memory, at this step."""
        pointer = super().pointer(name)
        return f"{pointer}_t" if self.buffers.buffers[name].kind == "timed" else pointer

    def load(self, index: int) -> str:
        """A node from memory, unless it is a register's number in every unit."""
        node = self.graph.nodes[index]
        if node.op == "expand" and node.args[0] in self.names:
            (base,) = node.args
            if sizes_of(self.graph.nodes[base].shape)[-1] in (1, self.units):
                return self.names[base]
        if self.low.rowed(index):
            self._about_to_read(self.low.place(index).buffer)
        return super().load(index)

    def fetched(self, index: int, text: str) -> str:
        """What a read gives as it lies in memory; a step's inputs are read at its top."""
        of_step = self.low.rowed(index) and self.buffers.is_input(self.low.place(index).buffer)
        return self.fetched_early(text) if of_step else text

    def _about_to_read(self, name: str) -> None:
        """Let all threads meet where some may have written there what others read."""
        if name.partition(".")[0] in (self.old, self.new):
            raise NotNarrowError
        if name in self.waiting:
            self.lines.append("tl.debug_barrier()")
            self.waiting.clear()
        if name.startswith("temporary."):
            self.read_back.add(name)

    def _store(self, store: Store) -> None:
        name = store.place.buffer
        if name.partition(".")[0] == self.new:
            self.use(store.node)  # it stays in its register
            return
        line = self.stored(store)
        if name.startswith("temporary."):
            self.spare[len(self.lines)] = name
        self.waiting.add(name)
        self.lines.append(line)

    # Products ---------------------------------------------------------------------------------

    def of_product(self, k: int) -> str:
        """What the names of a product's variables end in; one kernel has those of all stages."""
        return f"{self.number}_{k}"

    def product(self, k: int) -> None:
        """Add one product of the stage to its sums."""
        product = self.stage.products[k]
        parts = self._in_registers(product.left)
        if parts is None:
            self._about_to_read(self.low.place(product.left).buffer)
            super().product(k)
            return
        weight = self.graph.nodes[product.weight]
        columns, pointer = int(weight.shape[-1]), self.pointer(weight.attr("name"))
        for j, (variable, first, inner) in enumerate(parts):
            width = self._width(inner)
            _, inside = self._units(inner)
            if width > inner:  # what stands beside the units may be NaN
                variable = f"tl.where({inside}, {variable}, 0.0)"
            self.lines.append(f"a = {variable}.to({self.operand})")
            rows = self._ready(f"k{width}", f"tl.arange(0, {width})[:, None]")
            row = f"({rows} + {first})" if first else rows
            tests = [f"({rows} < {inner})"] if width > inner else []
            tests += [] if self.is_whole else [f"({self.unit} < {self.units})"]
            some = f", mask={' & '.join(tests)}, other=0.0" if tests else ""
            for block, index in sorted(product.blocks.items()):
                shift = f" + {block * self.units}" if block else ""
                text = f"tl.load({pointer} + {row} * {columns}{shift} + {self.unit}{some})"
                if self.holds:
                    text = self._ready(f"w{self.number}_{k}_{block}_{j}", text)
                total = self.accumulator(self.accumulators.of[index])
                self.lines.append(f"{total} = product(a, {text}, {total}, PRECISION)")

    def _in_registers(self, index: int) -> list[tuple[str, int, int]] | None:
        """Variables that make up a left operand, from which column, and how many each."""
        node = self.graph.nodes[index]
        if index in self.names:
            units = sizes_of(node.shape)[-1]
            return None if self._width(units) < LEAST else [(self._whole(index, units), 0, units)]
        if node.op != "concat" or len(sizes_of(node.shape)) > 1:
            return None
        found, first = [], 0
        for arg in node.args:
            parts = self._in_registers(arg)
            if parts is None:
                return None
            found += [(variable, first + start, inner) for variable, start, inner in parts]
            first += int(self.graph.nodes[arg].shape[-1])
        return found
