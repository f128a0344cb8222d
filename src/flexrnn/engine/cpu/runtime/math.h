// Elementwise functions on vectors, with torch's results at ties, at NaN and at infinity.
//
// Follows vector.h. exp, log, erf and what is made of them are polynomials on the whole vector;
// the coefficients interpolate at Chebyshev points, computed with 60 digits, and err by a tenth of
// an ulp on their interval. Rare functions go lane by lane through libm: those come first.

constexpr REAL HUGE = __builtin_inff();
constexpr int MANTISSA = SINGLE ? 23 : 52;
typedef unsigned INT word;  // the bits of a number; sums of them wrap around
typedef word words __attribute__((vector_size(VL * sizeof(word))));
constexpr word SIGN = word(1) << (8 * sizeof(REAL) - 1);
constexpr word ONE = SINGLE ? 0x3f800000 : word(0x3ff0000000000000);  // the bits of 1.0
// Added to a small number, it leaves the nearest integer in the lowest bits.
constexpr REAL ROUNDER = SINGLE ? 0x1.8p23 : 0x1.8p52;
constexpr REAL LOG2_E = 0x1.71547652b82fep+0;
// ln 2 in two parts; the first ends in zeros, so that its product with an exponent is exact.
constexpr REAL LN2 = 0x1.62e42fefa39efp-1;
constexpr REAL LN2_HIGH = SINGLE ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1;
constexpr REAL LN2_LOW = SINGLE ? 0x1.7f7d1cp-20 : 0x1.ef35793c7673p-45;

INLINE words bits(vec x) { return (words)x; }
INLINE vec abs(vec x) { return (vec)(bits(x) & ~SIGN); }
INLINE vec minus_abs(vec x) { return (vec)(bits(x) | SIGN); }
INLINE vec copysign(vec size, vec sign) {
    return (vec)((bits(size) & ~SIGN) | (bits(sign) & SIGN));
}

template <class... C> INLINE vec polynomial(vec x, REAL c0, C... higher) {
    if constexpr (sizeof...(higher) == 0) return broadcast(c0);
    else return polynomial(x, higher...) * x + c0;
}

// -- what goes through libm, lane by lane -------------------------------------------------------

#define BY_LANE(name)                                                                     \
    static inline vec name(vec x) {                                                       \
        vec y;                                                                            \
        for (int i = 0; i < VL; i++)                                                      \
            y[i] = SINGLE ? __builtin_##name##f(x[i]) : __builtin_##name(x[i]);           \
        return y;                                                                         \
    }
#define BY_LANE_OF_TWO(name)                                                              \
    static inline vec name(vec a, vec b) {                                                \
        vec y;                                                                            \
        for (int i = 0; i < VL; i++)                                                      \
            y[i] = SINGLE ? __builtin_##name##f(a[i], b[i]) : __builtin_##name(a[i], b[i]); \
        return y;                                                                         \
    }
BY_LANE(sqrt)  // the first five are one instruction where the machine has it
BY_LANE(floor)
BY_LANE(ceil)
BY_LANE(trunc)
BY_LANE(rint)
BY_LANE(tan)
BY_LANE(asin)
BY_LANE(acos)
BY_LANE_OF_TWO(pow)

INLINE bool any(mask lanes) {
    INT found = 0;
    for (int i = 0; i < VL; i++) found |= lanes[i];
    return found;
}

#if defined(__FMA__)
INLINE vec fused(vec a, vec b, vec c) {  // a b + c, which is rounded once
    vec y;
    for (int i = 0; i < VL; i++)
        y[i] = SINGLE ? __builtin_fmaf(a[i], b[i], c[i]) : __builtin_fma(a[i], b[i], c[i]);
    return y;
}
#endif

// -- exp and what is made of it -----------------------------------------------------------------

struct Reduced {  // x = n ln 2 + r with |r| <= ln 2 / 2
    vec n, r;
    words k;  // n in the lowest bits
};

INLINE Reduced reduce(vec x) {
    vec shifted = x * LOG2_E + ROUNDER;
    vec n = shifted - ROUNDER;
    return {n, (x - n * LN2_HIGH) - n * LN2_LOW, bits(shifted)};
}

INLINE vec power_of_two(words k) { return (vec)((k << MANTISSA) + ONE); }

INLINE vec small_expm1(vec r) {  // |r| <= ln 2 / 2
    if constexpr (SINGLE)
        return r * r * polynomial(r, 0.5f, 1.6666576266e-1f, 4.1666556150e-2f, 8.3632031456e-3f,
                                  1.3926213142e-3f) + r;
    return r * r * polynomial(r, 0x1.0000000000001p-1, 0x1.5555555555556p-3, 0x1.5555555553d4fp-5,
        0x1.11111111109adp-7, 0x1.6c16c17893833p-10, 0x1.a01a01a7c8d47p-13, 0x1.a019b8ef67c6cp-16,
        0x1.71de0d9c145d0p-19, 0x1.2891a8c1d838dp-22, 0x1.af38d53857513p-26) + r;
}

#if defined(__AVX512F__) && !defined(__clang__)
INLINE float16 scaled(float16 x, float16 n) {
    return __builtin_ia32_scalefps512_mask(x, n, x, -1, 4);
}
INLINE double8 scaled(double8 x, double8 n) {
    return __builtin_ia32_scalefpd512_mask(x, n, x, -1, 4);
}
#else
INLINE vec scaled(vec x, vec n) {  // x times 2 ** n; in two steps, for 2 ** n may not be a number
    vec half = n * REAL(0.5) + ROUNDER;
    vec rest = n - (half - ROUNDER) + ROUNDER;
    return x * power_of_two(bits(half)) * power_of_two(bits(rest));
}
#endif

constexpr REAL EXP_0 = SINGLE ? -104 : -746;   // where exp has become 0
constexpr REAL EXP_HUGE = SINGLE ? 89 : 710;   // where it has become infinite
constexpr REAL EXPM1_FLAT = SINGLE ? -20 : -40;  // where expm1 has become -1

INLINE vec exp_below_0(vec x) {  // or above, where exp is finite
    Reduced at = reduce(at_least(x, broadcast(EXP_0)));
    return scaled(small_expm1(at.r) + REAL(1), at.n);
}

INLINE vec exp(vec x) { return exp_below_0(at_most(x, broadcast(EXP_HUGE))); }

static inline vec exp2(vec x) {
    vec n = at_most(at_least(x, broadcast(SINGLE ? -151 : -1076)), broadcast(SINGLE ? 129 : 1025));
    n = (n + ROUNDER) - ROUNDER;
    vec r = (x - n) * LN2;
    return scaled(small_expm1(at_most(at_least(r, broadcast(-1)), broadcast(1))) + REAL(1), n);
}

static inline vec expm1(vec x) {
    Reduced at = reduce(at_most(at_least(x, broadcast(EXPM1_FLAT)), broadcast(EXP_HUGE)));
    vec half = power_of_two(at.k - word(1));  // of 2 ** n, which may be infinite where expm1 is not
    vec y = (small_expm1(at.r) * half + (half - REAL(0.5))) * REAL(2);
    return copysign(y, x);
}

INLINE vec sigmoid(vec x) {  // from exp(-|x|): every digit right where the result is small, too
    vec e = exp_below_0(minus_abs(x));
    return (x < REAL(0) ? e : broadcast(1)) / (e + REAL(1));
}

INLINE vec tanh(vec x) {  // -m / (2 + m) where m = exp(-2 |x|) - 1
    Reduced at = reduce(at_least(minus_abs(x + x), broadcast(EXPM1_FLAT)));
    vec power = power_of_two(at.k);
    vec m = small_expm1(at.r) * power + (power - REAL(1));
    return copysign(m / (m + REAL(2)), x);
}

// -- log and what is made of it -----------------------------------------------------------------

struct Split {  // x = 2 ** k (1 + f) with 1 + f between the roots of 1/2 and 2
    vec k, f;
};

INLINE Split split(vec x) {  // 0 < x < inf
    constexpr word ROOT = SINGLE ? 0x3f3504f3 : word(0x3fe6a09e667f3bcd);  // the bits of sqrt(1/2)
    constexpr REAL TINIEST = SINGLE ? 0x1p-126 : 0x1p-1022, UP = SINGLE ? 0x1p25 : 0x1p54;
    mask tiny = x < TINIEST;
    words from_root = bits(tiny ? x * UP : x) - ROOT;
    words k = ((from_root + ONE) >> MANTISSA) - (ONE >> MANTISSA);
    vec rounded = (vec)(k + bits(broadcast(ROUNDER))) - ROUNDER;
    vec mantissa = (vec)(from_root - (k << MANTISSA) + ROOT);
    return {tiny ? rounded - REAL(SINGLE ? 25 : 54) : rounded, mantissa - REAL(1)};
}

INLINE vec rest_of_log1p(vec f) {  // f - log(1 + f), by atanh's series in s
    vec s = f / (f + REAL(2)), z = s * s;
    if constexpr (SINGLE)
        return s * (f - z * polynomial(z, 6.6666686535e-1f, 3.9988759160e-1f, 2.9580986500e-1f));
    return s * (f - z * polynomial(z, 0x1.5555555555558p-1, 0x1.9999999995273p-2,
        0x1.2492492dfd86cp-2, 0x1.c71c62d5e53e0p-3, 0x1.7462b91b8df65p-3, 0x1.39fdcceb4bb45p-3,
        0x1.2b5f68a50d903p-3));
}

INLINE vec finite_log(vec x) {
    Split at = split(x);
    return at.k * LN2_HIGH + (at.f - (rest_of_log1p(at.f) - at.k * LN2_LOW));
}

INLINE vec with_limits_of_log(vec y, vec x) {  // y where x is positive and finite
    vec limit = x < REAL(0) ? broadcast(__builtin_nanf("")) : x == REAL(0) ? broadcast(-HUGE) : x;
    return (x > REAL(0)) & (x < HUGE) ? y : limit;
}

static inline vec log(vec x) { return with_limits_of_log(finite_log(x), x); }

static inline vec log2(vec x) {
    Split at = split(x);
    return with_limits_of_log(at.k + (at.f - rest_of_log1p(at.f)) * LOG2_E, x);
}

static inline vec log10(vec x) {
    constexpr REAL HIGH = SINGLE ? 0x1.344p-2 : 0x1.34413509f6p-2;  // log10(2), as ln 2 above
    constexpr REAL LOW = SINGLE ? 0x1.3509f79fef312p-18 : 0x1.9fef311f12b36p-42;
    Split at = split(x);
    vec ln = at.f - rest_of_log1p(at.f);
    return with_limits_of_log(at.k * HIGH + (ln * REAL(0x1.bcb7b1526e50ep-2) + at.k * LOW), x);
}

INLINE vec finite_log1p(vec x) {  // x > -1; u has lost what x - (u - 1) gives back
    vec u = x + REAL(1);
    return copysign(finite_log(u) + (x - (u - REAL(1))) / u, x);
}

static inline vec log1p(vec x) {
    vec limit = x < REAL(-1) ? broadcast(__builtin_nanf("")) : x == REAL(-1) ? broadcast(-HUGE) : x;
    return (x > REAL(-1)) & (x < HUGE) ? finite_log1p(x) : limit;
}

INLINE vec log1p_of_exp(vec x) { return finite_log1p(exp_below_0(x)); }  // where exp is finite

static inline vec softplus(vec x) {  // torch's is x itself above 20
    return x > REAL(20) ? x : log1p_of_exp(at_most(x, broadcast(20)));
}

static inline vec log_sigmoid(vec x) {
    return at_most(x, vec{}) - log1p_of_exp(minus_abs(x));
}

static inline vec logaddexp(vec a, vec b) {
    vec most = maximum(a, b), y = most + log1p_of_exp(minus_abs(a - b));
    return (a == b) & (abs(a) == HUGE) ? a : y;
}

// -- hyperbolic functions -----------------------------------------------------------------------

constexpr REAL ROOTS = SINGLE ? 1e9f : 1e150;  // above, 1 is nothing beside a square

INLINE vec half_exp(vec x) {  // of x >= 0, which is finite where exp is not
    Reduced at = reduce(at_most(x, broadcast(SINGLE ? 90 : 711)));
    return scaled(small_expm1(at.r) + REAL(1), at.n - REAL(1));
}

static inline vec cosh(vec x) {
    vec half = half_exp(abs(x));
    return half + REAL(0.25) / half;
}

static inline vec sinh(vec x) {
    vec half = half_exp(abs(x)), m = expm1(at_most(abs(x), broadcast(1)));
    vec small = (m + m / (m + REAL(1))) * REAL(0.5);
    return copysign(abs(x) < REAL(1) ? small : half - REAL(0.25) / half, x);
}

static inline vec asinh(vec x) {
    vec a = abs(x), small = finite_log1p(a + a * a / (sqrt(a * a + REAL(1)) + REAL(1)));
    return copysign(a < ROOTS ? small : log(a) + REAL(LN2), x);
}

static inline vec acosh(vec x) {
    vec t = x - REAL(1), small = finite_log1p(t + sqrt(t * t + (t + t)));
    vec y = x < ROOTS ? small : log(x) + REAL(LN2);
    return x < REAL(1) ? broadcast(__builtin_nanf("")) : x == REAL(1) ? vec{} : y;
}

static inline vec atanh(vec x) {
    vec a = abs(x), twice = a + a;
    vec y = copysign(log1p(twice + twice * a / (REAL(1) - a)) * REAL(0.5), x);
    return a > REAL(1) ? broadcast(__builtin_nanf("")) : y;
}

// -- the error function -------------------------------------------------------------------------

INLINE vec small_erf(vec x) {  // |x| < 0.65
    vec z = x * x;
    if constexpr (SINGLE)
        return x * polynomial(z, 1.283791661e-1f, -3.761263490e-1f, 1.128365546e-1f,
                              -2.685234137e-2f, 5.159957334e-3f, -7.158936351e-4f) + x;
    return x * polynomial(z, 0x1.06eba8214db69p-3, -0x1.812746b0379e6p-2, 0x1.ce2f21a042b4dp-4,
        -0x1.b82ce312835bcp-6, 0x1.565bcd0cd4ce5p-8, -0x1.c02db37402375p-11, 0x1.f9a308b361091p-14,
        -0x1.f4ce27a2757c6p-17, 0x1.b98662608f86cp-20, -0x1.5a0e71e7e503ep-23,
        0x1.a3d45e4f76772p-27) + x;
}

INLINE vec large_erfc(vec x) {  // x >= 0.65: exp(-x x) p(t) / (1 + 2 x), t = (x - c) / (x + c)
    constexpr REAL C = SINGLE ? 2 : 3;
    constexpr word UPPER = ~word(SINGLE ? 0xfff : 0x7ffffff);  // so many bits have an exact square
    x = at_most(x, broadcast(SINGLE ? 11 : 28));  // where it has become 0
    vec t = (x - C) / (x + C), p;
    if constexpr (SINGLE)
        p = polynomial(t, 1.276978374f, -9.276378900e-2f, -1.660297811e-1f, 1.640488952e-1f,
            -5.423028022e-2f, -7.995991036e-3f, 8.770821616e-3f, 1.050303574e-3f,
            -1.471589319e-3f);
    else
        p = polynomial(t, 0x1.40c522d7e4987p+0, -0x1.15c084bb9e901p-3, -0x1.85a15c58aa288p-5,
            0x1.098366a5b4ec5p-3, -0x1.e88b803a507afp-4, 0x1.17ca2877c8431p-4,
            -0x1.8574c40895976p-6, 0x1.4b884ea0eda08p-9, 0x1.ef1bda505e9e2p-10,
            -0x1.98db5f1b0d480p-11, -0x1.b910da429d1fbp-14, 0x1.065b6cf25908fp-13,
            0x1.4b9b2ad6baf51p-18, -0x1.5159da4525744p-16, -0x1.79c1ca160d15ep-21,
            0x1.d393f1eaca85ep-19, 0x1.3fcb83c405326p-22, -0x1.4d19e56b79002p-21,
            -0x1.28b895eb0c9c3p-24, 0x1.7ee854192b8a8p-24, -0x1.3684d7bdd5609p-29);
    vec upper = (vec)(bits(x) & UPPER), lower = x - upper, square = x * x;
    vec lost = (upper * upper - square) + (x + upper) * lower;  // by rounding the square
    return exp_below_0(-square) * ((p - p * lost) / (x + x + REAL(1)));
}

static inline vec erf(vec x) {
    return abs(x) < REAL(0.65) ? small_erf(x) : copysign(REAL(1) - large_erfc(abs(x)), x);
}

static inline vec erfc(vec x) {
    vec tail = large_erfc(abs(x));
    vec far = x < REAL(0) ? REAL(2) - tail : tail;
    return abs(x) < REAL(0.65) ? REAL(1) - small_erf(x) : far;
}

// -- activations --------------------------------------------------------------------------------

INLINE vec clamp(vec x, REAL low, REAL high) {
    if (low != low || high != high) return broadcast(__builtin_nanf(""));
    return at_most(at_least(x, broadcast(low)), broadcast(high));
}
INLINE vec relu(vec x) { return at_least(x, vec{}); }
INLINE vec relu6(vec x) { return clamp(x, 0, 6); }
INLINE vec hardsigmoid(vec x) { return clamp(x + REAL(3), 0, 6) / REAL(6); }
INLINE vec hardswish(vec x) { return x * hardsigmoid(x); }
INLINE vec leaky_relu(vec x, REAL slope) { return x > REAL(0) ? x : x * slope; }
INLINE vec silu(vec x) { return x * sigmoid(x); }
static inline vec elu(vec x, REAL alpha) { return x > REAL(0) ? x : expm1(x) * alpha; }
static inline vec selu(vec x) {
    constexpr REAL ALPHA = 1.6732632423543772848, SCALE = 1.0507009873554804934;
    return elu(x, ALPHA) * SCALE;
}
static inline vec gelu(vec x) {  // by erfc, for 1 + erf would lose the digits of a small result
    return x * REAL(0.5) * erfc(x * REAL(-0.70710678118654752440));
}
static inline vec gelu_tanh(vec x) {
    constexpr REAL K = 0.79788456080286535588, CUBE = 0.044715;
    return x * REAL(0.5) * (tanh((x + x * x * x * CUBE) * K) + REAL(1));
}
static inline vec mish(vec x) { return x * tanh(softplus(x)); }

// -- choice, rounding, and arithmetic of two ----------------------------------------------------

INLINE vec sign(vec x) { return real(x > REAL(0)) - real(x < REAL(0)); }  // of NaN 0
INLINE vec lerp(vec a, vec b, vec w) {
    return abs(w) < REAL(0.5) ? a + w * (b - a) : b - (b - a) * (REAL(1) - w);
}

template <int HALVES> INLINE vec power(vec x) {  // x to the HALVES / 2, by products
    if constexpr (HALVES < 0) return REAL(1) / power<-HALVES>(x);
    else if constexpr (HALVES == 0) return broadcast(1);
    else if constexpr (HALVES == 2) return x;
    else if constexpr (HALVES % 4 == 0) return squared(power<HALVES / 2>(x));
    else if constexpr (HALVES % 2 == 0) return power<HALVES - 2>(x) * x;
    else {  // of what is negative and finite there is none
        const vec size = abs(x), y = power<HALVES - 1>(size) * sqrt(size);
        return (x < REAL(0)) & (size < HUGE) ? broadcast(__builtin_nanf("")) : y;
    }
}

static inline vec single(vec x) {  // as many digits as float has
    vec y;
    float digits[VL];
    for (int i = 0; i < VL; i++) digits[i] = x[i];
    asm("" : "+m"(digits));  // g++ 12 takes a vector's way there and back for none
    for (int i = 0; i < VL; i++) y[i] = digits[i];
    return y;
}
static inline vec fmod(vec a, vec b) {
#if defined(__FMA__)
    // Where the quotient has all its digits but a fraction, a less so many b is a number exactly.
    const vec whole = trunc(a / b), size = abs(b);
    if (!any(~((abs(whole) < REAL(1 << 21)) & (size < HUGE)))) {
        const vec signless = (mask)a < 0 ? -fused(-whole, b, a) : fused(-whole, b, a);
        const vec more = signless < REAL(0) ? signless + size : signless;  // one b too many
        return copysign(more >= size ? more - size : more, a);
    }
#endif
    vec rest;
    for (int i = 0; i < VL; i++)
        rest[i] = SINGLE ? __builtin_fmodf(a[i], b[i]) : __builtin_fmod(a[i], b[i]);
    return rest;
}
static inline vec remainder(vec a, vec b) {  // of the sign of b
    vec rest = fmod(a, b);
    return (rest != REAL(0)) & ((b < REAL(0)) ^ (rest < REAL(0))) ? rest + b : rest;
}
