"""One stage as a Triton function: its products and values for a tile of rows and units.

What stages hand to one another goes through memory, which the caches hold. So the width of a cell
has no limit, and the tiles of a stage may as well be programs of their own.
"""

from flexrnn.engine.cuda.emit.names import Names
from flexrnn.engine.cuda.emit.tiles import Tile
from flexrnn.engine.cuda.emit.values import NEUTRAL, Values
from flexrnn.engine.cuda.expression import expression


class StageWriter(Values):
    """Writes `stageK`, for stage K; arguments as in `Values`."""

    def __init__(self, names: Names, number: int, tile: Tile):
        super().__init__(names)
        self.turn_to(number, tile)
        self.inside = "live" if self.is_whole else "inside"

    def text(self) -> str:
        """The function."""
        stage, tile, units = self.stage, self.tile, self.units
        self.products()
        for index in stage.reduced:
            self._gather(index)
        for store in stage.stores:
            self.lines.append(self.stored(store))
        tiles, heads = tile.count(units), stage.domain.heads
        head = {True: [], False: [f"head = tile // {tiles}" if tiles > 1 else "head = tile"]}
        which = f"tile % {tiles}" if heads > 1 else "tile"
        first = "" if tiles == 1 else f"{which} * {tile.units} + "
        many = {0: "", 1: "1 product, "}.get(
            len(stage.products), f"{len(stage.products)} products, "
        )
        over = f"{heads} heads of {units}" if heads > 1 else f"{units}"
        pointers = ", ".join(self.buffers.buffer(name) for name in self.used)
        return "\n".join([
            "@jit",
            f"def stage{self.number}(B, count, rows, tile, {pointers}, "
            "M: tl.constexpr, PRECISION: tl.constexpr):",
            f"    # Stage {self.number}: {many}{len(stage.values)} values of {over} units.",
            *(f"    {line}" for line in head[heads == 1]),
            "    row = rows[:, None]",
            "    live = row < count",
            f"    unit = {first}tl.arange(0, {tile.units})[None, :]",
            *([] if self.is_whole else [f"    inside = live & (unit < {units})"]),
            *(f"    {line}" for line in self.lines),
            "",
        ])  # fmt: skip

    # Row reductions: every tile leaves what it has found; whoever wants the whole adds that up ----

    def _gather(self, index: int) -> None:
        found = self.gathered(index)
        tiles = self.tile.count(self.units)
        which = {1: "0"}.get(tiles, f"tile % {tiles}" if self.stage.domain.heads > 1 else "tile")
        self.lines.append(f"tl.store({self._partial(index, which)}, {found}, mask=live)")

    def _partial(self, index: int, tile: str) -> str:
        pointer = self.pointer(self.loop.partial_name(index))
        heads = self.low.partial[index].heads
        row = "row" if tile == "0" else f"({tile} * B + row)"
        return f"{pointer} + {row}" + (f" * {heads} + head" if heads > 1 else "")

    def total(self, index: int) -> str:
        """The variable with what all tiles of a row have found."""
        op, tiles = self.graph.nodes[index].op, self.buffers.parts[self.low.gathered[index]]
        if tiles == 1:
            return self.assign(index, f"tl.load({self._partial(index, '0')}, mask=live, other=0.0)")
        name = f"v{len(self.names)}"
        part = f"tl.load({self._partial(index, 'part')}, mask=live, other=0.0)"
        joined = f"{name} + {part}" if op == "sum" else expression("maximum", name, part)
        self.lines += [
            f"{name} = tl.full((M, 1), {NEUTRAL[op]}, {self.real})",
            f"for part in range({tiles}):",
            f"    {name} = {joined}",
        ]
        return name
