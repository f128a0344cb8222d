"""The products of a stage: tiles of a few rows and vectors of columns, summed in registers."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from flexrnn.engine.cpu.emit.context import Context
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import Product

_WIDE, _NARROW = 4, 2  # vectors of columns in a tile, where one row of blocks has fewer
_MANY = 24  # vectors of sums that fill the units of multiplication, and leave registers for weights
_MOST_ROWS = 8  # of a tile: each weight that is read serves as many
ROWS_IN_PLACE = 4  # likewise, where weights are read where they lie
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
    at_once: int  # sums of a row that are made together, in registers
    few: int  # rows up to which all sums are; 0 where those of one are too many
    chains: int  # sums of alternate k that are kept apart until the end


def tile_of(sums: int, registers: int, shape: Shape, *, full: bool, vectors: int) -> Tile:
    """The shape of tiles of so many sums.

    Where registers are few, the sums of many rows are made two or three of a row at a time: a core
    waits for weights before it waits for additions. Those of few rows fit all at once, and the
    weights are read in one go.

    Args:
        sums: how many sums of products a unit has at once.
        registers: how many vectors of sums the machine holds.
        shape: of the calls. Where memory is what limits, a narrow tile divides better.
        full: every product adds to all sums that it shares with others.
        vectors: of a row's units. What the last tile has beyond them is multiplied in vain.
    """
    if shape is Shape.FEW:
        return Tile(ROWS_IN_PLACE, 1, sums, ROWS_IN_PLACE, 1)
    if shape is Shape.ROW:
        return Tile(1, 1, sums, 1, max(1, _CHAINS // sums))
    apart = full and registers < _MANY
    at_once = -(-sums // max(1, sums // _NARROW)) if apart else sums

    def rows_of(width: int) -> int:
        return min(_MOST_ROWS, max(1, registers // (at_once * width)))

    def time(width: int) -> float:
        """Of a row's tiles, where a core loads as many vectors in a cycle as it multiplies."""
        rows, columns = rows_of(width), at_once * width
        return -(-vectors // width) * max(columns, (columns + rows) / rows)

    width = min(range(max(1, (_NARROW if apart else _WIDE) // sums), 0, -1), key=time)
    rows = rows_of(width)
    few = min(rows, registers // (sums * width)) if at_once < sums else rows
    return Tile(rows, width, at_once, few, 1)


class Products:
    """Writes the products of stage K: `productsK`, and `partsK` for more than a few rows."""

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
        # Of every product its weight, in as many pieces as its sums are made one after another.
        self.packed: list[list[Packed]] = []
        # Of every product where its left operand begins, and how far rows are apart.
        self.left: list[tuple[str, str]] = []
        for k, product in enumerate(self.stage.products):
            self._lay_out(k, product)

    def _lay_out(self, k: int, product: Product) -> None:
        context, number, sum_of = self.context, self.number, self.accumulators.of
        name = f"{number}_{k}"
        weight = context.graph.nodes[product.weight]
        inner, per_head = int(weight.shape[-2]), len(weight.shape) == 3
        parts = self._cut(next(s for products, s in self.accumulators.groups if k in products))
        blocks = {block: sum_of[node] for block, node in sorted(product.blocks.items())}
        self.packed.append(
            [
                Packed(
                    pointer=f"packed{name}" + (f"_{part}" if len(parts) > 1 else ""),
                    weight=weight.attr("name"),
                    stage=number,
                    blocks=tuple(block for block, which in blocks.items() if which in sums),
                    inner=context.size(f"K{name}", inner),
                    per_head=per_head,
                    width=self.tile.width,
                    shape=(
                        self.stage.domain.heads if per_head else 1,
                        inner,
                        self.stage.domain.units,
                    ),
                )
                for part, sums in enumerate(parts)
            ]
        )
        left = context.low.place(product.left)
        sizes = sizes_of(context.graph.nodes[product.left].shape)
        address = context.address(left, (*sizes[:-1], 1), number)  # of k = 0
        self.left.append((address, f"f.{context.buffer(left.buffer)}_row"))

    def _cut(self, sums: list[int]) -> list[list[int]]:
        """Sums that products share, cut into those that are made together."""
        at_once = self.tile.at_once
        return [sums[k : k + at_once] for k in range(0, len(sums), at_once)]

    @property
    def weights(self) -> list[Packed]:
        """All that has to be packed."""
        return [packed for parts in self.packed for packed in parts]

    def text(self) -> str:
        """The functions."""
        return self._in_place() if self.in_place else self._in_order()

    def _in_place(self) -> str:
        """Weights are read where they lie."""
        apart = f"{self.accumulators.count} * VL"
        lines = [
            "const long unit = tile * VL;",
            f"const int units = int(least(VL, f.W{self.number} - unit));",
            f"for (int i = 0; i < R * {self.accumulators.count}; i++)",
            "    *(vec*)(out + i * VL) = vec{};",
        ]
        for k, product in enumerate(self.stage.products):
            (packed,), (address, row) = self.packed[k], self.left[k]
            sums = [self.accumulators.of[product.blocks[block]] for block in packed.blocks]
            head = "head" if packed.per_head else "0"
            lines += [
                "{",
                f"    const int sums[] = {{{', '.join(map(str, sums))}}};",
                f"    add_in_place<R>(out, {apart}, sums, {address}, {row}, f.p, "
                f"f.{packed.pointer}, f.{packed.pointer}_count, {head}, unit, units);",
                "}",
            ]
        return self._function("INLINE", self.named(1), lines)

    def named(self, rows: int) -> str:
        """The function for so many rows."""
        return f"{'products' if rows <= self.tile.few else 'parts'}{self.number}"

    def _in_order(self) -> str:
        """Weights have been packed; sums stay in registers."""
        few, many = list[str](), list[str]()
        for products, sums in self.accumulators.groups:
            cut = self._cut(sums)
            few += self._part(products, range(len(cut)), sums)
            for k, part in enumerate(cut):
                many += self._part(products, [k], part)
        texts = [self._function("INLINE", self.named(1), few)] if self.tile.few else []
        if self.tile.few < self.tile.rows:
            # By itself: what surrounds it would want registers, too, all of which are taken.
            texts.append(self._function("ALONE", self.named(self.tile.rows), many))
        return "\n".join(texts)

    def _function(self, how: str, name: str, lines: list[str]) -> str:
        head = "const Frame& f, long r, long head, long tile, Ahead next, REAL* out"
        body = (f"    {line}" for line in lines)
        return "\n".join(["template <int R>", f"{how} void {name}({head}) {{", *body, "}"])

    def _part(self, products: list[int], parts: Sequence[int], sums: list[int]) -> list[str]:
        """These sums into the tile, for which these parts of weights are read."""
        width, chains = self.tile.width, self.tile.chains
        row = self.accumulators.count * width
        places = [s * width + v for s in sums for v in range(width)]
        lines = ["{", f"    vec acc[{chains}][R][{len(places)}] = {{}};"]
        for k in products:
            packed = [self.packed[k][part] for part in parts]
            lines += [f"    {line}" for line in self._term(k, packed, places)]
        lines += ["#pragma GCC unroll 8", "    for (int i = 0; i < R; i++) {"]
        for j, place in enumerate(places):
            total = " + ".join(f"acc[{chain}][i][{j}]" for chain in range(chains))
            lines.append(f"        *(vec*)(out + (i * {row} + {place}) * VL) = {total};")
        return [*lines, "    }", "}"]

    def _term(self, k: int, weights: list[Packed], places: list[int]) -> list[str]:
        """Add one product to the sums at these places in the tile."""
        tile, (address, row) = self.tile, self.left[k]
        tiles = f"ceil_div(f.W{self.number}, {tile.width} * VL)"
        head, onward = "tile", f"next.at % {tiles}"
        if weights[0].per_head:
            head, onward = f"head * {tiles} + tile", "next.at"
        lines = ["{", f"    const REAL* a = {address};", f"    const long row = {row};"]
        lines.append(f"    const long inner = {weights[0].inner};")
        reads = []
        for part, packed in enumerate(weights):
            panel, begin = len(packed.blocks) * tile.width, f"f.{packed.pointer}"
            size = f"(inner * {panel} * VL)"
            lines += [
                f"    const REAL* w{part} = {begin} + ({head}) * {size};",
                f"    const REAL* ahead{part} = next.of({begin} + ({onward}) * {size}, inner * VL, "
                f"{panel}, w{part});",
            ]
            reads.append(self._read(k, packed, places))
        lines.append("    long k = 0;")
        if tile.chains > 1:
            lines += self._loop(reads, tile.chains)
        return [*lines, *self._loop(reads, 1), "}"]

    def _read(self, k: int, packed: Packed, places: list[int]) -> list[int]:
        """Of each vector of a panel the sum to which it adds, as a number among these."""
        width, blocks = self.tile.width, self.stage.products[k].blocks
        sums = (self.accumulators.of[blocks[block]] for block in packed.blocks)
        return [places.index(s * width + v) for s in sums for v in range(width)]

    def _loop(self, reads: list[list[int]], steps: int) -> list[str]:
        """`steps` values of k at once, each into a chain of its own."""
        panels = [len(read) for read in reads]
        onward = ", ".join(f"w{p} += {steps * panel} * VL" for p, panel in enumerate(panels))
        lines = [f"    for (; k + {steps} <= inner; k += {steps}, {onward}) {{"]
        if steps == 1:
            hints = (f"hint<{panel}>(w{p}, ahead{p} + k * VL);" for p, panel in enumerate(panels))
            lines += [f"        if (R > 2) {hint}" for hint in hints]
        vectors = [(p, j, acc) for p, read in enumerate(reads) for j, acc in enumerate(read)]
        for step in range(steps):
            names = [f"v{step}_{n}" for n in range(len(vectors))]
            sums = " ".join(
                f"acc[{step}][i][{acc}] += x * {name};"
                for name, (*_, acc) in zip(names, vectors, strict=True)
            )
            lines += [
                *(f"        const vec {name} = *(const vec*)(w{p} + {step * panels[p] + j} * VL);"
                  for name, (p, j, _) in zip(names, vectors, strict=True)),
                "#pragma GCC unroll 8",
                "        for (int i = 0; i < R; i++) {",
                f"            const vec x = broadcast(a[i * row + k + {step}]);",
                f"            {sums}",
                "        }",
            ]  # fmt: skip
        return [*lines, "    }"]
