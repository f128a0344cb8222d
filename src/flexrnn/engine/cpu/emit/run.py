"""What a thread does: it packs its share of the weights, then goes through time."""

from flexrnn.engine.cpu.cpp import vectors
from flexrnn.engine.cpu.emit.context import Context, Packed

_TOGETHER = 8  # rows that stages without products go through one after another
_SUMMED = 64  # rows of which values are added up as they are before that is added exactly
# The first sizes; then `Source.sizes`, then the strides.
HEAD = ("T", "B", "reverse", "across", "first", "last")


def run(context: Context, weights: list[Packed], *, in_place: bool) -> str:
    """What a thread does, and the entry that starts all of them.

    Args:
        context: of the loop, with all sizes and buffers of its stages.
        weights: of all stages.
        in_place: they are read where they lie.
    """
    writer = _Run(context, weights)
    begin, steps = writer.buffers()
    settled, behind = writer.settled()
    packing = writer.in_place() if in_place else writer.packing()
    if context.backward:
        loop = "    for (long t = last - 1, done = T - last; t >= first; t--, done++) {"
    else:
        loop = "    for (long t = first, done = first; t < last; t++, done++) {"
    return settled + "\n".join([
        "static void work(void** p, const long* s, const double* c, Share* shares, long id, "
        "long count, int patience) {",
        "    const long T = s[0], B = s[1];",
        "    const bool reverse = s[2];",
        "    const bool across = s[3];  // threads share the units of all rows, not the rows",
        "    const long first = s[4], last = s[5];  // the steps of this call, a chunk of all",
        "    [[maybe_unused]] const long chunk = reverse ? T - last : first;  // where it begins",
        "    const long* at = (const long*)p[0];  // where steps begin, if some have fewer rows",
        "    const Range mine = across ? Range{0, B} : at ? share_of_steps(at, T, B, id, count)",
        "                                            : share(B, id, count);",
        "    Team team{shares, id, count, patience};",
        "    Frame f, other;",
        *(["    f.B = B;"] if context.apart else []),
        "    f.all = f.rows = mine;",
        "    f.next = nullptr;",
        "    f.id = across ? id : 0;",
        "    f.of = across ? count : 1;",
        *(["    f.constants = c;"] if context.constants else []),
        *begin,
        *packing,
        "    team.helps = !at || patience == Team::NONE;  // who sees to ends is not overtaken",
        *(["    f.added = 0;"] if context.adds_up() else []),
        loop,
        "        f.down = t & 1;",
        "        const long now = reverse ? T - 1 - t : t;",
        "        const long here = at ? at[now] : now;",
        *steps,
        *writer.fewer_rows(),
        *writer.passes(),
        *writer.ends(),
        "    }",
        *behind,
        "    if (across) team.ends();",
        "}\n",
        'extern "C" __attribute__((visibility("default")))',
        "void run(void** p, const long* s, const double* c, int threads, Alone* alone) {",
        "    Share shares[threads];  // clang refuses to initialise what has no constant length",
        "    for (Share& each : shares) each = {};",
        "    const bool across = s[3];",
        "    const long begun = across ? Alone::time() : 0;",
        "    if (threads == 1 || (across && alone->now(begun))) {",
        "        Flushed flushed;",
        "        for (long id = 0; id < threads; id++)",
        "            work(p, s, c, shares, id, threads, Team::NONE);",
        "        return;",
        "    }",
        "#pragma omp parallel num_threads(threads)",
        "    {",
        "        Flushed flushed;",
        "        work(p, s, c, shares, omp_get_thread_num(), omp_get_num_threads(), Team::LONG);",
        "    }",
        "    if (across) alone->learn(shares, threads, begun, Alone::time());",
        "}\n",
    ])  # fmt: skip


class _Run:
    """Writes the parts of `work`."""

    def __init__(self, context: Context, weights: list[Packed]):
        self.context, self.weights = context, weights
        self.names = list(context.buffers.values())
        self.strides = len(HEAD) + len(context.sizes)

    def buffers(self) -> tuple[list[str], list[str]]:
        """Where buffers lie: lines before the loop, and at every step."""
        begin = [f"    f.{name} = s[{len(HEAD) + k}];" for k, name in enumerate(self.context.sizes)]
        steps = []
        if any(b.kind == "before" for b in self.names):
            steps += [
                "        const long past = reverse ? now + 1 : now - 1;",
                "        [[maybe_unused]] const long behind = at && t ? at[past] : past;",
            ]
        for k, (name, buffer) in enumerate(self.context.buffers.items()):
            memory, own = f"{buffer.name}_buffer", f"f.{buffer.name}"
            begin.append(f"    const Buffer {memory}(p + {1 + 2 * k}, s + {self.strides + 3 * k});")
            if name in self.context.rowed:
                begin.append(f"    {own}_row = {memory}.row;")
            if buffer.kind == "fixed":
                begin.append(f"    {own} = {memory}.base;")
            elif buffer.kind == "sum":
                begin.append(f"    {own} = {memory}.base + id * 3 * {memory}.row;")
            elif buffer.kind == "timed":
                steps.append(f"        {own} = {memory}.of(here, chunk);")
            elif buffer.kind == "after":
                steps.append(f"        {own} = {memory}.of_state(here, done);")
            else:
                before = "done" if self._is_carry(buffer.name) else "t"
                place = f"{memory}.of_state(behind, {before} - 1)"
                steps.append(f"        {own} = {before} ? {place} : {memory}.end;")
        return begin, steps

    def _is_carry(self, name: str) -> bool:
        return self.context.backward and name.startswith("carry")

    def fewer_rows(self) -> list[str]:
        """Where steps have unlike numbers of rows: which are this thread's, and where they begin.

        Whoever comes from the end meets rows that begin only now, and read the first state.
        """
        lines = [
            "if (at) {",
            "    const long rows = at[now + 1] - here;",
            "    f.all = f.rows = {least(mine.first, rows), least(mine.last, rows)};",
            *(f"    {line}" for line in self._beginning()),
            "}",
        ]
        return [f"        {line}" for line in lines]

    def _beginning(self) -> list[str]:
        """Rows that begin at this step read the first state, and have a frame of their own."""
        firsts = [b.name for b in self.names if b.kind == "before"]
        if not firsts:
            return []
        # Going back through time, the derivatives by the states come from the step behind.
        when = {name: "!reverse" if self._is_carry(name) else "reverse" for name in firsts}
        ways = set(when.values())
        some = f"{ways.pop()} && " if len(ways) == 1 else ""
        always = "" if some else "if ({}) "
        return [
            "const long later = now + 1 < T ? at[now + 2] - at[now + 1] : 0;",
            "f.next = nullptr;",
            f"if ({some}later < f.all.last) {{",
            "    other = f;",
            "    if (later > f.all.first) {",
            "        f.rows.last = other.rows.first = later;",
            "        f.next = &other;",
            "    }",
            "    Frame& begins = f.next ? other : f;",
            *(f"    {always.format(way)}begins.{name} = {name}_buffer.end;"
              for name, way in when.items()),
            "}",
        ]  # fmt: skip

    def ends(self) -> list[str]:
        """Where steps have unlike numbers of rows: put aside the last state of those that end."""
        afters = [b.name for b in self.names if b.kind == "after"]
        if not afters:
            return []
        onward = "!reverse" if not self.context.backward else "reverse"
        return [
            "        if (at && (!across || id == 0)) {",
            f"            const long next = {onward} ? now + 1 : now - 1;",
            "            const long stay = next < 0 || next == T ? 0 : at[next + 1] - at[next];",
            "            for (long r = most(stay, f.all.first); r < f.all.last; r++) {",
            *(f"                {name}_buffer.put_aside(f.{name}, r);" for name in afters),
            "            }",
            "        }",
        ]  # fmt: skip

    def in_place(self) -> list[str]:
        """Where the pieces of weights stand in the sizes."""
        lines = ["    f.p = p;"]
        for k, weight in enumerate(self.weights):
            first, count = self._pieces(k)
            lines += [
                f"    f.{weight.pointer} = (const Piece*)(s + {first});",
                f"    f.{weight.pointer}_count = {count};",
            ]
        return lines

    def _pieces(self, k: int) -> tuple[str, str]:
        first = self.strides + 3 * len(self.names) + 2 * k
        return f"s[{first}]", f"s[{first + 1}]"

    def passes(self) -> list[str]:
        """What a thread does at one step."""
        lines = ["if (across) {", *self._shared(), "} else {", *self._own(), "}"]
        return [f"        {line}" for line in lines]

    def _shared(self) -> list[str]:
        """Threads share the units of a row.

        They meet after every stage but those of one number a row, which each of them goes through
        for itself.
        """
        lines, part = list[str](), list[str]()
        waits = self.context.loop.waits
        counts = [k for k in range(len(self.context.loop.stages)) if self.context.adds_up(k)]
        for k, stage in enumerate(self.context.loop.stages):
            if stage.products:
                part.append(f"stage{k}(f);")
            else:
                rows = "for (const Frame* some = &f; some; some = some->next)"
                part.append(f"{rows} stage{k}(*some, some->rows);")
            if k in counts[-1:]:
                lines.append("    f.added += mine.last - mine.first;")
                part.append("settled(f, f.added);")
            if k in waits:
                if part == [f"stage{k}(f);"]:
                    lines.append(f"    together<Frame>(team, f, stage{k});")
                else:
                    lines += [
                        "    together<Frame>(team, f, [](const Frame& f) {",
                        *(f"        {line}" for line in part),
                        "    });",
                    ]
                part = []
        assert not part
        if counts:
            lines.append(f"    if (f.added >= {_SUMMED}) f.added = 0;")
        return lines

    def _own(self) -> list[str]:
        """Threads have rows of their own."""
        stages = self.context.loop.stages
        lines, k = list[str](), 0
        while k < len(stages):
            if stages[k].products:
                lines.append(f"    stage{k}(f);")
                k += 1
            else:
                first = k
                while k < len(stages) and not stages[k].products:
                    k += 1
                lines += [f"    {line}" for line in self._rows(range(first, k))]
        return lines

    def _rows(self, numbers: range) -> list[str]:
        """Stages without products.

        They follow one another a few rows at a time, for what one writes the next one reads.
        """
        adds_up = any(self.context.adds_up(k) for k in numbers)
        together = _TOGETHER if len(numbers) > 1 else _SUMMED
        return [
            "for (const Frame* g = &f; g; g = g->next)",
            f"    for (long r = g->rows.first; r < g->rows.last; r += {together}) {{",
            f"        const Range some = {{r, least(r + {together}, g->rows.last)}};",
            *(f"        stage{k}(*g, some);" for k in numbers),
            *(
                ["        f.added = settled(f, f.added + some.last - some.first);"]
                if adds_up
                else []
            ),
            "    }",
        ]

    def settled(self) -> tuple[str, list[str]]:
        """A function that adds exactly what has been added up since; and what is behind the loop.

        Both are nothing where nothing is added up.
        """
        stages = range(len(self.context.loop.stages))
        totals = [f"    totals{k}(f);" for k in stages if self.context.adds_up(k)]
        if not totals:
            return "", []
        function = [
            "// Takes about how many rows have been added up as they are; tells how many are left.",
            f"static long settled(const Frame& f, long added, long most = {_SUMMED}) {{",
            "    if (added < most) return added;",
            *totals,
            "    return 0;",
            "}\n\n",
        ]
        return "\n".join(function), ["    if (f.added) settled(f, f.added, 0);"]

    def packing(self) -> list[str]:
        """Pack this thread's share of the weights, which then lie there for all chunks."""
        pointers, lines = [], []
        pack = "pack_pairs" if self.context.narrow else "pack"
        for k, weight in enumerate(self.weights):
            first, count = self._pieces(k)
            pointer = f"(REAL*)p[{1 + 2 * len(self.names) + k}]"
            panel, width = len(weight.blocks) * weight.width, vectors(weight.width)
            pointers.append(f"    f.{weight.pointer} = {pointer};")
            tiles, which, head = "tiles", "i", "0"
            if weight.per_head:
                tiles = f"{self.context.heads(weight.stage)} * tiles"
                which, head = "i % tiles", "i / tiles"
            lines += [
                "    {",
                f"        const long tiles = ceil_div(f.W{weight.stage}, {width});",
                f"        const Range some = share({tiles}, who, count);",
                "        for (long i = some.first; i < some.last; i++)",
                f"            {pack}(f.{weight.pointer} + i * {weight.inner} * {vectors(panel)}, "
                f"p, (const Piece*)(s + {first}), {count},",
                f"                 {head}, {len(weight.blocks)}, {which} * {width}, "
                f"f.W{weight.stage}, {width});",
                "    }",
            ]
        if not lines:
            return []
        begins = "last == T" if self.context.backward else "first == 0"
        lines = ["    team.each([&](long who) {", *(f"    {line}" for line in lines), "    });"]
        return [*pointers, f"    if ({begins}) {{", *(f"    {line}" for line in lines), "    }"]
