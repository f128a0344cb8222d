"""One stage as a Triton function: its products and values for a tile of rows and units.

What stages hand to one another goes through memory, which the caches hold. So the width of a cell
has no limit, and the tiles of a stage may as well be programs of their own.
"""

from keyword import kwlist

from flexrnn.engine.cuda.emit.names import Names
from flexrnn.engine.cuda.emit.tiles import Tile, power_above
from flexrnn.engine.cuda.emit.values import NEUTRAL, Values

_FEW = 32  # units of a tile whose inputs, converted, leave registers enough


class StageWriter(Values):
    """Writes `stageK`, for stage K; arguments as in `Values`."""

    def __init__(self, names: Names, number: int, tile: Tile):
        super().__init__(names)
        self.turn_to(number, tile)
        self.inside = "live" if self.is_whole else "inside"
        self.read_back: set[str] = set()  # memory that is read

    def text(self) -> str:
        """The function."""
        return self.readable(self._text(), kwlist)

    def _text(self) -> str:
        self.write()
        pointers = ", ".join(self.buffers.buffer(name) for name in self.used)
        return "\n".join([
            "@jit",
            f"def stage{self.number}(B, count, rows, tile, {pointers}, "
            "M: tl.constexpr, PRECISION: tl.constexpr):",
            *(f"    {line}" for line in (*self.head(), *self.early, *self.lines)),
            "",
        ])  # fmt: skip

    def write(self) -> None:
        """Write the lines of the stage."""
        self.products()
        for index in self.stage.reduced:
            self.gather(index)
        for store in self.stage.stores:
            self.lines.append(self.stored(store))

    def head(self) -> list[str]:
        """Lines that say which rows and units there are."""
        stage, units = self.stage, self.units
        many = {0: "", 1: "1 product, "}.get(
            len(stage.products), f"{len(stage.products)} products, "
        )
        heads = stage.domain.heads
        over = f"{heads} heads of {units}" if heads > 1 else f"{units}"
        over = f"{over} unit" if units == 1 else f"{over} units"
        return [
            f"# Stage {self.number}: {many}{len(stage.values)} values of {over}.",
            *self.which_units(),
            "row = rows[:, None]",
            "live = row < count",
            *([] if self.is_whole else [f"inside = live & (unit < {units})"]),
        ]

    def which_units(self) -> list[str]:
        """Lines that set the head, where there are several, and the units."""
        tiles, heads = self.tile.count(self.units), self.stage.domain.heads
        lines = [f"head = tile // {tiles}" if tiles > 1 else "head = tile"] if heads > 1 else []
        return [*lines, f"unit = {self.first_unit()}tl.arange(0, {self.tile.units})[None, :]"]

    def first_unit(self) -> str:
        """What a tile's first unit adds to a number of a unit within it."""
        several = self.tile.count(self.units) > 1
        return f"{self.which_tile()} * {self.tile.units} + " if several else ""

    def which_tile(self) -> str:
        """The number of a tile among those of its head."""
        tiles = self.tile.count(self.units)
        return {1: "0"}.get(tiles, f"tile % {tiles}" if self.stage.domain.heads > 1 else "tile")

    def present(self) -> str:
        """How many units of the stage a tile has."""
        width = self.tile.units
        if self.is_whole:
            return str(width)
        return f"tl.minimum({self.units} - {self.which_tile()} * {width}, {width})"

    def load(self, index: int) -> str:
        """Read a node from memory; early what the loop only reads."""
        lines = self.lines
        self.read_back.add(self.low.place(index).buffer)
        if self.tile.units <= _FEW and self._is_input(index):
            self.lines = self.early
        try:
            return super().load(index)
        finally:
            self.lines = lines

    def fetched(self, index: int, text: str) -> str:
        """What a read gives as it lies in memory, which takes a wide tile fewer registers."""
        wide = self.tile.units > _FEW and self._is_input(index)
        return self.fetched_early(text) if wide else text

    def _is_input(self, index: int) -> bool:
        return self.buffers.is_input(self.low.place(index).buffer)

    # Row reductions: every tile leaves what it has found; whoever wants the whole adds that up ----

    def gather(self, index: int) -> None:
        """Leave what this tile has found."""
        found = self.gathered(index)
        place = self._partial(index, self.which_tile())
        self.lines.append(f"tl.store({place}, {found}, mask=live)")

    def _partial(self, index: int, tile: str) -> str:
        pointer = self.pointer(self.loop.partial_name(index))
        heads = self.low.partial[index].heads
        row = "row" if tile == "0" else f"({tile} * B.to(tl.int64) + row)"
        return f"{pointer} + {row}" + (f" * {heads} + head" if heads > 1 else "")

    def total(self, index: int) -> str:
        """The variable with what all tiles of a row have found."""
        node, units = self.graph.nodes[index], self.low.partial[index].units
        tile = self.buffers.tiles[self.low.gathered[index]]
        tiles = tile.count(units)
        if tiles == 1:
            return self.assign(index, f"tl.load({self._partial(index, '0')}, mask=live, other=0.0)")
        width = power_above(tiles)
        some = "live" if width == tiles else f"live & (part < {tiles})"

        def found(reduction: int) -> str:
            place, other = self._partial(reduction, "part"), NEUTRAL[self.graph.nodes[reduction].op]
            return f"tl.load({place}, mask={some}, other={other})"

        self.lines.append(f"part = tl.arange(0, {width})[None, :]")
        if node.op != "moment":
            return self.assign(index, f"row_{node.op}({found(index)})")
        total = node.args[1]
        self.lines.append(f"have = tl.minimum({units} - part * {tile.units}, {tile.units})")
        given = f"{found(index)}, {found(total)}, have, {self.use(total)} / {units}"
        return self.assign(index, f"whole_moment({given})")
