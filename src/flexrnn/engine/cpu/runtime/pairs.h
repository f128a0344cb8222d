// The operands of outer.h rounded to bfloat16: what is `deep` there is pairs of rows, of which the last
// one in a place may be a row and nothing. See rows.h, which has the same for numbers as they are.

INLINE long deep_of(long rows) { return ceil_div(rows, 2); }

INLINE vec in_every_lane(const REAL* p) { return broadcast_pair(p); }

INLINE vec multiplied(vec sum, vec a, vec b) { return dot(sum, a, b); }

constexpr bool LIE = false;

ALONE void lay_out_left(REAL* into, const REAL* from, long row, long rows, long apart, Range tiles,
                        long high) {
    for (long i = tiles.first; i < tiles.last; i += VL, into += VL * apart) {
        const long some = least(VL, tiles.last - i), there = least(some * HIGH, high - i * HIGH);
        const REAL* each = from + i * HIGH;
        REAL* tile = into;
        for (long r = 0; r < rows; r += 2, each += 2 * row, tile += HIGH) {
            REAL made[HIGH * VL];
            for (long j = 0; j < some * HIGH; j += VL) {
                const int n = int(least(VL, most(there - j, 0)));
                const vec odd = r + 1 < rows ? load<true>(each + row + j, n) : vec{};
                store<false>(made + j, paired(load<true>(each + j, n), odd));
            }
            for (long k = 0; k < some; k++)
                __builtin_memcpy(tile + k * apart, made + k * HIGH, HIGH * sizeof(REAL));
        }
    }
}

ALONE void lay_out_turned(REAL* into, const REAL* from, long column, long rows, long high) {
    for (long r = 0; r < rows; r += 2 * VL, from += 2 * VL, into += VL * HIGH)
        for (long i = 0; i < HIGH; i++) {
            const vec v = i < high ? pairs(from + i * column, rows - r) : vec{};
            const long deep = least(VL, ceil_div(rows - r, 2));
#pragma GCC unroll 16
            for (int k = 0; k < VL; k++)
                if (k < deep) into[k * HIGH + i] = v[k];
        }
}

INLINE void lay_out_right(REAL* into, const REAL* from, long row, long rows, long there, int width) {
    pack_pairs_of_rows(into, width, from, row, rows, there, width);
}

INLINE void lay_out_turned_right(REAL* into, const REAL* from, long column, long rows, long there,
                                 int width) {
    pack_pairs_of_columns(into, width, from, column, rows, there, width);
}
