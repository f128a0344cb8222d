"""The source of one loop: its frame, its stages, and the function that a thread runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexrnn.engine.cpu.cpp import vectors
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

    The function `run(p, s, c, threads, alone)` takes pointers, sizes, constants, how many threads
    there are, and what calls of its kind know of them. Pointers: where the rows of every step
    begin, if steps have unlike numbers of them; for every buffer where it begins and, of a
    `before`, the first state, or of an `after`, where the last one of every row goes; then where
    every weight is packed; then every piece of a weight. Sizes: those of `HEAD`, of
    `sizes`; of every buffer the distances from time to time and from row to row, and whether not
    all steps are there: of a state the last two, of others those of the chunk; of every weight
    where in the sizes its pieces begin and how many there are; then the pieces, as `Piece` in
    weights.h. Where steps have unlike numbers of rows, the distance from time to time is that from
    row to row.
    """

    text: str
    functions: tuple[str, ...]  # that it calls, each the text of an object by itself
    sizes: tuple[int, ...]
    constants: tuple[float, ...]
    buffers: dict[str, Buffer]
    weights: tuple[Packed, ...]
    reads: tuple[int, ...]  # of every weight, the stages that read it
    narrowed: dict[str, int]  # memory for rows that are rounded, and how many pairs one has


def source(
    loop: Loop, *, backward: bool, registers: int, lanes: int, shape: Shape, narrow: bool = False
) -> Source:
    """Write the source of a loop.

    Args:
        loop: its stages.
        backward: it runs from the last step to the first.
        registers: vectors of sums of products that the machine holds.
        lanes: numbers of a vector.
        shape: of the calls for which it is.
        narrow: what products multiply is rounded to bfloat16; not where weights lie as they are.
    """
    context, texts = Context(loop, backward=backward, narrow=narrow), []
    in_place = shape is Shape.FEW
    assert not (narrow and in_place)
    term = "TermInPlace" if in_place else "Term"
    functions = Functions(term, apart=shape is Shape.ROWS)
    for number, stage in enumerate(loop.stages):
        context.size(f"W{number}", stage.domain.units)
        products = f"{len(stage.products)} products, " if stage.products else ""
        texts.append(f"// Stage {number}: {products}{len(stage.values)} values.\n")
        accumulators = Accumulators(loop, number)
        if stage.products:
            tile = tile_of(
                accumulators.widest,
                registers,
                shape,
                full=accumulators.full,
                vectors=-(-stage.domain.units // lanes),
            )
            context.width[number] = tile.width
            writer = Products(context, number, accumulators, tile, functions, in_place=in_place)
            texts.append(Pointwise(context, number, accumulators, tile.width).text())
            texts.append(_tiles(context, writer, accumulators.count))
        else:
            context.width[number] = 1
            point = Pointwise(context, number, accumulators, 1)
            texts += [point.text(), _rows(context, point)]
    weights = list(context.weights.values())
    runs = run(context, weights, in_place=in_place)
    text = "\n".join(
        [
            _frame(context, weights, in_place),
            functions.text(),
            *texts,
            runs,
        ]
    )
    return Source(
        text,
        functions.objects(),
        tuple(context.sizes.values()),
        tuple(context.constants),
        context.buffers,
        tuple(weights),
        tuple(context.reads[w.pointer] for w in weights),
        context.narrowed,
    )


def _frame(context: Context, weights: list[Packed], in_place: bool) -> str:
    sizes = [f"    long {name};" for name in context.sizes]
    buffers = list[str]()
    for name, buffer in context.buffers.items():
        buffers.append(f"    REAL* {buffer.name};")
        if name in context.rowed:
            buffers.append(f"    long {buffer.name}_row;")
    sums = [b for b in context.buffers.values() if b.kind == "sum"]
    packed = [f"    REAL* {w.pointer};" for w in weights]
    if in_place:
        packed = [
            "    void** p;",
            *(f"    const Piece* {w.pointer};\n    long {w.pointer}_count;" for w in weights),
        ]
    told = bool(context.graph.sources)  # to a person; what is compiled is for any values
    values = f"  // {', '.join(f'{c:g}' for c in context.constants)}" if told else ""
    added = "    long added;  // rows that were added up as they are, and not yet exactly"
    return "\n".join([
        "struct Frame {  // what a thread knows at a step",
        *(["    long B;"] if context.apart else []),
        "    Range all;  // rows of the batch that are this thread's at the step",
        "    Range rows;  // those of them that read the states where this frame says",
        "    const Frame* next;  // of the others, if there are some",
        "    long id, of;  // its share of the units, where threads share those",
        "    bool down;  // from its last tile to its first one",
        *([added] if context.adds_up() else []),
        *([f"    const double* constants;{values}"] if context.constants else []),
        *sizes,
        *buffers,
        *packed,
        "",
        "    Frame seen_by(long who) const {  // the same, of another thread that shares units",
        "        Frame f = *this;",
        "        f.id = who;",
        *(f"        f.{b.name} += (who - id) * 3 * {b.name}_row;" for b in sums),
        "        return f;",
        "    }",
        "};\n",
    ])  # fmt: skip


def _tiles(context: Context, products: Products, count: int) -> str:
    """A function that goes through the tiles of a thread, and one for the rows of each."""
    number, tile = products.number, products.tile
    headed = context.headed(number)
    which = "at" if headed else "tile"  # of all, or of all of a head
    every = "    for (const Frame* some = &f; some; some = some->next)"
    narrowed = [f"{every} narrow{number}(*some);"] if products.narrowed else []
    return "\n".join([
        *_tile(context, products, count, f"long {which}, Ahead& next"),
        f"{products.narrowing()}static void stage{number}(const Frame& f) {{",
        f"    const long tiles = ceil_div(f.W{number}, {vectors(tile.width)});",
        f"    const Range mine = {_share(context, number)};",
        *narrowed,
        *_cleared(context, number),
        "    for (long i = mine.first; i < mine.last; i++) {",
        "        // Up and down in turn: what was read last is still in the cache.",
        f"        const long {which} = f.down ? mine.last - 1 - (i - mine.first) : i;",
        f"        Ahead next{{i + 1 < mine.last ? f.down ? {which} - 1 : {which} + 1 : {which}}};",
        f"    {every} tile{number}(*some, {which}, next);",
        "    }",
        "}\n",
    ])  # fmt: skip


def _tile(context: Context, products: Products, count: int, given: str) -> list[str]:
    """A function for the rows of a tile: their sums, and what follows from these."""
    number, tile = products.number, products.tile
    groups = f"ceil_div(f.rows.last - r, {tile.rows})"
    headed = context.headed(number)
    lines = [f"const long units = f.W{number};"]
    if headed:
        lines += [
            f"const long tiles = ceil_div(units, {vectors(tile.width)});",
            "const long tile = at % tiles;",
            f"const {heads} head({context.axes(number)}, at / tiles);"
            if (heads := context.heads_of_axes(number))
            else "const long head = at / tiles;",
        ]
    body = [
        f"n = ceil_div(f.rows.last - r, {groups});",
        *products.terms(),
        products.call(),
        *_behind(number, tile.width, headed),
    ]
    return [
        f"INLINE void tile{number}(const Frame& f, {given}) {{",
        f"    alignas(64) REAL out[{tile.rows * count * tile.width} * VL];",
        *(f"    {line}" for line in lines),
        "    for (long r = f.rows.first, n; r < f.rows.last; r += n, next.group++) {",
        *(f"        {line}" for line in body),
        "    }",
        "}\n",
    ]


def _behind(number: int, width: int, headed: bool) -> list[str]:
    """What follows the products of a tile: its values, a vector of units at a time."""
    which = "head, unit" if headed else "unit"
    tile = "tile" if width == 1 else f"(tile * {width} + v)"
    point, out = f"point{number}", "out" if width == 1 else "out + v * VL"
    rest = "else" if width == 1 else "else if (left > 0)"  # a tile of one vector has some
    lines = [
        f"const long unit = {tile} * VL, left = units - unit;",
        "if (left >= VL)",
        f"    {point}<false>(f, {out}, r, n, {which}, VL);",
        rest,
        f"    {point}<true>(f, {out}, r, n, {which}, int(left));",
    ]
    if width == 1:
        return lines
    return [
        f"for (long v = 0; v < {width}; v++) {{",
        *(f"    {line}" for line in lines),
        "}",
    ]


def _rows(context: Context, point: Pointwise) -> str:
    """A function that goes through some rows of a thread, and the units of each."""
    number, stage = point.number, context.loop.stages[point.number]
    head = f"static void stage{number}(const Frame& f, Range rows) {{"
    if stage.alone:
        given = "rows.first, rows.last - rows.first, 0, 1"
        return "\n".join([head, f"    point{number}<true>(f, {given});", "}\n"])
    # Row by row, so that memory is read in order, and what a row gives to reductions stays in
    # registers.
    begin, end = [], []
    for name, index in zip(point.means, stage.reduced, strict=bool(point.means)):
        total = partial(context, context.graph.nodes[index].args[1])
        begin.append(f"const vec {name} = broadcast(sum({total}) / (units.last - units.first));")
    for name, index in zip(point.gathered, stage.reduced, strict=True):
        begin.append(f"vec {name} = {_begin(context, index)};")
        end.append(f"{partial(context, index)} = {name};")
    given = "".join(f", {name}" for name in (*point.means, *point.gathered))
    row = _units(context, number, f"point{number}", "f, r", given, begin, end)
    share = []
    if stage.again is None:
        share = [
            f"    const long tiles = ceil_div(f.W{number}, VL);",
            f"    const Range mine = {_share(context, number)};",
        ]
    else:
        head = _part(context, number, stage.again) + head
    lines = [
        head,
        *share,
        "    for (long r = rows.first; r < rows.last; r++) {",
        *(f"        {line}" for line in row),
        "    }",
        "}\n",
    ]
    if stage.sums:
        lines += [
            f"static void totals{number}(const Frame& f) {{",
            *share,
            *(f"    {line}" for line in _units(context, number, f"total{number}", "f")),
            "}\n",
        ]
    return "\n".join(lines)


def _share(context: Context, number: int, thread: str = "f.id") -> str:
    """A thread's share of a stage's tiles."""
    every = context.headed(number) and not _of_units(context, number)
    heads = f"{context.heads(number)} * " if every else ""
    return f"share({heads}tiles, {thread}, f.of)"


def _of_units(context: Context, number: int) -> bool:
    """Whether threads share the units of every head, whose sum along an axis one of them finds."""
    stage = context.loop.stages[number]
    return bool(context.loop.stages[number if stage.again is None else stage.again].totals)


def _part(context: Context, number: int, gathered: int) -> str:
    """A function: of which units a thread has found sums in another stage."""
    width, headed = context.width[gathered], context.headed(number)
    head, which = (", long head", "head") if headed else ("", "0")
    which = "0" if _of_units(context, number) else which
    wide = f", {width}" if width > 1 else ""
    return "\n".join([
        f"static Range part{number}(const Frame& f, long id{head}) {{",
        f"    const long tiles = ceil_div(f.W{number}, {vectors(width)});",
        f"    const Range some = {_share(context, number, 'id')};",
        f"    return units_of(some, {which}, tiles, f.W{number}{wide});",
        "}\n\n",
    ])  # fmt: skip


def _units(
    context: Context,
    number: int,
    function: str,
    before: str,
    after: str = "",
    begin: Sequence[str] = (),
    end: Sequence[str] = (),
) -> list[str]:
    """Lines that call a function for every vector of units, of every head, in a thread's share.

    Args:
        context: of the loop.
        number: of the stage.
        function: a template of whether a vector is the tail of a row.
        before, after: its arguments in front of which units, and behind how many there are.
        begin, end: what comes before the units of a head, and behind them.
    """
    headed = context.headed(number)
    which = "head, unit" if headed else "unit"
    first = "head" if headed and not _of_units(context, number) else "0"
    units = f"units_of(mine, {first}, tiles, f.W{number})"
    if context.loop.stages[number].again is not None:
        units = f"part{number}(f, f.id{', head' if headed else ''})"
    lines = [
        f"const Range units = {units};",
        *begin,
        "long unit = units.first;",
        "for (; unit + VL <= units.last; unit += VL)",
        f"    {function}<false>({before}, {which}, VL{after});",
        "if (unit < units.last)",
        f"    {function}<true>({before}, {which}, int(units.last - unit){after});",
        *end,
    ]
    return context.each_head(number, lines)


def _begin(context: Context, index: int) -> str:
    """What a reduction begins with."""
    return "broadcast(-HUGE)" if context.graph.nodes[index].op == "amax" else "vec{}"


def _cleared(context: Context, number: int) -> list[str]:
    """Begin the reductions that this stage gathers."""
    reduced = context.loop.stages[number].reduced
    if not reduced:
        return []
    begin = [f"{partial(context, k)} = {_begin(context, k)};" for k in reduced]
    return [
        "    for (long r = f.all.first; r < f.all.last; r++) {",
        *(f"        {line}" for line in context.each_head(number, begin)),
        "    }",
    ]
