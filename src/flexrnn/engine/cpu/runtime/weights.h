// Weights of products, as they lie in memory or packed, and what tiles read of them.

// Rows `first` to `last` of one block of a weight's columns, as they lie in memory: element (k, n)
// of the block lies `(k - first) * row + n * column` numbers behind `p[pointer]`.
struct Piece {
    long pointer, block, first, last, head, row, column;
};

// out[n] += sum over k of a[k] * w[n * column + k], for R rows of a and of out: a weight whose
// columns lie in one piece each.
template <int R>
ALONE void add_dots(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
                    long column, int units) {
    constexpr int AT_ONCE = R > 2 ? 2 : 8 / R;  // columns: to hide how long a multiply-add takes
    const long whole = K / VL * VL;
    const int rest = int(K - whole);
    for (int n = 0; n < units; n += AT_ONCE) {
        vec sums[R][AT_ONCE] = {};
        const int some = int(least(AT_ONCE, units - n));
        const REAL* from[AT_ONCE];  // where fewer are left, the last is read several times
        for (int j = 0; j < AT_ONCE; j++) from[j] = w + (n + least(j, some - 1)) * column;
        for (long k = 0; k < whole; k += VL) {
            vec weights[AT_ONCE];
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++) weights[j] = load<false>(from[j] + k);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const vec x = load<false>(a + i * row + k);
#pragma GCC unroll 8
                for (int j = 0; j < AT_ONCE; j++) sums[i][j] += x * weights[j];
            }
        }
        if (rest) {
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const vec x = load<true>(a + i * row + whole, rest);
#pragma GCC unroll 8
                for (int j = 0; j < AT_ONCE; j++)
                    sums[i][j] += x * load<true>(from[j] + whole, rest);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++)
                if (j < some) out[i * apart + n + j] += sum(sums[i][j]);
    }
}

// out[n] += sum over k of a[k] * w[k * next + n], likewise: a weight whose rows lie in one piece
// each.
template <int R>
ALONE void add_rows(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
                    long next, int units) {
    constexpr int AT_ONCE = R > 2 ? 2 : 4 / R;  // of k
    vec sums[R][AT_ONCE] = {};
    long k = 0;
    if (units == VL) {
        for (; k + AT_ONCE <= K; k += AT_ONCE) {
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++) {
                const vec weight = load<false>(w + (k + j) * next);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) sums[i][j] += broadcast(a[i * row + k + j]) * weight;
            }
        }
    }
    for (; k < K; k++) {
        const vec weight = load<true>(w + k * next, units);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sums[i][0] += broadcast(a[i * row + k]) * weight;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        vec total = sums[i][0];
#pragma GCC unroll 8
        for (int j = 1; j < AT_ONCE; j++) total += sums[i][j];
        *(vec*)(out + i * apart) += total;
    }
}

// A product of a tile's rows with a weight as it lies in memory, for calls of so few steps and rows
// that laying it out anew would take longer.
struct TermInPlace {
    const REAL* a;  // where the first row of the left operand begins
    long row;  // from there to where the next one does
    void** p;  // where all memories begin
    const Piece* pieces;
    long count;  // of these
    long head;
    long unit, units;  // of every block the first column that the tile reads, and how many there are
};

// Adds such a product of R rows, block b to the vector `sums[b]` of each row of `out`; these are
// `apart`.
template <int R>
INLINE void add_in_place(REAL* out, long apart, const int* sums, const TermInPlace& term) {
    const int units = int(least(VL, term.units - term.unit));
    for (long i = 0; i < term.count; i++) {
        const Piece& piece = term.pieces[i];
        const REAL* w = (const REAL*)term.p[piece.pointer] + term.head * piece.head +
                        term.unit * piece.column;
        REAL* into = out + sums[piece.block] * VL;
        const REAL* from = term.a + piece.first;
        const long K = piece.last - piece.first;
        if (piece.row == 1) add_dots<R>(into, apart, from, term.row, w, K, piece.column, units);
        else add_rows<R>(into, apart, from, term.row, w, K, piece.row, units);
    }
}

// Which packed tile comes next, and how many groups of rows have read the present one: each asks for
// one vector of every k of the next, until that is on its way as a whole.
struct Ahead {
    long at, group = 0;

    const REAL* of(const REAL* next, long vectors, long most, const REAL* now) const {
        return group < most ? next + group * vectors : now;
    }
};

// A product of a tile's rows with a packed weight.
struct Term {
    const REAL* a;  // where the first row of the left operand begins
    long row;  // from there to where the next one does
    long inner;  // K
    const REAL* w;  // of every k what the tile reads: a panel of some vectors
    const REAL* ahead;  // what it asks for of the next tile's

    Term(const REAL* a, long row, long inner, const REAL* packed, long panel, long at, long next_at,
         Ahead next)
        : a(a), row(row), inner(inner), w(packed + at * inner * panel * VL),
          ahead(next.of(packed + next_at * inner * panel * VL, inner * VL, panel, w)) {}
};

// Sums that take all registers are made by themselves: what surrounds them would want some, too, and
// compilers would put sums away at every k.
template <void (*SUMS)(const Term*, REAL*)> ALONE void alone(const Term* terms, REAL* out) {
    SUMS(terms, out);
}

// What a tile will read: soon, in 8 values of k, and one vector of the tile after it. Caches load
// both ahead of time by themselves, but not enough of it where weights lie in the last of them.
template <int PANEL> INLINE void hint(const REAL* w, const REAL* ahead) {
#if HINTS
    constexpr int LINE = int(64 / sizeof(REAL));
    for (int n = 0; n < PANEL * VL; n += LINE) __builtin_prefetch(w + 8 * PANEL * VL + n, 0, 3);
    __builtin_prefetch(ahead, 0, 2);
#endif
}

// K values of k of `width` columns of a weight whose rows lie in one piece each; 0 behind those that
// are there.
static void pack_rows(REAL* into, long stride, const REAL* from, long row, long K, long there,
                      int width) {
    const long whole = there / VL * VL;
    for (long k = 0; k < K; k++, from += row, into += stride) {
        long j = 0;
        for (; j < whole; j += VL) *(vec*)(into + j) = load<false>(from + j);
        for (; j < width; j += VL)
            *(vec*)(into + j) = load<true>(from + j, int(most(there - j, 0)));
    }
}

// Likewise, of one whose columns do: squares of VL by VL are transposed.
static void pack_columns(REAL* into, long stride, const REAL* from, long column, long K, long there,
                         int width) {
    for (long j = 0; j < width; j += VL, from += VL * column, into += VL) {
        const long some = least(VL, there - j);
        for (long k = 0; k < K; k += VL) {
            const long deep = least(VL, K - k);
            vec v[VL];
            if (some == VL && deep == VL) {
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) v[i] = load<false>(from + i * column + k);
            } else {
                for (int i = 0; i < VL; i++)
                    v[i] = i < some ? load<true>(from + i * column + k, int(deep)) : vec{};
            }
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                if (i < deep) *(vec*)(into + (k + i) * stride) = v[i];
        }
    }
}

// Columns of a weight, so that a tile of a product reads memory in order: for each k, the tile's
// `width` columns of every block.
static void pack(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks,
                 long unit, long units, int width) {
    const long there = least(width, units - unit), stride = long(blocks) * width;
    for (long i = 0; i < count; i++) {
        const Piece& piece = pieces[i];
        const long row = piece.row, column = piece.column, K = piece.last - piece.first;
        const REAL* from = (const REAL*)p[piece.pointer] + head * piece.head + unit * column;
        REAL* into = out + piece.first * stride + piece.block * width;
        if (column == 1) pack_rows(into, stride, from, row, K, there, width);
        else if (row == 1) pack_columns(into, stride, from, column, K, there, width);
        else
            for (long k = 0; k < K; k++)
                for (long j = 0; j < width; j++)
                    into[k * stride + j] = j < there ? from[k * row + j * column] : 0;
    }
}
