"""The products of a stage: tiles of a few rows and vectors of columns, summed in registers."""

from enum import Enum
from typing import NamedTuple

from flexrnn.engine.cpu.emit.context import Context
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import Product

_WIDE, _NARROW = 4, 2  # vectors of columns in a tile, where one row of blocks has fewer
_MANY = 24  # vectors of sums that fill the units of multiplication, and leave registers for weights
_MOST_ROWS = 8  # of a tile: each weight that is read serves as many
_CHAINS = 4  # sums that are under way at once, for an addition takes four cycles to come out


class Shape(Enum):
    """For which calls a loop is compiled."""

    FEW = "few"  # steps and rows: weights are read where they lie
    ROW = "row"  # one row, and many steps
    ROWS = "rows"  # any number of rows


class Packed(NamedTuple):
    """A weight that is laid out anew before the loop, so that tiles read it in order."""

    pointer: str  # of the frame
    weight: str  # the input of the loop's graph
    stage: int
    blocks: tuple[int, ...]  # of columns, each as many as the stage has units
    inner: str  # size: K
    per_head: bool  # whether every head has a weight of its own
    width: int  # vectors of every block in a tile
    shape: tuple[int, int, int]  # heads, K, columns of a block


class Tile(NamedTuple):
    """The shape of a stage's tiles."""

    rows: int  # at most
    width: int  # vectors of every sum
    at_once: int  # vectors of a row that are summed together, in registers
    chains: int  # sums of alternate k that are kept apart until the end


def tile_of(sums: int, registers: int, shape: Shape, *, full: bool) -> Tile:
    """The shape of tiles of so many sums.

    Where registers are few, a row's sums are made two or three at a time, for more rows: a core
    waits for weights before it waits for additions.

    Args:
        sums: how many sums of products a unit has at once.
        registers: how many vectors of sums the machine holds.
        shape: of the calls. Where memory is what limits, a narrow tile divides better.
        full: every product adds to all sums that it shares with others.
    """
    if shape is Shape.FEW:
        return Tile(1, 1, 1, 1)
    if shape is Shape.ROW:
        return Tile(1, 1, sums, max(1, _CHAINS // sums))
    apart = full and registers < _MANY
    width = max(1, (_NARROW if apart else _WIDE) // sums)
    vectors = sums * width
    at_once = -(-vectors // max(1, vectors // _NARROW)) if apart else vectors
    return Tile(min(_MOST_ROWS, max(1, registers // at_once)), width, at_once, 1)


class Products:
    """Writes `productsK`, for stage K."""

    def __init__(
        self,
        context: Context,
        number: int,
        accumulators: Accumulators,
        tile: Tile,
        *,
        in_place: bool = False,
    ):
        self.context, self.number, self.tile, self.in_place = context, number, tile, in_place
        self.stage = context.loop.stages[number]
        self.accumulators = accumulators
        self.packed: list[Packed] = []
        # Of every product where its left operand begins, and how far rows are apart.
        self.left: list[tuple[str, str]] = []
        for k, product in enumerate(self.stage.products):
            self._lay_out(k, product)

    def _lay_out(self, k: int, product: Product) -> None:
        context, number = self.context, self.number
        name = f"{number}_{k}"
        weight = context.graph.nodes[product.weight]
        inner, per_head = int(weight.shape[-2]), len(weight.shape) == 3
        packed = Packed(
            pointer=f"packed{name}",
            weight=weight.attr("name"),
            stage=number,
            blocks=tuple(sorted(product.blocks)),
            inner=context.size(f"K{name}", inner),
            per_head=per_head,
            width=self.tile.width,
            shape=(self.stage.domain.heads if per_head else 1, inner, self.stage.domain.units),
        )
        self.packed.append(packed)
        left = context.low.place(product.left)
        sizes = sizes_of(context.graph.nodes[product.left].shape)
        address = context.address(left, (*sizes[:-1], 1), number)  # of k = 0
        self.left.append((address, f"f.{context.buffer(left.buffer)}_row"))

    def text(self) -> str:
        """The function."""
        return self._in_place() if self.in_place else self._in_order()

    def _in_place(self) -> str:
        """Weights are read where they lie."""
        lines = [
            "template <int R>",
            f"INLINE void products{self.number}(const Frame& f, long r, long head, long tile, "
            "Ahead, REAL* out) {",
            "    const long unit = tile * VL;",
            f"    const int units = int(least(VL, f.W{self.number} - unit));",
            f"    for (int i = 0; i < {self.accumulators.count}; i++)",
            "        *(vec*)(out + i * VL) = vec{};",
        ]
        for k, product in enumerate(self.stage.products):
            packed, (address, _) = self.packed[k], self.left[k]
            sums = [self.accumulators.of[product.blocks[block]] for block in packed.blocks]
            head = "head" if packed.per_head else "0"
            lines += [
                "    {",
                f"        const int sums[] = {{{', '.join(map(str, sums))}}};",
                f"        add_in_place(out, sums, {address}, f.p, f.{packed.pointer}, "
                f"f.{packed.pointer}_count, {head}, unit, units);",
                "    }",
            ]
        return "\n".join([*lines, "}"])

    def _in_order(self) -> str:
        """Weights have been packed; sums stay in registers."""
        lines = [
            "template <int R>",
            f"INLINE void products{self.number}(const Frame& f, long r, long head, long tile, "
            "Ahead next, REAL* out) {",
        ]
        for products, sums in self.accumulators.groups:
            lines += [f"    {line}" for line in self._group(products, sums)]
        return "\n".join([*lines, "}"])

    def _group(self, products: list[int], sums: list[int]) -> list[str]:
        """Products that share sums, and the sums into the tile."""
        width, at_once = self.tile.width, self.tile.at_once
        places = [s * width + v for s in sums for v in range(width)]
        parts = [places[k : k + at_once] for k in range(0, len(places), at_once)]
        return [line for part in parts for line in self._part(products, part)]

    def _part(self, products: list[int], places: list[int]) -> list[str]:
        """The sums at these places in the tile."""
        row, chains = self.accumulators.count * self.tile.width, self.tile.chains
        lines = ["{", f"    vec acc[{chains}][R][{len(places)}] = {{}};"]
        for k in products:
            lines += [f"    {line}" for line in self._term(k, self.stage.products[k], places)]
        lines += ["#pragma GCC unroll 8", "    for (int i = 0; i < R; i++) {"]
        for j, place in enumerate(places):
            total = " + ".join(f"acc[{chain}][i][{j}]" for chain in range(chains))
            lines.append(f"        *(vec*)(out + (i * {row} + {place}) * VL) = {total};")
        return [*lines, "    }", "}"]

    def _term(self, k: int, product: Product, places: list[int]) -> list[str]:
        """Add one product to its sums, which have these places in the tile."""
        tile, blocks = self.tile, sorted(product.blocks)
        packed, (address, row) = self.packed[k], self.left[k]
        panel = len(blocks) * tile.width
        tiles = f"ceil_div(f.W{self.number}, {tile.width} * VL)"
        which = f"head * {tiles} + tile" if packed.per_head else "tile"
        onward = "next.at" if packed.per_head else f"next.at % {tiles}"
        vectors = [
            (self.accumulators.of[product.blocks[block]] * tile.width + v, b * tile.width + v)
            for b, block in enumerate(blocks)
            for v in range(tile.width)
        ]
        pairs = [(places.index(place), j) for place, j in vectors if place in places]
        if not pairs:
            return []
        lines = [
            "{",
            f"    const REAL* a = {address};",
            f"    const long row = {row};",
            f"    const long inner = {packed.inner}, size = inner * {panel} * VL;",
            f"    const REAL* w = f.{packed.pointer} + ({which}) * size;",
            f"    const REAL* ahead = next.of(f.{packed.pointer} + ({onward}) * size, inner * VL, "
            f"{panel}, w);",
            "    long k = 0;",
        ]
        if tile.chains > 1:
            lines += self._loop(pairs, panel, tile.chains)
        return [*lines, *self._loop(pairs, panel, 1), "}"]

    def _loop(self, pairs: list[tuple[int, int]], panel: int, steps: int) -> list[str]:
        """`steps` values of k at once, each into a chain of its own."""
        lines = [f"    for (; k + {steps} <= inner; k += {steps}, w += {steps * panel} * VL) {{"]
        if steps == 1:
            lines.append(f"        if (R > 2) hint<{panel}>(w, ahead + k * VL);")
        for step in range(steps):
            sums = " ".join(f"acc[{step}][i][{acc}] += x * w{step}_{j};" for acc, j in pairs)
            lines += [
                *(f"        const vec w{step}_{j} = *(const vec*)(w + {step * panel + j} * VL);"
                  for _, j in pairs),
                "#pragma GCC unroll 8",
                "        for (int i = 0; i < R; i++) {",
                f"            const vec x = broadcast(a[i * row + k + {step}]);",
                f"            {sums}",
                "        }",
            ]  # fmt: skip
        return [*lines, "    }"]
