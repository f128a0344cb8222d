"""One stage as Triton functions that keep their weights: `heldK` reads them, `stageK` has them.

Its products read what other programs wrote. What comes before that, and what after others may go
on, is told by what `resident.py` finds out about all stages.
"""

from collections.abc import Hashable, Set

from flexrnn.engine.cuda.emit.meetings import Access
from flexrnn.engine.cuda.emit.names import ROUNDED, Names, at_next_step
from flexrnn.engine.cuda.emit.stage import StageWriter
from flexrnn.engine.cuda.emit.tiles import LEAST, Tile, power_above
from flexrnn.engine.lowering.places import Place, sizes_of
from flexrnn.engine.lowering.stages import Product, Store

_PIECE = {2: 512, 4: 64, 8: 128}  # columns of a left operand that one product multiplies, by bytes
_AT_ONCE = 2  # of these pieces, how many are on their way at the same time
_CHAINS = 2  # sums that a product adds up side by side
_MATRIX = 8  # columns that a matrix unit multiplies at once
_WARPS = (4, 8)  # of a program, the fewest and the most: see `kernels.resident`


def on_their_way(itemsize: int) -> int:
    """Bytes of shared memory for left operands, of each row; sums of all warps fit there after."""
    return _AT_ONCE * _PIECE[itemsize] * itemsize


class ResidentWriter(StageWriter):
    """Writes `stageK` with weights at hand, and `heldK` that reads them; as `StageWriter`.

    Args:
        rounded: see `twins`.
    """

    def __init__(self, names: Names, number: int, tile: Tile, rounded: frozenset[str]):
        super().__init__(names, number, tile)
        self.rounded = rounded
        self.reads: list[Access] = []
        self.writes: list[Access] = []
        self.loads: dict[int, str] = {}  # lines that read memory that stages write, and which
        self.stores: dict[int, str] = {}  # lines that write memory
        self.held: dict[
            str, tuple[str, str]
        ] = {}  # of weights: which, and the line that reads them
        self.numbers = 0  # that are held
        self.weights: dict[str, None] = {}  # memory that they are read from
        self.programs = tile.count(self.units) * self.stage.domain.heads
        # All that a single program touches is its own, whole rows too.
        single = self.programs == 1 and not self.stage.alone
        self.rows: Hashable = "of the first program" if single else None

    # What is read and written -----------------------------------------------------------------

    def _access(self, place: Place, sizes: tuple[int, ...]) -> Access:
        """An access to a node's units; of a number that many units share, to whole rows."""
        own = self.units == 1 or (sizes[-1] == self.units and place.strides[-1] == 1)
        if self.programs == 1 or not own:
            return Access(place.buffer, self.rows)
        tiles = self.tile.count(self.units)
        return Access(place.buffer, (place.offset, place.strides, self.stage.domain, tiles))

    def load(self, index: int) -> str:
        """Read a node from memory."""
        place = self.low.place(index)
        if self.low.rowed(index):
            self.reads.append(self._access(place, sizes_of(self.graph.nodes[index].shape)))
        if not self.buffers.is_input(place.buffer):
            self.loads[len(self.lines)] = place.buffer
        return super().load(index)

    def stored(self, store: Store) -> str:
        """The line that writes a value to memory."""
        sizes = sizes_of(self.graph.nodes[store.node].shape)
        self.writes.append(self._access(store.place, sizes))
        return super().stored(store)

    def total(self, index: int) -> str:
        """The variable with what all tiles of a row have found."""
        self.reads.append(Access(self.loop.partial_name(index), self.rows))
        return super().total(index)

    def gather(self, index: int) -> None:
        """Leave what this tile has found."""
        self.writes.append(Access(self.loop.partial_name(index), self.rows))
        super().gather(index)

    def write(self) -> None:
        """Write the lines of the stage."""
        self.products()
        for index in self.stage.reduced:
            self.gather(index)
        for store in self.stage.stores:
            self.store(store)
            if at_next_step(store.place.buffer) in self.rounded:
                self.store(store._replace(place=_rounded(store.place)))

    def store(self, store: Store) -> None:
        """Write a value to memory."""
        line = self.stored(store)
        self.stores[len(self.lines)] = store.place.buffer
        self.lines.append(line)

    # Products ---------------------------------------------------------------------------------

    def product(self, k: int) -> None:
        """Add one product of the stage to its sums: runs of blocks that lie side by side."""
        product = self.stage.products[k]
        self.reads.append(Access(self._left(product).buffer, self.rows))
        runs, shares = _runs(product), self._shares(product)
        if shares:
            self.lines.append(f"shares{k}: tl.constexpr = {shares}")
        pieces = self._pieces(k)
        chains = range(min(_CHAINS, len(pieces)))
        totals: list[list[str]] = []
        for r, run in enumerate(runs):
            totals.append([f"total{k}_{r}_{c}" for c in chains])
            width = power_above(len(run)) * self.tile.units
            zeros = f"tl.zeros((M, {width}), {self.real})"
            zeros = f"of_all({zeros}, shares{k})" if shares else zeros
            self.lines += [f"{t} = {zeros}" for t in totals[-1]]
        self.lines += [f"a{q} = {text}" for q, text in enumerate(pieces[:_AT_ONCE])]
        for q in range(len(pieces)):
            a = f"a{q % _AT_ONCE}"
            for r, run in enumerate(runs):
                name, total = f"w{self.number}_{k}_{r}_{q}", totals[r][q % len(chains)]
                self._hold(product, run, name, q)
                self.lines.append(f"{total} = product({a}, {name}, {total}, PRECISION)")
            self.lines += [f"{a} = {text}" for text in pieces[q + _AT_ONCE : q + _AT_ONCE + 1]]
        for run, total in zip(runs, totals, strict=True):
            variable = f"total{k}"
            text = " + ".join(total)
            text = f"together({text}, shares{k})" if shares else text
            self.lines.append(f"{variable} = {text}")
            for block, part in zip(run, self._columns(variable, len(run)), strict=False):
                acc = self.accumulator(self.accumulators.of[product.blocks[block]])
                self.lines.append(f"{acc} += {part}")

    def _left(self, product: Product) -> Place:
        """Where a left operand lies: of a state that others than products read, its rounded twin.

        What others read of it stays in its program.
        """
        place = self.low.place(product.left)
        return _rounded(place) if place.buffer in self.rounded else place

    def _shares(self, product: Product) -> str:
        """Among how many warps the columns of a left operand are shared out: an expression that is
        known when a kernel is compiled, or nothing where they never are.

        Triton lays warps out over the rows and columns of a result. A narrow one has not enough of
        them, and warps read the same weights and multiply the same numbers. So each gets columns of
        the left operand for itself, if a matrix unit can fill itself with them, and in the end what
        all have found is added up, where the left operand lay. Without matrix units threads share
        out a result evenly, and read more if its inner columns are.
        """
        width = power_above(max(map(len, _runs(product)))) * self.tile.units
        without = width // _MATRIX  # warps that share nothing
        most = self._chunk(product) // self.buffers.least
        if without >= _WARPS[-1] or most < _WARPS[0]:
            return ""
        tests = [f"WARPS > {without}"] if without >= _WARPS[0] else []
        tests += [f"WARPS <= {most}"] if most < _WARPS[-1] else []
        tests += ['PRECISION == "tf32"'] if self.operand == "tl.float32" else []
        return f"WARPS if {' and '.join(tests)} else 1" if tests else "WARPS"

    def _chunk(self, product: Product) -> int:
        """Columns of the left operand in a piece: the most with which the fewest are wasted."""
        inner = int(self.graph.nodes[product.weight].shape[-2])
        itemsize = {"tl.float64": 8, "tl.float32": 4}.get(self.operand, 2)
        most = min(_PIECE[itemsize], max(LEAST, power_above(inner)))
        sizes = [most >> n for n in range(3) if most >> n >= LEAST]
        return min(sizes, key=lambda size: (-(-inner // size) * size, -size))

    def _pieces(self, k: int) -> list[str]:
        """Reads of the left operand."""
        product = self.stage.products[k]
        inner, chunk = int(self.graph.nodes[product.weight].shape[-2]), self._chunk(product)
        left = self._left(product)
        sizes = sizes_of(self.graph.nodes[product.left].shape)
        address = self.address(left, (*sizes[:-1], 1))
        live = "live"
        if self._shares(product):
            live = f"live{k}"
            self.lines += [f"k = columns({chunk}, shares{k})", f"{live} = of_all(live, shares{k})"]
        else:
            self.lines.append(f"k = tl.arange(0, {chunk})[None, :]")
        texts = []
        for first in range(0, inner, chunk):
            shift = f" + {first}" if first else ""
            mask = live if first + chunk <= inner else f"{live} & (k < {inner - first})"
            load = f"tl.load({address} + k{shift}, mask={mask}, other=0.0)"
            texts.append(f"{load}.to({self.operand})")
        return texts

    def _hold(self, product: Product, run: list[int], name: str, q: int) -> None:
        """Read one piece of some blocks of a weight."""
        weight = self.graph.nodes[product.weight]
        inner, columns = int(weight.shape[-2]), int(weight.shape[-1])
        chunk, tile = self._chunk(product), self.tile.units
        width = power_above(len(run)) * tile
        memory = weight.attr("name")
        self.weights[memory] = None
        head = f" + head * {inner * columns}" if len(weight.shape) == 3 else ""
        unit = f"{self.first_unit()}j % {tile}" if width > tile else f"{self.first_unit()}j"
        column = f"j // {tile} * {self.units} + {unit}" if width > tile else unit
        column += f" + {run[0] * self.units}" if run[0] else ""
        row = f"(k + {q * chunk})" if q else "k"
        tests = [f"(k < {inner - q * chunk})"] if (q + 1) * chunk > inner else []
        tests += [] if self.is_whole else [f"({unit} < {self.units})"]
        tests += [f"(j < {len(run) * tile})"] if width > len(run) * tile else []
        some = f", mask={' & '.join(tests)}, other=0.0" if tests else ""
        pointer = self.buffers.buffer(memory)
        shares = self._shares(product)
        k = f"rows_of({chunk}, {shares})" if shares else f"tl.arange(0, {chunk})[:, None]"
        self.held[name] = (
            f"k, j = {k}, tl.arange(0, {width})[None, :]",
            f"{name} = tl.load({pointer}{head} + {row} * {columns} + {column}{some})",
        )
        self.numbers += chunk * width

    def _reads(self) -> list[str]:
        """Lines that read the weights; which rows and columns is said where it changes."""
        lines, before = list[str](), ""
        for which, read in self.held.values():
            lines += [read] if which == before else [which, read]
            before = which
        return lines

    def _columns(self, variable: str, count: int) -> list[str]:
        """Blocks of columns of a sum, one after another, as variables of their own."""
        blocks, units = power_above(count), self.tile.units
        if blocks == 1:
            return [variable]
        twos = ", ".join(["2"] * (blocks.bit_length() - 1))
        last = f"tl.permute(tl.reshape({variable}, (M, {blocks}, {units})), (0, 2, 1))"
        self.lines.append(f"{variable}_ = tl.reshape({last}, (M, {units}, {twos}))")
        return self._halved(f"{variable}_", blocks)

    def _halved(self, variable: str, count: int) -> list[str]:
        if count == 1:
            return [variable]
        even, odd = f"{variable}0", f"{variable}1"
        self.lines.append(f"{even}, {odd} = tl.split({variable})")
        pairs = zip(self._halved(even, count // 2), self._halved(odd, count // 2), strict=True)
        return [name for pair in pairs for name in pair]

    # Functions --------------------------------------------------------------------------------

    def functions(self, *, waits: bool, arrives: bool, own: Set[str], needed: Set[str]) -> str:
        """The functions `stageK` and, where there are weights, `heldK`.

        Args:
            waits: for what others have written; else all is read where it is used.
            arrives: others wait for what it writes.
            own: memory at which no other program looks.
            needed: memory that some stage reads, or that is there at the next step.
        """
        early = [at for at, name in self.loads.items() if waits and name in own]
        late = [at for at, name in self.stores.items() if name in own or name not in needed]
        others = [line for at, line in enumerate(self.lines) if at not in {*early, *late}]
        pointers = [self.buffers.buffer(name) for name in self.used]
        given = ", ".join((*pointers, *self.held))
        parts = [
            "@jit",
            f"def stage{self.number}(B, count, rows, tile, meeting, met, {given}, "
            "M: tl.constexpr, PRECISION: tl.constexpr, WARPS: tl.constexpr):",
            *(f"    {line}" for line in (*self.head(), *self.early)),
            *(f"    {self.lines[at]}" for at in early),
            *(["    wait(meeting, met)"] if waits else []),
            *(f"    {line}" for line in others),
            *(["    arrive(meeting)"] if arrives else []),
            *(f"    {self.lines[at]}" for at in late),
            "",
        ]
        if self.held:
            weights = ", ".join(map(self.buffers.buffer, self.weights))
            which = [line for line in self.which_units() if line.startswith("head")]
            parts += [
                "",
                "@jit",
                f"def held{self.number}(tile, {weights}, "
                "PRECISION: tl.constexpr, WARPS: tl.constexpr):",
                *(f"    {line}" for line in which),
                *(f"    {line}" for line in self._reads()),
                f"    return {', '.join(self.held)}",
                "",
            ]
        return "\n".join(parts)


def _rounded(place: Place) -> Place:
    return place._replace(buffer=place.buffer + ROUNDED)


def _runs(product: Product) -> list[list[int]]:
    """Blocks of a product that lie side by side."""
    runs: list[list[int]] = []
    for block in sorted(product.blocks):
        if runs and runs[-1][-1] + 1 == block:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs
