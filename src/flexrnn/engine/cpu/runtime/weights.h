// Weights of products, as they lie in memory or packed, and what tiles read of them.

// Rows `first` to `last` of one block of a weight's columns, as they lie in memory: element (k, n)
// of the block lies `(k - first) * row + n * column` numbers behind `p[pointer]`.
struct Piece {
    long pointer, block, first, last, head, row, column;
};

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

// Adds such a product of up to 4 rows, block b to the vector `sums[b]` of each row of `out`; these
// are `apart`.
void add_in_place(long rows, REAL* out, long apart, const int* sums, const TermInPlace& term);

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

// What a tile will read: soon, in 8 values of k, and one vector of the tile after it. Caches load
// both ahead of time by themselves, but not enough of it where weights lie in the last of them.
template <int PANEL> INLINE void hint(const REAL* w, const REAL* ahead) {
#if HINTS
    constexpr int LINE = int(64 / sizeof(REAL));
    for (int n = 0; n < PANEL * VL; n += LINE) __builtin_prefetch(w + 8 * PANEL * VL + n, 0, 3);
    __builtin_prefetch(ahead, 0, 2);
#endif
}

// In how many parts sums are made, each of every so many-th k, so that enough are under way at once: an
// addition takes four cycles to come out, and two begin in each.
constexpr int chains(int sums) { return sums < 8 ? 8 / sums : 1; }

// K values of k of `width` columns of a weight whose rows lie in one piece each; 0 behind those that
// are there.
void pack_rows(REAL* into, long stride, const REAL* from, long row, long K, long there, int width);

// Likewise, of one whose columns do.
void pack_columns(REAL* into, long stride, const REAL* from, long column, long K, long there,
                  int width);

// Columns of a weight, so that a tile of a product reads memory in order: for each k, the tile's
// `width` columns of every block.
void pack(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks, long unit,
          long units, int width);
