// Products of numbers that are rounded to bfloat16, with sums of float. Two of them, those of an even k
// and of the next one, lie in the place of one number: a pair. A vector of pairs is of type vec, too.
//
// The instructions are written out, for compilers disagree about the types of their own functions.

typedef INT pair __attribute__((may_alias));

// The pair in every lane.
INLINE vec broadcast_pair(const REAL* p) { return (vec)(*(const pair*)p - mask{}); }

// Of every lane the sum, and the products of both numbers.
INLINE vec dot(vec sum, vec a, vec b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

// 2 * VL numbers as VL pairs.
INLINE vec pairs(vec first, vec last) {
    vec made;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(made) : "v"(first), "v"(last));
    return made;
}

// The same of n numbers in memory; 0 behind them.
INLINE vec pairs(const REAL* p, long n) {
    if (n >= 2 * VL) return pairs(load<false>(p), load<false>(p + VL));
    return pairs(load<true>(p, int(least(n, VL))), load<true>(p + VL, int(most(n - VL, 0))));
}

// A row of K numbers as pairs.
INLINE void narrow(REAL* into, const REAL* from, long K) {
    for (; K >= 2 * VL; K -= 2 * VL, from += 2 * VL, into += VL)
        store<false>(into, pairs(from, 2 * VL));
    if (K > 0) store<true>(into, pairs(from, K), int(ceil_div(K, 2)));
}

typedef unsigned wholes __attribute__((vector_size(VL * sizeof(unsigned))));

// Numbers as bfloat16 has them, in the upper half of each lane; below it is what is cut off. To the
// nearest, and of two that are as near to the even one.
INLINE wholes rounded(vec v) {
    const wholes all = (wholes)v;
    return v == v ? all + 0x7fff + (all >> 16 & 1) : all | 0x400000;
}

// Lane by lane the pairs of two vectors.
INLINE vec paired(vec even, vec odd) {
    return (vec)((rounded(even) >> 16) | (rounded(odd) & 0xffff0000));
}

// As `pack_rows`, K values of k in pairs.
void pack_pairs_of_rows(REAL* into, long stride, const REAL* from, long row, long K, long there,
                        int width);

// Likewise, as `pack_columns`.
void pack_pairs_of_columns(REAL* into, long stride, const REAL* from, long column, long K,
                           long there, int width);

// As `pack`, in pairs: for each of these the tile's `width` columns of every block.
void pack_pairs(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks,
                long unit, long units, int width);
