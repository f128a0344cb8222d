// What narrow.h declares: it is the same for every cell, and so compiled once, not in every loop.

typedef unsigned short half __attribute__((may_alias));

void pack_pairs_of_rows(REAL* into, long stride, const REAL* from, long row, long K,
                        long there, int width) {
    for (long k = 0; k < K; k += 2, from += 2 * row, into += stride)
        for (int j = 0; j < width; j += VL) {
            const int some = int(least(VL, most(there - j, 0)));
            const vec even = load<true>(from + j, some);
            *(vec*)(into + j) = paired(even, k + 1 < K ? load<true>(from + row + j, some) : vec{});
        }
}

// Squares of VL by VL pairs are transposed.
void pack_pairs_of_columns(REAL* into, long stride, const REAL* from, long column, long K,
                           long there, int width) {
    for (int j = 0; j < width; j += VL, from += VL * column, into += VL) {
        const long some = least(VL, there - j);
        for (long k = 0; k < K; k += 2 * VL) {
            vec v[VL];
            for (int i = 0; i < VL; i++) v[i] = i < some ? pairs(from + i * column + k, K - k) : vec{};
            transpose(v);
            const long deep = least(VL, ceil_div(K - k, 2));
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                if (i < deep) *(vec*)(into + (k / 2 + i) * stride) = v[i];
        }
    }
}

void pack_pairs(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks,
                long unit, long units, int width) {
    const long there = least(width, units - unit), stride = long(blocks) * width;
    long inner = 0;
    for (long i = 0; i < count; i++) inner = most(inner, pieces[i].last);
    for (long i = 0; i < count; i++) {
        const Piece& piece = pieces[i];
        const long row = piece.row, column = piece.column;
        const REAL* from = (const REAL*)p[piece.pointer] + head * piece.head + unit * column;
        from -= piece.first * row;  // where k = 0 would be
        REAL* into = out + piece.block * width;
        const auto alone = [&](long k) {  // one half of pairs whose other half is another piece's
            for (long j = 0; j < width; j++) {
                const vec v = broadcast(j < there ? from[k * row + j * column] : 0);
                ((half*)(into + k / 2 * stride + j))[k % 2] = rounded(v)[0] >> 16;
                if (k + 1 == inner && k % 2 == 0) ((half*)(into + k / 2 * stride + j))[1] = 0;
            }
        };
        long first = piece.first, last = piece.last;
        if (row != 1 && column != 1) {
            while (first < last) alone(first++);
            continue;
        }
        if (first % 2 && first < last) alone(first++);
        if (last % 2 && last < inner && first < last) alone(--last);
        if (first >= last) continue;
        from += first * row, into += first / 2 * stride;
        const long K = last - first;
        if (column == 1) pack_pairs_of_rows(into, stride, from, row, K, there, width);
        else pack_pairs_of_columns(into, stride, from, column, K, there, width);
    }
}
