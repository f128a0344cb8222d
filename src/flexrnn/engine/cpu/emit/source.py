"""The source of one loop: its frame, its stages, and the function that a thread runs."""

from dataclasses import dataclass

from flexrnn.engine.cpu.emit.context import Buffer, Context
from flexrnn.engine.cpu.emit.pointwise import Pointwise
from flexrnn.engine.cpu.emit.products import Packed, Products, Shape, Tile, tile_of
from flexrnn.engine.lowering.accumulate import Accumulators
from flexrnn.engine.lowering.stages import Loop

_ROWS = 4  # that stages without products go through together

HEAD = ("T", "B", "reverse", "across")  # the first sizes; then `Source.sizes`, then the strides


@dataclass(frozen=True)
class Source:
    """A loop's source, and what to hand it.

    The function `run(p, s, c, threads)` takes pointers, sizes and constants. Pointers: for every
    buffer where it begins and, of a `before`, the first state; then where every weight
    is packed; then every piece of a weight. Sizes: those of `HEAD`, of `sizes`; of every buffer the
    distances from time to time and from row to row, and whether time goes in a ring of two; of
    every weight where in the sizes its pieces begin and how many there are; then the pieces, as
    `Piece` in loop.h.
    """

    text: str
    sizes: tuple[int, ...]
    constants: tuple[float, ...]
    buffers: dict[str, Buffer]
    weights: tuple[Packed, ...]


def source(loop: Loop, *, backward: bool, registers: int, shape: Shape) -> Source:
    """Write the source of a loop.

    Args:
        loop: its stages.
        backward: it runs from the last step to the first.
        registers: vectors of sums of products that the machine holds.
        shape: of the calls for which it is.
    """
    context = Context(loop, backward=backward)
    texts, weights = [], []
    in_place = shape is Shape.FEW
    for number, stage in enumerate(loop.stages):
        context.size(f"W{number}", stage.domain.units)
        context.size(f"G{number}", stage.domain.heads)
        products = f"{len(stage.products)} products, " if stage.products else ""
        texts.append(f"// Stage {number}: {products}{len(stage.values)} values.\n")
        accumulators = Accumulators(loop, number)
        if stage.products:
            widest = max(len(sums) for _, sums in accumulators.groups)
            tile = tile_of(widest, registers, shape)
            writer = Products(context, number, accumulators, tile, in_place=in_place)
            texts.append(writer.text())
            weights += writer.packed
            texts.append(Pointwise(context, number, accumulators, tile.width).text())
            texts.append(_tiles(context, number, accumulators.count, tile))
        else:
            texts.append(Pointwise(context, number, accumulators, 1).text())
            texts.append(_rows(context, number))
    run = _run(context, weights, in_place)
    text = "\n".join([_frame(context, weights, in_place), *texts, run])
    return Source(
        text,
        tuple(context.sizes.values()),
        tuple(context.constants),
        context.buffers,
        tuple(weights),
    )


def _frame(context: Context, weights: list[Packed], in_place: bool) -> str:
    sizes = [f"    long {name};" for name in context.sizes]
    buffers = [f"    REAL* {b.name};\n    long {b.name}_row;" for b in context.buffers.values()]
    packed = [f"    REAL* {w.pointer};" for w in weights]
    if in_place:
        packed = [
            "    void** p;",
            *(f"    const Piece* {w.pointer};\n    long {w.pointer}_count;" for w in weights),
        ]
    return "\n".join([
        "struct Frame {  // what a thread knows at a step",
        "    long B;",
        "    Range rows;  // of the batch, that are this thread's",
        "    long id, of;  // its share of the units, where threads share those",
        "    long part, parts;  // which of how many partial results is its own",
        "    const double* constants;",
        *sizes,
        *buffers,
        *packed,
        "};\n",
    ])  # fmt: skip


def _tiles(context: Context, number: int, count: int, tile: Tile) -> str:
    """A function that goes through the tiles of a thread, each for all its rows."""
    cases = [
        f"            case {r}: products{number}<{r}>(f, r, head, tile, out); break;"
        for r in range(1, tile.rows + 1)
    ]
    groups = f"ceil_div(f.rows.last - r, {tile.rows})"
    return "\n".join([
        f"static void stage{number}(const Frame& f, bool down) {{",
        f"    alignas(64) REAL out[{tile.rows * count * tile.width} * VL];",
        f"    const long tiles = ceil_div(f.W{number}, {tile.width} * VL);",
        f"    const Range mine = share(f.G{number} * tiles, f.id, f.of);",
        *_cleared(context, number, "f.rows"),
        "    for (long i = mine.first; i < mine.last; i++) {",
        "        // Up and down in turn: what was read last is still in the cache.",
        "        const long at = down ? mine.last - 1 - (i - mine.first) : i;",
        "        const long head = at / tiles, tile = at % tiles;",
        "        for (long r = f.rows.first, n; r < f.rows.last; r += n) {",
        f"            n = ceil_div(f.rows.last - r, {groups});",
        "            switch (n) {",
        *cases,
        "            }",
        f"            for (long v = 0; v < {tile.width}; v++) {{",
        f"                const long unit = (tile * {tile.width} + v) * VL;",
        f"                const long left = f.W{number} - unit;",
        "                if (left >= VL)",
        f"                    point{number}<false>(f, out + v * VL, r, n, head, unit, VL);",
        "                else if (left > 0)",
        f"                    point{number}<true>(f, out + v * VL, r, n, head, unit, int(left));",
        "            }",
        "        }",
        "    }",
        "}\n",
    ])  # fmt: skip


def _rows(context: Context, number: int) -> str:
    """A function that goes through some rows of a thread, and the units of each."""
    return "\n".join([
        f"static void stage{number}(const Frame& f, Range rows) {{",
        f"    const long tiles = ceil_div(f.W{number}, VL);",
        f"    const Range mine = share(f.G{number} * tiles, f.id, f.of);",
        *_cleared(context, number, "rows"),
        "    for (long r = rows.first, n; r < rows.last; r += n) {",
        f"        n = least({_ROWS}, rows.last - r);",
        "        for (long at = mine.first; at < mine.last; at++) {",
        "            const long head = at / tiles, unit = at % tiles * VL;",
        f"            const long left = f.W{number} - unit;",
        f"            if (left >= VL) point{number}<false>(f, nullptr, r, n, head, unit, VL);",
        f"            else point{number}<true>(f, nullptr, r, n, head, unit, int(left));",
        "        }",
        "    }",
        "}\n",
    ])  # fmt: skip


def _cleared(context: Context, number: int, rows: str) -> list[str]:
    """Begin the reductions that this stage gathers."""
    lines = []
    for index in context.loop.stages[number].reduced:
        buffer = context.buffer(f"partial.{sorted(context.low.partial).index(index)}")
        begin = (
            "vec{}"
            if context.graph.nodes[index].op == "sum"
            else "broadcast(-REAL(__builtin_inf()))"
        )
        lines += [
            f"    for (long r = {rows}.first; r < {rows}.last; r++)",
            f"        for (long head = 0; head < f.G{number}; head++)",
            f"            *(vec*)(f.{buffer} + ((f.part * f.B + r) * f.G{number} + head) * VL) = "
            f"{begin};",
        ]
    return lines


def _passes(context: Context) -> list[str]:
    """What a thread does at one step.

    Stages without products follow one another a few rows at a time, for what one writes the next
    one reads; where threads share the units of a row, they meet after every stage.
    """
    stages = context.loop.stages
    lines, k = [], 0
    while k < len(stages):
        if stages[k].products:
            lines += [f"        stage{k}(f, t & 1);", "        if (across) barrier.wait(count);"]
            k += 1
            continue
        first = k
        while k < len(stages) and not stages[k].products:
            k += 1
        lines += [
            "        if (across) {",
            *(f"            stage{j}(f, f.rows), barrier.wait(count);" for j in range(first, k)),
            "        } else {",
            f"            for (long r = f.rows.first; r < f.rows.last; r += {_ROWS}) {{",
            f"                const Range some = {{r, least(r + {_ROWS}, f.rows.last)}};",
            *(f"                stage{j}(f, some);" for j in range(first, k)),
            "            }",
            "        }",
        ]
    return lines


def _run(context: Context, weights: list[Packed], in_place: bool) -> str:
    """What a thread does, and the entry that starts all of them."""
    sizes = len(HEAD)
    strides = sizes + len(context.sizes)
    columns = strides + 3 * len(context.buffers)
    begin = [f"    f.{name} = s[{sizes + k}];" for k, name in enumerate(context.sizes)]
    steps = []
    for k, buffer in enumerate(context.buffers.values()):
        base, first = f"(REAL*)p[{2 * k}]", f"(REAL*)p[{2 * k + 1}]"
        time, ring = f"s[{strides + 3 * k}]", f"s[{strides + 3 * k + 2}]"
        begin.append(f"    f.{buffer.name}_row = s[{strides + 3 * k + 1}];")
        if buffer.kind == "fixed":
            begin.append(f"    f.{buffer.name} = {base};")
        elif buffer.kind == "sum":
            begin.append(f"    f.{buffer.name} = {base} + id * f.{buffer.name}_row;")
        elif buffer.kind == "timed":
            steps.append(f"        f.{buffer.name} = {base} + now * {time};")
        elif buffer.kind == "after":
            steps.append(f"        f.{buffer.name} = {base} + ({ring} ? done & 1 : now) * {time};")
        elif context.backward and buffer.name.startswith("carry"):
            steps.append(
                f"        f.{buffer.name} = done ? {base} + (done - 1 & 1) * {time} : {first};"
            )
        else:
            past = f"({ring} ? t - 1 & 1 : past) * {time}"
            steps.append(f"        f.{buffer.name} = t ? {base} + {past} : {first};")
    packing = []
    if in_place:
        begin.append("    f.p = p;")
    for k, weight in enumerate(weights):
        first, count = (f"s[{columns + 2 * k + j}]" for j in range(2))
        if in_place:
            begin += [
                f"    f.{weight.pointer} = (const Piece*)(s + {first});",
                f"    f.{weight.pointer}_count = {count};",
            ]
            continue
        begin.append(f"    f.{weight.pointer} = (REAL*)p[{2 * len(context.buffers) + k}];")
        heads = f"f.G{weight.stage}" if weight.per_head else "1"
        panel = len(weight.blocks) * weight.width
        packing += [
            "    {",
            f"        const long tiles = ceil_div(f.W{weight.stage}, {weight.width} * VL);",
            f"        const Range mine = share({heads} * tiles, id, count);",
            "        for (long i = mine.first; i < mine.last; i++)",
            f"            pack(f.{weight.pointer} + i * {weight.inner} * {panel} * VL, p, "
            f"(const Piece*)(s + {first}), {count},",
            f"                 i / tiles, {len(weight.blocks)}, i % tiles * {weight.width} * VL, "
            f"f.W{weight.stage}, {weight.width} * VL);",
            "    }",
        ]
    if packing:
        packing.append("    barrier.wait(count);")
    if context.backward:
        loop = ["    for (long t = T - 1, done = 0; t >= 0; t--, done++) {"]
    else:
        loop = ["    for (long t = 0, done = 0; t < T; t++, done++) {"]
    return "\n".join([
        "static void work(void** p, const long* s, const double* c, long id, long count, "
        "Barrier& barrier) {",
        "    const long T = s[0], B = s[1];",
        "    const bool reverse = s[2];",
        "    const bool across = s[3];  // threads share the units of all rows, not the rows",
        "    Frame f;",
        "    f.B = B;",
        "    f.rows = across ? Range{0, B} : share(B, id, count);",
        "    f.id = f.part = across ? id : 0;",
        "    f.of = f.parts = across ? count : 1;",
        "    f.constants = c;",
        *begin,
        *packing,
        *loop,
        "        const long now = reverse ? T - 1 - t : t;",
        "        [[maybe_unused]] const long past = reverse ? now + 1 : now - 1;",
        *steps,
        *_passes(context),
        "    }",
        "}\n",
        'extern "C" __attribute__((visibility("default")))',
        "void run(void** p, const long* s, const double* c, int threads) {",
        "    Barrier barrier;",
        "    if (threads == 1) return work(p, s, c, 0, 1, barrier);",
        "#pragma omp parallel num_threads(threads)",
        "    work(p, s, c, omp_get_thread_num(), omp_get_num_threads(), barrier);",
        "}\n",
    ])  # fmt: skip
