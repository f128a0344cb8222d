// Vectors of numbers: what generated loops and the functions of math.h are written in.
//
// Pasted in front of generated source, which is why nothing is included here: a single header of
// the compiler's costs more time than an LSTM. Defined before:
//   REAL   float or double
//   INT    the signed integer of its size, int or long
//   VL     how many of them a register of the machine holds; a wider vector is many times slower
//   HINTS  whether to ask for memory early

typedef REAL vec __attribute__((vector_size(VL * sizeof(REAL))));
// It aliases REAL, as vectors of them do, but nothing else to GCC, which so need not read again behind
// each store what a frame says; to clang a vector aliases everything.
typedef REAL vec_anywhere __attribute__((vector_size(VL * sizeof(REAL)), aligned(sizeof(REAL))));
typedef INT mask __attribute__((vector_size(VL * sizeof(INT))));  // 0 or -1 a lane: a comparison

#define INLINE static inline __attribute__((always_inline))
#define ALONE static __attribute__((noinline))

constexpr bool SINGLE = sizeof(REAL) == 4;

INLINE vec broadcast(REAL value) { return value - vec{}; }  // -, for -0.0 + 0.0 is 0.0

INLINE mask lanes_below(int n) {
    mask lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    return lane < INT(n) - mask{};
}

INLINE vec select(mask condition, vec a, vec b) { return condition ? a : b; }
INLINE mask select(mask condition, mask a, mask b) { return (condition & a) | (~condition & b); }
INLINE vec real(mask condition) { return condition ? broadcast(1) : vec{}; }
INLINE mask truth(vec x) { return x != vec{}; }  // NaN is true, as in torch

// -- instructions that compilers do not find by themselves ------------------------------------
//
// Their own functions, under the names of immintrin.h; GCC and clang declare them differently.
// at_least and at_most are NaN where x is.

template <class V> INLINE V at_least(V x, V low) { return x < low ? low : x; }
template <class V> INLINE V at_most(V x, V high) { return x > high ? high : x; }
template <class V> INLINE V masked_load(const REAL*, V v, int) { return v; }
template <class V> INLINE void masked_store(REAL*, V, int) {}

#if defined(__AVX512F__)
typedef float float16 __attribute__((vector_size(64)));
typedef double double8 __attribute__((vector_size(64)));
#if defined(__clang__)
// Some versions want a pointer to numbers, others to vectors.
struct Anywhere {
    const void* p;
    template <class T> operator T*() const { return (T*)p; }
};
#define ANYWHERE(p) (Anywhere{p})
#else
#define ANYWHERE(p) (p)
INLINE float16 at_least(float16 x, float16 low) {
    return __builtin_ia32_maxps512_mask(low, x, x, -1, 4);
}
INLINE double8 at_least(double8 x, double8 low) {
    return __builtin_ia32_maxpd512_mask(low, x, x, -1, 4);
}
INLINE float16 at_most(float16 x, float16 high) {
    return __builtin_ia32_minps512_mask(high, x, x, -1, 4);
}
INLINE double8 at_most(double8 x, double8 high) {
    return __builtin_ia32_minpd512_mask(high, x, x, -1, 4);
}
#endif
INLINE float16 masked_load(const float* p, float16 v, int n) {
    return __builtin_ia32_loadups512_mask(ANYWHERE(p), v, (1u << n) - 1);
}
INLINE double8 masked_load(const double* p, double8 v, int n) {
    return __builtin_ia32_loadupd512_mask(ANYWHERE(p), v, (1u << n) - 1);
}
INLINE void masked_store(float* p, float16 v, int n) {
    __builtin_ia32_storeups512_mask(ANYWHERE(p), v, (1u << n) - 1);
}
INLINE void masked_store(double* p, double8 v, int n) {
    __builtin_ia32_storeupd512_mask(ANYWHERE(p), v, (1u << n) - 1);
}
constexpr int MASKED_BYTES = 64;
#elif defined(__AVX2__)
typedef float float8 __attribute__((vector_size(32)));
typedef double double4 __attribute__((vector_size(32)));
typedef int int8 __attribute__((vector_size(32)));
typedef long long long4 __attribute__((vector_size(32)));
INLINE float8 at_least(float8 x, float8 low) { return __builtin_ia32_maxps256(low, x); }
INLINE double4 at_least(double4 x, double4 low) { return __builtin_ia32_maxpd256(low, x); }
INLINE float8 at_most(float8 x, float8 high) { return __builtin_ia32_minps256(high, x); }
INLINE double4 at_most(double4 x, double4 high) { return __builtin_ia32_minpd256(high, x); }
INLINE float8 masked_load(const float* p, float8, int n) {
    return __builtin_ia32_maskloadps256((const float8*)p, (int8)lanes_below(n));
}
INLINE double4 masked_load(const double* p, double4, int n) {
    return __builtin_ia32_maskloadpd256((const double4*)p, (long4)lanes_below(n));
}
INLINE void masked_store(float* p, float8 v, int n) {
    __builtin_ia32_maskstoreps256((float8*)p, (int8)lanes_below(n), v);
}
INLINE void masked_store(double* p, double4 v, int n) {
    __builtin_ia32_maskstorepd256((double4*)p, (long4)lanes_below(n), v);
}
constexpr int MASKED_BYTES = 32;
#else
#if defined(__SSE2__)
typedef float float4 __attribute__((vector_size(16)));
typedef double double2 __attribute__((vector_size(16)));
INLINE float4 at_least(float4 x, float4 low) { return __builtin_ia32_maxps(low, x); }
INLINE double2 at_least(double2 x, double2 low) { return __builtin_ia32_maxpd(low, x); }
INLINE float4 at_most(float4 x, float4 high) { return __builtin_ia32_minps(high, x); }
INLINE double2 at_most(double2 x, double2 high) { return __builtin_ia32_minpd(high, x); }
#endif
constexpr int MASKED_BYTES = 0;
#endif

// -- memory -----------------------------------------------------------------------------------
//
// With TAIL the first n lanes, 0 <= n <= VL: no byte behind them is touched, and the others read 0.

template <bool TAIL> INLINE vec load(const REAL* p, int n = VL) {
    if constexpr (!TAIL) return *(const vec_anywhere*)p;
    vec v = {};
    if constexpr (MASKED_BYTES == sizeof(vec)) return masked_load(p, v, n);
    for (int i = 0; i < VL; i++)
        if (i < n) v[i] = p[i];
    return v;
}

// Units of a row of a matrix, times another whose rows are so far apart: four sums, so that none
// waits for the last addition to end.
template <bool TAIL>
INLINE vec row_times(const REAL* a, const REAL* w, long apart, long inner, int n = VL) {
    vec s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (; inner >= 4; inner -= 4, a += 4, w += 4 * apart) {
        s0 += a[0] * load<TAIL>(w, n);
        s1 += a[1] * load<TAIL>(w + apart, n);
        s2 += a[2] * load<TAIL>(w + 2 * apart, n);
        s3 += a[3] * load<TAIL>(w + 3 * apart, n);
    }
    for (; inner > 0; inner--, a++, w += apart) s0 += a[0] * load<TAIL>(w, n);
    return (s0 + s1) + (s2 + s3);
}

// Numbers that are so far apart.
template <bool TAIL> INLINE vec gather(const REAL* p, long apart, int n = VL) {
    vec v = {};
    for (int i = 0; i < VL; i++)
        if (!TAIL || i < n) v[i] = p[i * apart];
    return v;
}

template <bool TAIL> INLINE void scatter(REAL* p, long apart, vec v, int n = VL) {
    for (int i = 0; i < VL; i++)
        if (!TAIL || i < n) p[i * apart] = v[i];
}

// What a function tells of each lane.
template <bool TAIL, class Number> INLINE vec each_lane(Number number, int n = VL) {
    vec v = {};
    for (int i = 0; i < VL; i++)
        if (!TAIL || i < n) v[i] = number(i);
    return v;
}

template <bool TAIL> INLINE void store(REAL* p, vec v, int n = VL) {
    if constexpr (!TAIL) {
        *(vec_anywhere*)p = v;
    } else if constexpr (MASKED_BYTES == sizeof(vec)) {
        masked_store(p, v, n);
    } else {
        for (int i = 0; i < VL; i++)
            if (i < n) p[i] = v[i];
    }
}

// One more term of a sum in memory, which begins with that at place 0.
template <bool TAIL> INLINE void add_term(REAL* p, long place, vec v, int n = VL) {
    store<TAIL>(p, place ? load<TAIL>(p, n) + v : v, n);
}

// With TAIL a value in the first n lanes alone, and in the others what changes no sum or maximum.
template <bool TAIL> INLINE vec within(vec v, int n, vec rest = vec{}) {
    return TAIL ? select(lanes_below(n), v, rest) : v;
}

INLINE vec squared(vec x) { return x * x; }

// -- over the lanes ---------------------------------------------------------------------------
//
// Halves are combined, then quarters, and so on: always in the same order.

template <class V> INLINE V larger(V a, V b) { return (a > b) | (a != a) ? a : b; }
template <class V> INLINE V smaller(V a, V b) { return (a < b) | (a != a) ? a : b; }
INLINE vec maximum(vec a, vec b) { return larger(a, b); }  // NaN where one is
INLINE vec minimum(vec a, vec b) { return smaller(a, b); }

template <int N> struct Part {
    typedef REAL type __attribute__((vector_size(N * sizeof(REAL))));
};
template <> struct Part<1> {
    typedef REAL type;
};

template <int N, bool SUM> INLINE REAL reduced(typename Part<N>::type v) {
    if constexpr (N == 1) return v;
    else {
        typename Part<N / 2>::type half[2];
        __builtin_memcpy(half, &v, sizeof(v));
        return reduced<N / 2, SUM>(SUM ? half[0] + half[1] : larger(half[0], half[1]));
    }
}

// A vector of lanes of two others.
INLINE vec picked(vec a, vec b, mask lanes) {
#if defined(__clang__)
    vec v;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) v[i] = lanes[i] < VL ? a[lanes[i]] : b[lanes[i] - VL];
    return v;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

// Of every 2 * D lanes of two vectors, the last D of the one and the first D of the other change
// places: the lanes that make each of the two. The second's have numbers from VL on.
template <int D> INLINE void exchanged(mask& first, mask& last) {
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        first[i] = i & D ? VL + (i ^ D) : i;
        last[i] = i & D ? VL + i : i ^ D;
    }
}

// The transpose of VL vectors: that of two which are D apart, for D = 1, 2, 4 and so on.
template <int D = 1> INLINE void transpose(vec (&v)[VL]) {
    mask first, last;
    exchanged<D>(first, last);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        if (i & D) continue;
        const vec a = v[i], b = v[i + D];
        v[i] = picked(a, b, first), v[i + D] = picked(a, b, last);
    }
    if constexpr (2 * D < VL) transpose<2 * D>(v);
}

INLINE REAL sum(vec v) { return reduced<VL, true>(v); }
INLINE REAL max(vec v) { return reduced<VL, false>(v); }
