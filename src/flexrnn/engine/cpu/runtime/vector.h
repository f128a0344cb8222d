// Vectors of numbers: what generated loops and the functions of math.h are written in.
//
// Pasted in front of generated source, which is why nothing is included here: a single header of
// the compiler's costs more time than an LSTM. Defined before:
//   REAL   float or double
//   INT    the signed integer of its size, int or long
//   VL     how many of them a register of the machine holds; a wider vector is many times slower

typedef REAL vec __attribute__((vector_size(VL * sizeof(REAL))));
typedef REAL vec_anywhere
    __attribute__((vector_size(VL * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INT mask __attribute__((vector_size(VL * sizeof(INT))));  // 0 or -1 a lane: a comparison

#define INLINE static inline __attribute__((always_inline))

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
INLINE mask truth(vec x) { return x != vec{}; }  // of NaN true, as in torch

// -- memory: the first n lanes (0 <= n < VL) where TAIL, and no byte beyond them ----------------

#if defined(__AVX512F__)
constexpr bool MASKED = sizeof(vec) == 64;
#elif defined(__AVX__)
constexpr bool MASKED = sizeof(vec) == 32;
#else
constexpr bool MASKED = false;
#endif

#if defined(__AVX512F__) || defined(__AVX__)
// The compilers' own functions under the names of immintrin.h. They differ in what they point to.
#if defined(__clang__)
#define FROM(type, p) ((const type*)(p))
#define INTO(type, p) ((type*)(p))
#else
#define FROM(type, p) (p)
#define INTO(type, p) (p)
#endif
typedef float float8 __attribute__((vector_size(32)));
typedef double double4 __attribute__((vector_size(32)));
typedef int int8 __attribute__((vector_size(32)));
typedef long long long4 __attribute__((vector_size(32)));
#endif
#if defined(__AVX512F__)
typedef float float16 __attribute__((vector_size(64)));
typedef double double8 __attribute__((vector_size(64)));

INLINE float16 masked_load(const float* p, int n, float16) {
    return __builtin_ia32_loadups512_mask(FROM(float16, p), float16{}, (1u << n) - 1);
}
INLINE double8 masked_load(const double* p, int n, double8) {
    return __builtin_ia32_loadupd512_mask(FROM(double8, p), double8{}, (1u << n) - 1);
}
INLINE void masked_store(float* p, float16 v, int n) {
    __builtin_ia32_storeups512_mask(INTO(float16, p), v, (1u << n) - 1);
}
INLINE void masked_store(double* p, double8 v, int n) {
    __builtin_ia32_storeupd512_mask(INTO(double8, p), v, (1u << n) - 1);
}
#elif defined(__AVX__)
INLINE float8 masked_load(const float* p, int n, float8) {
    return __builtin_ia32_maskloadps256((const float8*)p, (int8)lanes_below(n));
}
INLINE double4 masked_load(const double* p, int n, double4) {
    return __builtin_ia32_maskloadpd256((const double4*)p, (long4)lanes_below(n));
}
INLINE void masked_store(float* p, float8 v, int n) {
    __builtin_ia32_maskstoreps256((float8*)p, (int8)lanes_below(n), v);
}
INLINE void masked_store(double* p, double4 v, int n) {
    __builtin_ia32_maskstorepd256((double4*)p, (long4)lanes_below(n), v);
}
#else
INLINE vec masked_load(const REAL*, int, vec v) { return v; }
INLINE void masked_store(REAL*, vec, int) {}
#endif

template <bool TAIL> INLINE vec load(const REAL* p, int n = VL) {
    if constexpr (!TAIL) return *(const vec_anywhere*)p;
    if constexpr (MASKED) return masked_load(p, n, vec{});
    vec v = {};
    for (int i = 0; i < VL; i++) if (i < n) v[i] = p[i];
    return v;
}

template <bool TAIL> INLINE void store(REAL* p, vec v, int n = VL) {
    if constexpr (!TAIL) *(vec_anywhere*)p = v;
    else if constexpr (MASKED) masked_store(p, v, n);
    else for (int i = 0; i < VL; i++) if (i < n) p[i] = v[i];
}

// -- over the lanes, always in the same order: halves, quarters, ... --------------------------

INLINE vec maximum(vec a, vec b) { return (a > b) | (a != a) ? a : b; }
INLINE vec minimum(vec a, vec b) { return (a < b) | (a != a) ? a : b; }

template <int N> struct Lanes {
    typedef REAL type __attribute__((vector_size(N * sizeof(REAL))));
};

template <int N> INLINE REAL sum_of(const REAL* p) {
    if constexpr (N == 2) return p[0] + p[1];
    else {
        typename Lanes<N / 2>::type low, high;
        __builtin_memcpy(&low, p, sizeof(low));
        __builtin_memcpy(&high, p + N / 2, sizeof(high));
        low += high;
        return sum_of<N / 2>((const REAL*)&low);
    }
}

template <int N> INLINE REAL max_of(const REAL* p) {  // NaN where one is, as torch.amax
    if constexpr (N == 2) return (p[0] > p[1]) | (p[0] != p[0]) ? p[0] : p[1];
    else {
        typename Lanes<N / 2>::type low, high;
        __builtin_memcpy(&low, p, sizeof(low));
        __builtin_memcpy(&high, p + N / 2, sizeof(high));
        low = (low > high) | (low != low) ? low : high;
        return max_of<N / 2>((const REAL*)&low);
    }
}

INLINE REAL sum(vec v) { return sum_of<VL>((const REAL*)&v); }
INLINE REAL sum(vec v, int n) { return sum(lanes_below(n) ? v : vec{}); }
INLINE REAL max(vec v) { return max_of<VL>((const REAL*)&v); }
INLINE REAL max(vec v, int n) { return max(lanes_below(n) ? v : broadcast(-__builtin_inff())); }
