// What weights.h declares: it is the same for every cell, and so compiled once, not in every loop.

// The sum of each of VL vectors, side by side: as `transpose` does it, and added up on the way.
template <int D = 1> INLINE vec sums_of(vec (&v)[VL]) {
    mask first, last;
    exchanged<D>(first, last);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i += 2 * D)
        v[i] = picked(v[i], v[i + D], first) + picked(v[i], v[i + D], last);
    if constexpr (2 * D < VL) return sums_of<2 * D>(v);
    return v[0];
}

// out[n] += sum over k of a[k] * w[n * column + k], for R rows of a and of out: a weight whose
// columns lie in one piece each.
template <int R>
static void add_dots(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
                     long column, int units) {
    // Columns: to hide how long a multiply-add takes, and as many as registers hold sums of.
    constexpr int AT_ONCE = R <= 2 ? 8 / R : sizeof(vec) == 64 ? 4 : 2;
    const long whole = K / VL * VL;
    const int rest = int(K - whole);
    vec totals[R][VL];
    for (int n = 0; n < units; n += AT_ONCE) {
        vec sums[R][AT_ONCE] = {};
        const int some = int(least(AT_ONCE, units - n));
        const REAL* from[AT_ONCE];  // where fewer are left, the last is read several times
        for (int j = 0; j < AT_ONCE; j++) from[j] = w + (n + least(j, some - 1)) * column;
        for (long k = 0; k < whole; k += VL) {
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const vec x = load<false>(a + i * row + k);
#pragma GCC unroll 8
                for (int j = 0; j < AT_ONCE; j++) sums[i][j] += x * load<false>(from[j] + k);
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
                if (j < some) totals[i][n + j] = sums[i][j];
    }
    for (int i = 0; i < R; i++) {
        for (int n = units; n < VL; n++) totals[i][n] = vec{};
        *(vec*)(out + i * apart) += sums_of(totals[i]);
    }
}

// out[n] += sum over k of a[k] * w[k * next + n], likewise: a weight whose rows lie in one piece
// each.
template <int R>
static void add_rows(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
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

template <int R>
static void add_of(REAL* out, long apart, const int* sums, const TermInPlace& term) {
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

void add_in_place(long rows, REAL* out, long apart, const int* sums, const TermInPlace& term) {
    switch (rows) {
    case 1: return add_of<1>(out, apart, sums, term);
    case 2: return add_of<2>(out, apart, sums, term);
    case 3: return add_of<3>(out, apart, sums, term);
    case 4: return add_of<4>(out, apart, sums, term);
    }
}

void pack_rows(REAL* into, long stride, const REAL* from, long row, long K, long there, int width) {
    const long whole = there / VL * VL;
    for (long k = 0; k < K; k++, from += row, into += stride) {
        long j = 0;
        for (; j < whole; j += VL) *(vec*)(into + j) = load<false>(from + j);
        for (; j < width; j += VL)
            *(vec*)(into + j) = load<true>(from + j, int(most(there - j, 0)));
    }
}

// Squares of VL by VL are transposed.
void pack_columns(REAL* into, long stride, const REAL* from, long column, long K, long there,
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

void pack(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks, long unit,
          long units, int width) {
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
