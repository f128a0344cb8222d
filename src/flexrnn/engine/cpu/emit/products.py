"""The products of a stage: tiles of a few rows and vectors of columns, summed in registers."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from flexrnn.engine.cpu.cpp import vector, vector_of_row, vectors
from flexrnn.engine.cpu.emit.context import Context, Packed
from flexrnn.engine.cpu.emit.functions import Functions, Sums
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.places import sizes_of
from flexrnn.engine.lowering.stages import Product

_WIDE, _NARROW = 4, 2  # vectors of columns in a tile, where one row of blocks has fewer
_MANY = 24  # vectors of sums that fill the units of multiplication, and leave registers for weights
_MOST_ROWS = 8  # of a tile: each weight that is read serves as many
ROWS_IN_PLACE = 4  # likewise, where weights are read where they lie
_CHAINED = 4  # sums of a row, up to which these may be made in several chains; weights.h: `chains`


class Shape(Enum):
    """For which calls a loop is compiled."""

    FEW = "few"  # steps and rows: weights are read where they lie
    ROW = "row"  # one row, and many steps
    ROWS = "rows"  # any number of rows


class Tile(NamedTuple):
    """The shape of a stage's tiles."""

    rows: int  # at most
    width: int  # vectors of every sum
    at_once: int  # sums of a row that are made together, in registers
    few: int  # rows up to which all sums are; 0 where those of one are too many


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
        return Tile(ROWS_IN_PLACE, 1, sums, ROWS_IN_PLACE)
    if shape is Shape.ROW:
        return Tile(1, 1, sums, 1)
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
    return Tile(rows, width, at_once, few)


class _Narrowed(NamedTuple):
    """Rows that a product reads, rounded before the stage begins."""

    memory: str  # where they go
    address: str  # of a row as it is
    inner: str  # K
    pairs: str  # that it makes, where every head has a row of its own


class Products:
    """Writes the products of a stage.

    Args:
        context: of the loop.
        number: of the stage.
        accumulators: its sums.
        tile: the shape of its tiles.
        functions: that stages share.
        in_place: weights are read where they lie.
    """

    def __init__(
        self,
        context: Context,
        number: int,
        accumulators: Accumulators,
        tile: Tile,
        functions: Functions,
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
        self.narrowed: dict[tuple[str, int], _Narrowed] = {}
        for k, product in enumerate(self.stage.products):
            self._lay_out(k, product)
        self._function = functions.name(self._sums())  # that makes the sums

    def _lay_out(self, k: int, product: Product) -> None:
        context, sum_of = self.context, self.accumulators.of
        weight = context.graph.nodes[product.weight]
        per_head = len(weight.shape) == 3
        parts = self._cut(next(s for products, s in self.accumulators.groups if k in products))
        blocks = {block: sum_of[node] for block, node in sorted(product.blocks.items())}
        heads = self.stage.domain.heads if per_head else 1
        inner = int(weight.shape[-2])
        if context.narrow:
            inner = -(-inner // 2)
        self.packed.append(
            [
                context.weight(
                    Packed(
                        pointer=f"packed{self.number}_{k}" + (f"_{part}" if parts[1:] else ""),
                        weight=weight.attr("name"),
                        stage=self.number,
                        blocks=tuple(block for block, which in blocks.items() if which in sums),
                        inner=f"f.K{self.number}_{k}",
                        per_head=per_head and context.headed(self.number),
                        width=self.tile.width,
                        shape=(heads, inner, self.stage.domain.units),
                    )
                )
                for part, sums in enumerate(parts)
            ]
        )
        left = context.low.place(product.left)
        sizes = sizes_of(context.graph.nodes[product.left].shape)
        address = context.address(left, (*sizes[:-1], 1), self.number)  # of k = 0
        if context.narrow:
            many = any(sizes[axis] > 1 and left.strides[axis] for axis in range(-len(sizes), -1))
            self.left.append(self._narrow(address, int(sizes[-1]), per_head=many))
        else:
            self.left.append((address, context.row(left.buffer)))

    def _narrow(self, address: str, K: int, *, per_head: bool) -> tuple[str, str]:
        """Where rows of K numbers are when they are rounded, and how far they are apart."""
        context, known = self.context, self.narrowed.get((address, K))
        if known is None:
            which, pairs, row = f"{self.number}_{len(self.narrowed)}", -(-K // 2), ""
            name, heads = f"pairs.{which}", 1
            if per_head:
                heads, row = self.stage.domain.heads, context.size(f"P{which}", pairs)
            context.narrowed[name] = heads * pairs
            known = self.narrowed[address, K] = _Narrowed(
                context.buffer(name),
                address,
                context.size(f"R{which}", K),
                row,
            )
            context.row(name)
        row = f"f.{known.memory}_row"
        head = f" + head * {known.pairs}" if known.pairs else ""
        return f"f.{known.memory} + {context.own_row()} * {row}{head}", row

    def narrowing(self) -> str:
        """A function that rounds the rows which the products read; nothing where none is."""
        if not self.narrowed:
            return ""
        lines = list[str]()
        for about in self.narrowed.values():
            into = f"f.{about.memory} + {self.context.own_row()} * f.{about.memory}_row"
            into += f" + head * {about.pairs}" if about.pairs else ""
            call = [f"narrow({into}, {about.address}, {about.inner});"]
            lines += self.context.each_head(self.number, call) if about.pairs else call
        return "\n".join([
            "// The rows that the products read, rounded.",
            f"static void narrow{self.number}(const Frame& f) {{",
            "    for (long r = f.rows.first; r < f.rows.last; r++) {",
            *(f"        {line}" for line in lines),
            "    }",
            "}\n\n",
        ])  # fmt: skip

    def _cut(self, sums: list[int]) -> list[list[int]]:
        """Sums that products share, cut into those that are made together."""
        at_once = self.tile.at_once
        return [sums[k : k + at_once] for k in range(0, len(sums), at_once)]

    def _sums(self) -> Sums:
        adds = tuple(
            tuple(self._read(k, packed, range(self.accumulators.count * self.tile.width)))
            for k, parts in enumerate(self.packed)
            for packed in parts
        )
        if self.in_place:
            return Sums(adds, tuple(self._added_in_place()))
        few, more = list[str](), list[str]()
        for products, sums in self.accumulators.groups:
            cut = self._cut(sums)
            few += self._part(products, range(len(cut)), sums)
            for k, part in enumerate(cut):
                more += self._part(products, [k], part)
        return Sums(
            adds,
            (),
            self.tile.rows,
            self.tile.few,
            tuple(few if self.tile.few else ()),
            tuple(more if self.tile.few < self.tile.rows else ()),
        )

    def _added_in_place(self) -> list[str]:
        """Weights are read where they lie, and sums are added to the tile."""
        apart = vectors(self.accumulators.count)
        lines = [f"for (long i = 0; i < rows * {apart}; i += VL) *(vec*)(out + i) = vec{{}};"]
        for k, (product, (packed,)) in enumerate(
            zip(self.stage.products, self.packed, strict=True)
        ):
            sums = [self.accumulators.of[product.blocks[block]] for block in packed.blocks]
            lines += [
                "{",
                f"    const int sums[] = {{{', '.join(map(str, sums))}}};",
                f"    add_in_place(rows, out, {apart}, sums, terms[{k}]);",
                "}",
            ]
        return lines

    def terms(self) -> list[str]:
        """What tells the functions of the products of a tile with some rows."""
        lines = [f"const {'TermInPlace' if self.in_place else 'Term'} terms[] = {{"]
        shared = "next.at % tiles" if self.context.headed(self.number) else "next.at"
        for parts, (address, row) in zip(self.packed, self.left, strict=True):
            for weight in parts:
                which = "at, next.at" if weight.per_head else f"tile, {shared}"
                where = (
                    f"{weight.inner}, f.{weight.pointer}, {len(weight.blocks) * self.tile.width}"
                )
                which += ", next"
                if self.in_place:
                    which = f"{'head' if weight.per_head else '0'}, tile * VL, units"
                    where = f"f.p, f.{weight.pointer}, f.{weight.pointer}_count"
                lines.append(f"    {{{address}, {row}, {where}, {which}}},")
        return [*lines, "};"]

    def call(self) -> str:
        """What makes the sums of a tile of n rows."""
        return f"{self._function}(terms, out, n);"

    def _part(self, products: list[int], parts: Sequence[int], sums: list[int]) -> list[str]:
        """These sums into the tile, for which these parts of weights are read."""
        width = self.tile.width
        row = self.accumulators.count * width
        places = [s * width + v for s in sums for v in range(width)]
        chained = len(places) <= _CHAINED
        lines = ["{"]
        if chained:
            lines.append(f"    constexpr int C = chains(R * {len(places)});")
        lines.append(f"    vec acc[{'C' if chained else 1}][R][{len(places)}] = {{}};")
        for k in products:
            lines += [f"    {line}" for line in self._term(k, parts, places)]
        lines += ["    #pragma GCC unroll 8", "    for (int i = 0; i < R; i++) {"]
        if chained:
            each = (f"acc[0][i][{j}] += acc[c][i][{j}];" for j in range(len(places)))
            lines.append("        #pragma GCC unroll 8")
            lines.append(f"        for (int c = 1; c < C; c++) {{ {' '.join(each)} }}")
        for j, place in enumerate(places):
            lines.append(
                f"        *(vec*)({vector_of_row('out', 'i', row, place)}) = acc[0][i][{j}];"
            )
        return [*lines, "    }", "}"]

    def _term(self, k: int, parts: Sequence[int], places: list[int]) -> list[str]:
        """Add one product to the sums at these places in the tile."""
        first = sum(map(len, self.packed[:k]))
        numbers = [first + part for part in parts]
        term = f"terms[{numbers[0]}]"
        lines = ["{", f"    const REAL* a = {term}.a;"]
        lines.append(f"    const long row = {term}.row, inner = {term}.inner;")
        lines += [
            f"    const REAL *w{p} = terms[{n}].w, *ahead{p} = terms[{n}].ahead;"
            for p, n in enumerate(numbers)
        ]
        reads = [self._read(k, self.packed[k][part], places) for part in parts]
        lines.append("    long k = 0;")
        if len(places) <= _CHAINED:
            lines += self._chained(reads)
        return [*lines, *self._loop(reads), "}"]

    def _read(self, k: int, packed: Packed, places: Sequence[int]) -> list[int]:
        """Of each vector of a panel the sum to which it adds, as a number among these."""
        width, blocks = self.tile.width, self.stage.products[k].blocks
        sums = (self.accumulators.of[blocks[block]] for block in packed.blocks)
        return [places.index(s * width + v) for s in sums for v in range(width)]

    def _chained(self, reads: list[list[int]]) -> list[str]:
        """C values of k at once, each into a chain of its own."""
        onward = "".join(f", w{p} += C * {vectors(len(read))}" for p, read in enumerate(reads))
        each = [
            "#pragma GCC unroll 8",
            "for (int c = 0; c < C; c++) {",
            *self._step(reads, "c"),
            "}",
        ]
        return [
            f"    for (; C > 1 && k + C <= inner; k += C{onward}) {{",
            *(f"        {line}" for line in each),
            "    }",
        ]

    def _loop(self, reads: list[list[int]]) -> list[str]:
        """One value of k after another."""
        onward = "".join(f", w{p} += {vectors(len(read))}" for p, read in enumerate(reads))
        lines = [f"    for (; k < inner; k++{onward}) {{"]
        return [*lines, *(f"    {line}" for line in self._step(reads, "")), "    }"]

    def _step(self, reads: list[list[int]], chain: str) -> list[str]:
        """A value of k, so many behind the first of those that go on at once."""
        columns = [(p, j, acc) for p, read in enumerate(reads) for j, acc in enumerate(read)]
        names = [f"v{n}" for n in range(len(columns))]
        k, lines = f"k + {chain}" if chain else "k", list[str]()
        for p, read in enumerate(reads):
            w = vector_of_row(f"w{p}", chain, len(read), 0) if chain else f"w{p}"
            ahead = f"({k})" if chain else k
            lines.append(f"    if (R > 2) hint<{len(read)}>({w}, ahead{p} + {ahead} * VL);")
        for name, (p, j, _) in zip(names, columns, strict=True):
            at = vector(f"w{p}", j)
            if chain:
                at = vector_of_row(f"w{p}", chain, len(reads[p]), j)
            lines.append(f"    const vec {name} = *(const vec*)({at});")
        here = f"i * row + {k}"
        x, add = f"broadcast(a[{here}])", "{s} += x * {v};"
        if self.context.narrow:
            x, add = f"broadcast_pair(a + {here})", "{s} = dot({s}, x, {v});"
        sums = (
            add.format(s=f"acc[{chain or 0}][i][{acc}]", v=name)
            for name, (*_, acc) in zip(names, columns, strict=True)
        )
        return [
            *lines,
            "    #pragma GCC unroll 8",
            "    for (int i = 0; i < R; i++) {",
            f"        const vec x = {x};",
            f"        {' '.join(sums)}",
            "    }",
        ]
