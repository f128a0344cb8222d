// Sine and cosine, and the angle and length of a point in the plane. Follows math.h.

INLINE vec small_sin(vec r) {  // |r| <= pi / 4
    vec z = r * r, y;
    if constexpr (SINGLE)
        y = r * z * polynomial(z, -1.666666666e-1f, 8.333331874e-3f, -1.984008626e-4f,
                               2.724986466e-6f) + r;
    else
        y = r * z * polynomial(z, -0x1.5555555555555p-3, 0x1.1111111110bb1p-7,
            -0x1.a01a019e8357dp-13, 0x1.71de37961e4c6p-19, -0x1.ae600a926c89ap-26,
            0x1.5e0af186af739p-33) + r;
    return copysign(y, r);
}

INLINE vec small_cos(vec r) {
    vec z = r * r, y = REAL(1) - z * REAL(0.5);
    if constexpr (SINGLE)
        return z * z * polynomial(z, 4.166666466e-2f, -1.388830280e-3f, 2.454789162e-5f) + y;
    return z * z * polynomial(z, 0x1.5555555555555p-5, -0x1.6c16c16c16966p-10,
        0x1.a01a019f4e867p-16, -0x1.27e4fa17a41b4p-22, 0x1.1eeb68b109173p-29,
        -0x1.907d7aebd5e3dp-37) + y;
}

template <int AHEAD> static inline vec wave(vec x) {  // the sine of x and so many right angles
#if defined(__FMA__)
    if (!any(~(abs(x) < REAL(SINGLE ? 1e5f : 1e9)))) {
        constexpr REAL FIRST = 0x1.921fb54442d18p+0;  // of pi / 2 three parts
        constexpr REAL SECOND = SINGLE ? -0x1.777a5cp-25 : 0x1.1a62633145c07p-54;
        constexpr REAL THIRD = SINGLE ? -0x1.ee59dap-50 : -0x1.f1976b7ed8fbcp-110;
        const vec shifted = x * REAL(0x1.45f306dc9c883p-1) + ROUNDER, n = shifted - ROUNDER;
        const vec rest = fused(-n, broadcast(SECOND), fused(-n, broadcast(FIRST), x));
        const vec r = n == REAL(0) ? x : fused(-n, broadcast(THIRD), rest);  // -0.0 keeps its sign
        const words quarter = bits(shifted) + word(AHEAD);
        const vec y = (mask)(quarter & word(1)) == 0 ? small_sin(r) : small_cos(r);
        return (vec)(bits(y) ^ (quarter & word(2)) << (8 * sizeof(REAL) - 2));
    }
#endif
    vec y;
    for (int i = 0; i < VL; i++)
        if constexpr (AHEAD) y[i] = SINGLE ? __builtin_cosf(x[i]) : __builtin_cos(x[i]);
        else y[i] = SINGLE ? __builtin_sinf(x[i]) : __builtin_sin(x[i]);
    return y;
}

static inline vec sin(vec x) { return wave<0>(x); }
static inline vec cos(vec x) { return wave<1>(x); }

constexpr REAL PI_HIGH = SINGLE ? 0x1.921fb6p+1 : 0x1.921fb54442d18p+1;  // and the rest of it:
constexpr REAL PI_LOW = SINGLE ? -0x1.777a5cp-24 : 0x1.1a62633145c07p-53;

INLINE vec atan_of_small(vec t) {  // |t| <= tan(pi / 8)
    vec z = t * t;
    if constexpr (SINGLE)
        return t * z * polynomial(z, -3.333333176e-1f, 1.999954048e-1f, -1.426395560e-1f,
                                  1.074373149e-1f, -6.451928208e-2f) + t;
    return t * z * polynomial(z, -0x1.5555555555555p-2, 0x1.999999999934cp-3, -0x1.2492492436201p-3,
        0x1.c71c71853d7fap-4, -0x1.745d0b28a7e37p-4, 0x1.3b1263064f6b9p-4, -0x1.10fa77b1a6d57p-4,
        0x1.dfe6497e96323p-5, -0x1.a0999c632b6edp-5, 0x1.4162c02b1dda3p-5, -0x1.3a31b1c0fd3b7p-6)
        + t;
}

INLINE vec steepness(vec y, vec x) {  // the angle of (x, y) where neither is negative
    const mask steep = y > x;
    // No sum of theirs is endless then, and of the smallest numbers no part is lost.
    const vec scale = (steep ? y : x) > REAL(1) ? broadcast(0.5) : broadcast(1L << MANTISSA);
    const vec more = (steep ? y : x) * scale, less = (steep ? x : y) * scale;
    const mask same = (less == more) & (less > REAL(0));  // endless, perhaps
    const mask near = same | (less > more * REAL(0.41421356237309504880));  // to pi / 4
    const vec over = near ? less + more : more == REAL(0) ? broadcast(1) : more;
    const vec rest = same ? vec{} : atan_of_small((near ? less - more : less) / over);
    const vec times = near ? broadcast(0.25) : steep ? broadcast(0.5) : vec{};  // pi
    return times * PI_HIGH + (times * PI_LOW + (steep ? -rest : rest));
}

static inline vec atan(vec x) { return copysign(steepness(abs(x), broadcast(1)), x); }

static inline vec atan2(vec y, vec x) {
    const vec ahead = steepness(abs(y), abs(x));
    return copysign((mask)x < 0 ? PI_HIGH - (ahead - PI_LOW) : ahead, y);
}

static inline vec hypot(vec a, vec b) {  // whose squares are neither endless nor nothing
    constexpr REAL FAR = SINGLE ? 0x1p40f : 0x1p500, DOWN = SINGLE ? 0x1p-80f : 0x1p-600;
    constexpr REAL UP = SINGLE ? 0x1p100f : 0x1p600;
    const vec most = abs(a) > abs(b) ? abs(a) : abs(b);
    const vec scale = most > FAR ? broadcast(DOWN) : most < 1 / FAR ? broadcast(UP) : broadcast(1);
    const vec x = a * scale, y = b * scale, length = sqrt(x * x + y * y) / scale;
    return (abs(a) == HUGE) | (abs(b) == HUGE) ? broadcast(HUGE) : length;
}
