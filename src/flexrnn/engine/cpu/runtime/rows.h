// The operands of outer.h as they are: what is `deep` there is rows.

INLINE long deep_of(long rows) { return rows; }

INLINE vec in_every_lane(const REAL* p) { return broadcast(*p); }

INLINE vec multiplied(vec sum, vec a, vec b) { return sum + a * b; }

// Whether columns that lie in one piece each are read there, HIGH of them at once.
constexpr bool LIE = true;

// HIGH columns for each of some tiles, of the rows in one place; 0 behind the last column.
ALONE void lay_out_left(REAL* into, const REAL* from, long row, long rows, long apart, Range tiles,
                        long high) {
    const long whole = least(tiles.last, high / HIGH) - tiles.first;
    from += tiles.first * HIGH;
    for (long r = 0; r < rows; r++, from += row, into += HIGH) {
        for (long i = 0; i < whole; i++)
            __builtin_memcpy(into + i * apart, from + i * HIGH, HIGH * sizeof(REAL));
        if (tiles.first + whole < tiles.last)
            for (long i = 0; i < HIGH; i++)
                into[whole * apart + i] = i < high % HIGH ? from[whole * HIGH + i] : 0;
    }
}

// Those of one tile, of rows that lie side by side.
ALONE void lay_out_turned(REAL* into, const REAL* from, long column, long rows, long high) {
    for (long r = 0; r < rows; r++, from++, into += HIGH)
        for (long i = 0; i < HIGH; i++) into[i] = i < high ? from[i * column] : 0;
}

// `width` columns of a right matrix.
INLINE void lay_out_right(REAL* into, const REAL* from, long row, long rows, long there, int width) {
    pack_rows(into, width, from, row, rows, there, width);
}

INLINE void lay_out_turned_right(REAL* into, const REAL* from, long column, long rows, long there,
                                 int width) {
    pack_columns(into, width, from, column, rows, there, width);
}
