// Elementwise functions on vectors, with torch's results at ties, at NaN, at infinity and at -0.0.
//
// Follows vector.h. exp, its inverses and what is made of them are polynomials on the whole vector;
// their coefficients are Chebyshev interpolants at 60 digits, good to a tenth of an ulp on their
// interval. Rare functions go lane by lane through libm.

constexpr REAL INFINITY_ = __builtin_inff();
constexpr REAL NAN_ = __builtin_nanf("");
constexpr int MANTISSA = SINGLE ? 23 : 52;
constexpr INT SIGN = INT(1) << (sizeof(REAL) * 8 - 1);
constexpr INT ONE = SINGLE ? 0x3f800000 : INT(0x3ff0000000000000);  // the bits of 1.0
// Added to a small number, it leaves the nearest integer in the lowest bits; taken away, as REAL.
constexpr REAL ROUNDER = SINGLE ? 0x1.8p23 : 0x1.8p52;
constexpr REAL LOG2_E = 0x1.71547652b82fep+0;
// ln 2 in two parts; the first has zeros at its end, so that k times it is exact.
constexpr REAL LN2_HIGH = SINGLE ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1;
constexpr REAL LN2_LOW = SINGLE ? 0x1.7f7d1cp-20 : 0x1.ef35793c7673p-45;

INLINE mask bits(vec x) { return (mask)x; }
INLINE vec abs(vec x) { return (vec)(bits(x) & ~SIGN); }
INLINE vec neg(vec x) { return (vec)(bits(x) ^ SIGN); }
INLINE vec copysign(vec size, vec sign) {
    return (vec)((bits(size) & ~SIGN) | (bits(sign) & SIGN));
}

template <class... C> INLINE vec polynomial(vec x, REAL c0, C... higher) {
    if constexpr (sizeof...(higher) == 0) return broadcast(c0);
    else return polynomial(x, higher...) * x + c0;
}

// x is at least low, and NaN where it was.
INLINE vec at_least(vec x, REAL low) {
#if defined(__AVX512F__) && !defined(__clang__)  // which does not see that this is one instruction
    if constexpr (sizeof(vec) == 64 && SINGLE)
        return (vec)__builtin_ia32_maxps512_mask(
            (float16)broadcast(low), (float16)x, float16{}, -1, 4);
    if constexpr (sizeof(vec) == 64 && !SINGLE)
        return (vec)__builtin_ia32_maxpd512_mask(
            (double8)broadcast(low), (double8)x, double8{}, -1, 4);
#endif
    return x < low ? broadcast(low) : x;
}

INLINE vec at_most(vec x, REAL high) {
#if defined(__AVX512F__) && !defined(__clang__)
    if constexpr (sizeof(vec) == 64 && SINGLE)
        return (vec)__builtin_ia32_minps512_mask(
            (float16)broadcast(high), (float16)x, float16{}, -1, 4);
    if constexpr (sizeof(vec) == 64 && !SINGLE)
        return (vec)__builtin_ia32_minpd512_mask(
            (double8)broadcast(high), (double8)x, double8{}, -1, 4);
#endif
    return x > high ? broadcast(high) : x;
}

// -- exp and what is made of it -----------------------------------------------------------------

struct Reduced {  // x = n ln 2 + r, |r| <= ln 2 / 2
    vec n, r;
    mask k;  // n in its lowest bits
};

INLINE Reduced reduce(vec x) {
    vec shifted = x * LOG2_E + ROUNDER;
    vec n = shifted - ROUNDER;
    return {n, (x - n * LN2_HIGH) - n * LN2_LOW, bits(shifted)};
}

INLINE vec power_of_two(mask k) { return (vec)((k << MANTISSA) + ONE); }  // 2 ** k, k in range

INLINE vec small_expm1(vec r) {  // |r| <= ln 2 / 2
    if constexpr (SINGLE)
        return r * r * polynomial(r, 5.0000000000e-01f, 1.6666576266e-01f, 4.1666556150e-02f,
                                  8.3632031456e-03f, 1.3926213142e-03f) + r;
    else
        return r * r * polynomial(r, 0x1.0000000000001p-1, 0x1.5555555555556p-3,
            0x1.5555555553d4fp-5, 0x1.11111111109adp-7, 0x1.6c16c17893833p-10,
            0x1.a01a01a7c8d47p-13, 0x1.a019b8ef67c6cp-16, 0x1.71de0d9c145d0p-19,
            0x1.2891a8c1d838dp-22, 0x1.af38d53857513p-26) + r;
}

INLINE vec scaled(vec x, vec n) {  // x times 2 ** n, right also where that overflows or underflows
#if defined(__AVX512F__) && !defined(__clang__)
    if constexpr (sizeof(vec) == 64 && SINGLE)
        return (vec)__builtin_ia32_scalefps512_mask((float16)x, (float16)n, float16{}, -1, 4);
    if constexpr (sizeof(vec) == 64 && !SINGLE)
        return (vec)__builtin_ia32_scalefpd512_mask((double8)x, (double8)n, double8{}, -1, 4);
#endif
    vec half = n * REAL(0.5) + ROUNDER;
    vec rest = n - (half - ROUNDER) + ROUNDER;
    return x * power_of_two(bits(half)) * power_of_two(bits(rest));
}

constexpr REAL EXP_LOWEST = SINGLE ? -104 : -746;  // below it exp is 0
constexpr REAL EXP_HIGHEST = SINGLE ? 89 : 710;    // above it exp is infinite

INLINE vec exp_below_zero(vec x) {  // x <= 0
    Reduced x_ = reduce(at_least(x, EXP_LOWEST));
    return scaled(small_expm1(x_.r) + REAL(1), x_.n);
}

INLINE vec exp(vec x) { return exp_below_zero(at_most(x, EXP_HIGHEST)); }

INLINE vec sigmoid(vec x) {  // from exp(-|x|), which keeps every digit where the result is small
    vec e = exp_below_zero((vec)(bits(x) | SIGN));
    return (x < REAL(0) ? e : broadcast(1)) / (e + REAL(1));
}

INLINE vec tanh(vec x) {  // -m / (2 + m) where m = exp(-2 |x|) - 1
    Reduced x_ = reduce(at_least((vec)(bits(x + x) | SIGN), SINGLE ? -20 : -40));
    vec power = power_of_two(x_.k);
    vec m = small_expm1(x_.r) * power + (power - REAL(1));
    return copysign(m / (m + REAL(2)), x);
}
