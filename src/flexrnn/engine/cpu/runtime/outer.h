// Sums of products over the rows of two matrices: what the steps of a loop add to the gradients of
// weights; and rows by a weight, where the rows are the columns of the left matrix.
//
// Defined before, beside what vector.h wants:
//   HIGH   rows of a tile of a product
//   WIDE   vectors of its columns, so that HIGH * WIDE sums fill the registers
// and in rows.h or pairs.h how operands are laid out and multiplied.

// One of the matrices on a side of a product. Its rows lie in several places: some `from[0]` on, those
// behind them from `from[1]` on. The numbers of a row lie side by side, or those of a column that are in
// one place.
struct Matrix {
    void* const* from;
    const long* row;      // how far rows are apart in each place
    long parts, columns;  // of a part
    long column;          // how far these are apart
    long first;           // of the tiles of all matrices on this side, that of this one
    bool follow;          // whether the places follow one another, as if they were one

    bool is_turned() const { return column != 1; }

    // Of a left one, whether the columns of a tile are read where they lie.
    bool lies(long above) const { return LIE && follow && is_turned() && above + HIGH <= columns; }

    long tall() const { return ceil_div(columns, HIGH); }       // tiles of a left matrix
    long across() const { return ceil_div(columns, WIDE * VL); }  // of a part of a right one
};

// What to compute: for every left and right matrix out[m][n], or what it grows by, which is the sum
// of left[m] * right[n] over all rows; for every part of the right one by itself.
//
// Threads share tiles of results, so many `abreast` with parts of every row of tiles, and nothing else:
// none reads what another one writes. Rows are summed up in blocks, and those of a block laid out anew,
// in the order in which a thread's tiles read them: at `rights` WIDE vectors of columns row by row,
// then the next WIDE, of `some` tiles at a time; at `lefts` HIGH columns, likewise, of a `few` tiles,
// so that they stay in the cache of a core. Those of the next tile lie `apart` numbers further on.
struct Outer {
    long places;
    const long* rows;  // in each place
    Matrix *left, *right;
    long many_lefts, many_rights, tall, wide;  // tiles above one another, and side by side
    long abreast, blocks, some, few, apart;
    void* const* outs;
    const long* results;  // of each whether it is added to what is there, and how far rows are apart
    REAL *lefts, *rights;
};

// The k-th of the tiles that are side by side.
struct Column {
    long matrix, part, unit, units;  // of which, from where on; how many are left there
    int width;                       // vectors

    Column(const Outer& o, long k) {
        for (matrix = o.many_rights - 1; o.right[matrix].first > k;) matrix--;
        const Matrix& right = o.right[matrix];
        k -= right.first, part = k / right.across(), unit = k % right.across() * WIDE * VL;
        units = right.columns - unit, width = int(least(WIDE, ceil_div(units, VL)));
    }
};

// Calls `then(place, first, rows, before)` for the rows in each place that are in a block, in front of
// which it is so deep. Tells how deep it is.
template <class F> INLINE long in_block(const Outer& o, Range block, const F& then) {
    long deep = 0;
    for (long p = 0, begin = 0; p < o.places; begin += o.rows[p++]) {
        const long first = most(block.first, begin), last = least(block.last, begin + o.rows[p]);
        if (first >= last) continue;
        then(p, first - begin, last - first, deep);
        deep += deep_of(last - first);
    }
    return deep;
}

// Lays out a block of the left matrices, these of their tiles.
static void lay_out_lefts(const Outer& o, Range block, Range tiles) {
    in_block(o, block, [&](long place, long first, long rows, long before) {
        for (long l = 0; l < o.many_lefts; l++) {
            const Matrix& m = o.left[l];
            const Range some = {most(tiles.first, m.first), least(tiles.last, m.first + m.tall())};
            if (some.first >= some.last) continue;
            const long row = m.row[place];
            const REAL* from = (const REAL*)m.from[place] + first * row;
            REAL* into = o.lefts - tiles.first * o.apart + before * HIGH;
            if (!m.is_turned()) {
                lay_out_left(into + some.first * o.apart, from, row, rows, o.apart,
                             {some.first - m.first, some.last - m.first}, m.columns);
                continue;
            }
            for (long i = some.first; i < some.last; i++) {
                const long above = (i - m.first) * HIGH;
                if (m.lies(above)) continue;
                lay_out_turned(into + i * o.apart, from + above * m.column, m.column, rows,
                               least(HIGH, m.columns - above));
            }
        }
    });
}

// Likewise, of the right ones.
static void lay_out_rights(const Outer& o, Range block, Range tiles, long deep) {
    const long panel = WIDE * VL * deep;
    in_block(o, block, [&](long place, long first, long rows, long before) {
        for (long k = tiles.first; k < tiles.last; k++) {
            const Column at(o, k);
            const Matrix& m = o.right[at.matrix];
            const long width = at.width * VL, there = least(width, at.units);
            const REAL* from = (const REAL*)m.from[place] + first * m.row[place] +
                               (at.part * m.columns + at.unit) * m.column;
            REAL* into = o.rights + (k - tiles.first) * panel + before * width;
            if (m.is_turned())
                lay_out_turned_right(into, from, m.column, rows, there, int(width));
            else lay_out_right(into, from, m.row[place], rows, there, int(width));
        }
    });
}

// What a tile reads of a left matrix: how far its HIGH columns, and what is deep in each, are apart.
struct Left {
    const REAL* from;
    long column, row;
};

// A tile of the product, of which `high` rows and `units` columns are there.
template <int W>
ALONE void tile(REAL* out, long row, long high, long units, Left left, const REAL* right, long deep,
                bool adds) {
    // Read, or written to, when the sums are done: a line that is written to comes first, too.
    for (long i = 0; i < high; i++)
        for (int j = 0; j < W; j++) __builtin_prefetch(out + i * row + j * VL, 1, 3);
    vec sums[HIGH][W] = {};
    const REAL* x = left.from;
    for (long k = 0; k < deep; k++, x += left.row, right += W * VL) {
        vec v[W];
#pragma GCC unroll 8
        for (int j = 0; j < W; j++) v[j] = *(const vec*)(right + j * VL);
#pragma GCC unroll 8
        for (int i = 0; i < HIGH; i++) {
            const vec each = in_every_lane(x + i * left.column);
#pragma GCC unroll 8
            for (int j = 0; j < W; j++) sums[i][j] = multiplied(sums[i][j], each, v[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < HIGH; i++) {
        if (i == high) return;
#pragma GCC unroll 8
        for (int j = 0; j < W; j++) {
            REAL* at = out + i * row + j * VL;
            const int n = int(least(VL, units - j * VL));
            if (n == VL) store<false>(at, adds ? load<false>(at) + sums[i][j] : sums[i][j]);
            else store<true>(at, adds ? load<true>(at, n) + sums[i][j] : sums[i][j], n);
        }
    }
}

template <int W>
INLINE void tile_of(int width, REAL* out, long row, long high, long units, Left left,
                    const REAL* right, long deep, bool adds) {
    if constexpr (W > 1)
        if (width < W)
            return tile_of<W - 1>(width, out, row, high, units, left, right, deep, adds);
    tile<W>(out, row, high, units, left, right, deep, adds);
}

// A column of tiles of a block, those of `tiles` whose left operands have been laid out.
static void column(const Outer& o, long k, const REAL* right, Range tiles, Range block,
                   long deep) {
    const Column at(o, k);
    for (long l = 0; l < o.many_lefts; l++) {
        const Matrix& m = o.left[l];
        const long which = l * o.many_rights + at.matrix;
        const long row = o.results[2 * which + 1];
        REAL* out = (REAL*)o.outs[which] + at.part * m.columns * row + at.unit;
        const bool adds = block.first > 0 || o.results[2 * which];
        for (long i = most(tiles.first, m.first); i < least(tiles.last, m.first + m.tall()); i++) {
            const long above = (i - m.first) * HIGH, high = least(HIGH, m.columns - above);
            Left left = {o.lefts + (i - tiles.first) * o.apart, 1, HIGH};
            if (m.lies(above))
                left = {(const REAL*)m.from[0] + above * m.column + block.first, m.column, 1};
            tile_of<WIDE>(at.width, out + above * row, row, high, at.units, left, right, deep, adds);
        }
    }
}

// What one of some threads does of a product.
static void multiply(const Outer& o, long id, long count) {
    const Range tall = share(o.tall, id / o.abreast, count / o.abreast);
    const Range wide = share(o.wide, id % o.abreast, o.abreast);
    if (tall.first == tall.last) return;
    long total = 0;
    for (long p = 0; p < o.places; p++) total += o.rows[p];
    for (long b = 0; b < o.blocks; b++) {
        const Range block = share(total, b, o.blocks);
        const long deep = in_block(o, block, [](long, long, long, long) {});
        for (long j = wide.first; j < wide.last; j += o.some) {
            const Range beside = {j, least(j + o.some, wide.last)};
            lay_out_rights(o, block, beside, deep);
            for (long i = tall.first; i < tall.last; i += o.few) {
                const Range above = {i, least(i + o.few, tall.last)};
                lay_out_lefts(o, block, above);
                for (long k = beside.first; k < beside.last; k++)
                    column(o, k, o.rights + (k - j) * WIDE * VL * deep, above, block,
                           deep);
            }
        }
    }
}

// Reads where the matrices on a side are, and says how many tiles they have.
template <bool LEFT>
INLINE long read(const Outer& o, Matrix* matrices, long many, void**& p, const long*& s) {
    long tiles = 0;
    for (Matrix* m = matrices; m < matrices + many; m++, p += o.places, s += 3 + o.places) {
        bool follow = true;
        for (long k = 1; k < o.places; k++)
            follow &= (REAL*)p[k] == (REAL*)p[k - 1] + o.rows[k - 1] * s[3 + k - 1];
        *m = {p, s + 3, s[0], s[1], s[2], tiles, follow};
        tiles += LEFT ? m->tall() : m->parts * m->across();
    }
    return tiles;
}

// p: memory for what is laid out; of every product the places of each matrix, those of left ones
// first, and where the results go, those of the first left one first.
// s: numbers of this memory for `lefts` of a thread, and for `rights`; how many products there are; of
// each its places, left matrices, right ones, `abreast`, `blocks`, `some`, `few`, `apart`, and the rows
// in each place; of each matrix parts, their columns, and how far columns are apart, and rows in each
// place; of each result what `results` says.
static void work(void** p, const long* s, long id, long count) {
    REAL* const lefts = (REAL*)*p++ + id * (s[0] + s[1]);
    REAL* const rights = lefts + s[0];
    long products = s[2];
    for (s += 3; products > 0; products--) {
        Outer o;
        o.places = s[0], o.many_lefts = s[1], o.many_rights = s[2];
        o.abreast = s[3], o.blocks = s[4], o.some = s[5], o.few = s[6];
        o.apart = s[7], o.rows = s + 8;
        o.lefts = lefts, o.rights = rights;
        Matrix left[o.many_lefts], right[o.many_rights];
        s += 8 + o.places;
        o.left = left, o.tall = read<true>(o, left, o.many_lefts, p, s);
        o.right = right, o.wide = read<false>(o, right, o.many_rights, p, s);
        o.outs = p, o.results = s;
        p += o.many_lefts * o.many_rights, s += 2 * o.many_lefts * o.many_rights;
        multiply(o, id, count);
    }
}

// The work is divided among as many threads as are asked for, whether or not there are fewer.
extern "C" __attribute__((visibility("default")))
void run(void** p, const long* s, int threads) {
    if (threads == 1) {
        Flushed flushed;
        return work(p, s, 0, 1);
    }
#pragma omp parallel num_threads(threads)
    {
        Flushed flushed;
        for (long id = omp_get_thread_num(); id < threads; id += omp_get_num_threads())
            work(p, s, id, threads);
    }
}
