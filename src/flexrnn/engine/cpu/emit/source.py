"""The source of one loop: its frame, its stages, and the function that a thread runs."""

from dataclasses import dataclass

from flexrnn.engine.cpu.emit.context import Buffer, Context, Packed
from flexrnn.engine.cpu.emit.functions import Functions
from flexrnn.engine.cpu.emit.pointwise import Pointwise, partial
from flexrnn.engine.cpu.emit.products import Products, Shape, tile_of
from flexrnn.engine.cpu.emit.run import run
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.stages import Loop


@dataclass(frozen=True)
class Source:
    """A loop's source, and what to hand it.

    The function `run(p, s, c, threads)` takes pointers, sizes and constants. Pointers: where the
    rows of every step begin, if steps have unlike numbers of them; for every buffer where it begins
    and, of a `before`, the first state, or of an `after`, where the last one of every row goes;
    then where every weight is packed; then every piece of a weight. Sizes: those of `HEAD`, of
    `sizes`; of every buffer the distances from time to time and from row to row, and whether not
    all steps are there: of a state the last two, of others those of the chunk; of every weight
    where in the sizes its pieces begin and how many there are; then the pieces, as `Piece` in
    loop.h. Where steps have unlike numbers of rows, the distance from time to time is that from row
    to row.
    """

    text: str
    sizes: tuple[int, ...]
    constants: tuple[float, ...]
    buffers: dict[str, Buffer]
    weights: tuple[Packed, ...]
    reads: tuple[int, ...]  # of every weight, the stages that read it


def source(loop: Loop, *, backward: bool, registers: int, lanes: int, shape: Shape) -> Source:
    """Write the source of a loop.

    Args:
        loop: its stages.
        backward: it runs from the last step to the first.
        registers: vectors of sums of products that the machine holds.
        lanes: numbers of a vector.
        shape: of the calls for which it is.
    """
    context, functions = Context(loop, backward=backward), Functions()
    texts = []
    in_place = shape is Shape.FEW
    for number, stage in enumerate(loop.stages):
        context.size(f"W{number}", stage.domain.units)
        context.size(f"G{number}", stage.domain.heads)
        products = f"{len(stage.products)} products, " if stage.products else ""
        texts.append(f"// Stage {number}: {products}{len(stage.values)} values.\n")
        accumulators = Accumulators(loop, number)
        if stage.products:
            vectors = -(-stage.domain.units // lanes)
            tile = tile_of(
                accumulators.widest, registers, shape, full=accumulators.full, vectors=vectors
            )
            writer = Products(context, number, accumulators, tile, functions, in_place=in_place)
            texts.append(Pointwise(context, number, accumulators, tile.width).text())
            texts.append(_tiles(context, writer, accumulators.count))
        else:
            point = Pointwise(context, number, accumulators, 1)
            texts += [point.text(), _rows(context, point)]
    weights = list(context.weights.values())
    runs = run(context, weights, in_place=in_place)
    text = "\n".join(
        [
            _frame(context, weights, in_place),
            functions.text("TermInPlace" if in_place else "Term"),
            *texts,
            runs,
        ]
    )
    return Source(
        text,
        tuple(context.sizes.values()),
        tuple(context.constants),
        context.buffers,
        tuple(weights),
        tuple(context.reads[w.pointer] for w in weights),
    )


def _frame(context: Context, weights: list[Packed], in_place: bool) -> str:
    sizes = [f"    long {name};" for name in context.sizes]
    buffers = [f"    REAL* {b.name};\n    long {b.name}_row;" for b in context.buffers.values()]
    sums = [b for b in context.buffers.values() if b.kind == "sum"]
    packed = [f"    REAL* {w.pointer};" for w in weights]
    if in_place:
        packed = [
            "    void** p;",
            *(f"    const Piece* {w.pointer};\n    long {w.pointer}_count;" for w in weights),
        ]
    return "\n".join([
        "struct Frame {  // what a thread knows at a step",
        "    long B;",
        "    Range all;  // rows of the batch that are this thread's at the step",
        "    Range rows;  // those of them that read the states where this frame says",
        "    const Frame* next;  // of the others, if there are some",
        "    long id, of;  // its share of the units, where threads share those",
        "    long part, parts;  // which of how many partial results is its own",
        "    bool down;  // from its last tile to its first one",
        "    long added;  // rows that were added up as they are, and not yet exactly",
        "    const double* constants;",
        *sizes,
        *buffers,
        *packed,
        "",
        "    Frame seen_by(long who) const {  // the same, of another thread that shares units",
        "        Frame f = *this;",
        "        f.id = f.part = who;",
        *(f"        f.{b.name} += (who - id) * 3 * {b.name}_row;" for b in sums),
        "        return f;",
        "    }",
        "};\n",
    ])  # fmt: skip


def _tiles(context: Context, products: Products, count: int) -> str:
    """A function that goes through the tiles of a thread, each for all its rows."""
    number, tile = products.number, products.tile
    cases = [f"case {r}: {products.call(r)} break;" for r in range(1, tile.rows + 1)]
    groups = f"ceil_div(f.rows.last - r, {tile.rows})"
    indent = " " * 16
    return "\n".join([
        f"static void stage{number}(const Frame& f) {{",
        f"    alignas(64) REAL out[{tile.rows * count * tile.width} * VL];",
        f"    const long units = f.W{number}, tiles = ceil_div(units, {tile.width} * VL);",
        f"    const Range mine = share(f.G{number} * tiles, f.id, f.of);",
        *_cleared(context, number),
        "    for (long i = mine.first; i < mine.last; i++) {",
        "        // Up and down in turn: what was read last is still in the cache.",
        "        const long at = f.down ? mine.last - 1 - (i - mine.first) : i;",
        "        const long head = at / tiles, tile = at % tiles;",
        "        Ahead next{i + 1 < mine.last ? f.down ? at - 1 : at + 1 : at};",
        "        for (const Frame* some = &f; some; some = some->next) {",
        "            const Frame& f = *some;",
        "            for (long r = f.rows.first, n; r < f.rows.last; r += n, next.group++) {",
        f"                n = ceil_div(f.rows.last - r, {groups});",
        *(f"{indent}{line}" for line in products.terms()),
        f"{indent}switch (n) {{",
        *(f"{indent}{line}" for line in cases),
        f"{indent}}}",
        f"                for (long v = 0; v < {tile.width}; v++) {{",
        f"                    const long unit = (tile * {tile.width} + v) * VL;",
        "                    const long left = units - unit;",
        "                    if (left >= VL)",
        f"                        point{number}<false>(f, out + v * VL, r, n, head, unit, VL);",
        "                    else if (left > 0)",
        f"                        point{number}<true>(f, out + v * VL, r, n, head, unit, "
        "int(left));",
        "                }",
        "            }",
        "        }",
        "    }",
        "}\n",
    ])  # fmt: skip


def _rows(context: Context, point: Pointwise) -> str:
    """A function that goes through some rows of a thread, and the units of each."""
    number, stage = point.number, context.loop.stages[point.number]
    head = f"static void stage{number}(const Frame& f, Range rows) {{"
    if stage.alone:
        all_rows = "rows.first, rows.last - rows.first"
        return "\n".join([head, f"    point{number}<true>(f, {all_rows}, 0, 0, 1);", "}\n"])
    # Row by row, so that memory is read in order, and what a row gives to reductions stays in
    # registers.
    begin, end = [], []
    for name, index in zip(point.gathered, stage.reduced, strict=True):
        begin.append(f"vec {name} = {_begin(context, index)};")
        end.append(f"{partial(context, index)} = {name};")
    given = "".join(f", {name}" for name in point.gathered)
    row = _heads(number, f"point{number}", f"f, r, head, unit, {{}}{given}", begin, end)
    share = [
        f"    const long tiles = ceil_div(f.W{number}, VL);",
        f"    const Range mine = share(f.G{number} * tiles, f.id, f.of);",
    ]
    lines = [
        head,
        *share,
        "    for (long r = rows.first; r < rows.last; r++)",
        *(f"        {line}" for line in row),
        "}\n",
    ]
    if stage.sums:
        units = _heads(number, f"total{number}", "f, head, unit, {}", [], [])
        lines += [
            f"static void totals{number}(const Frame& f) {{",
            *share,
            *(f"    {line}" for line in units),
            "}\n",
        ]
    return "\n".join(lines)


def _heads(number: int, function: str, given: str, begin: list[str], end: list[str]) -> list[str]:
    """A loop over heads that calls a function for every vector of units in a thread's share.

    Args:
        number: of the stage.
        function: a template of whether a vector is the tail of a row.
        given: its arguments, with {} for how many units there are.
        begin, end: what comes before the units of a head, and behind them.
    """
    return [
        f"for (long head = 0; head < f.G{number}; head++) {{",
        f"    const Range units = units_of(mine, head, tiles, f.W{number});",
        *(f"    {line}" for line in begin),
        "    long unit = units.first;",
        "    for (; unit + VL <= units.last; unit += VL)",
        f"        {function}<false>({given.format('VL')});",
        "    if (unit < units.last)",
        f"        {function}<true>({given.format('int(units.last - unit)')});",
        *(f"    {line}" for line in end),
        "}",
    ]


def _begin(context: Context, index: int) -> str:
    """What a reduction begins with."""
    is_sum = context.graph.nodes[index].op == "sum"
    return "vec{}" if is_sum else "broadcast(-REAL(__builtin_inf()))"


def _cleared(context: Context, number: int) -> list[str]:
    """Begin the reductions that this stage gathers."""
    reduced = context.loop.stages[number].reduced
    begin = (f"            {partial(context, k)} = {_begin(context, k)};" for k in reduced)
    return (
        [
            "    for (long r = f.all.first; r < f.all.last; r++)",
            f"        for (long head = 0; head < f.G{number}; head++) {{",
            *begin,
            "        }",
        ]
        if reduced
        else []
    )
