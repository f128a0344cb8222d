// What every generated loop needs: shares of work, a barrier between threads, packed weights.

extern "C" int sched_yield() noexcept;
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

struct Range {
    long first, last;
};

INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }

// The part of `size` that thread `id` of `count` takes.
INLINE Range share(long size, long id, long count) {
    return {size * id / count, size * (id + 1) / count};
}

// All threads of a call meet here: they spin, for the others are about to come, then yield.
struct Barrier {
    alignas(64) int arrived = 0;
    alignas(64) int round = 0;

    void wait(long count) {
        if (count == 1) return;
        int now = __atomic_load_n(&round, __ATOMIC_ACQUIRE);
        if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
            __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&round, now + 1, __ATOMIC_RELEASE);
            return;
        }
        for (int spins = 0; __atomic_load_n(&round, __ATOMIC_ACQUIRE) == now; spins++) {
            if (spins > 4000) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }
};

// Columns of a weight, so that a tile of a product reads memory in order: for each k, the tile's
// `width` columns of every block. Element (k, n) of the weight lies at w[k * row + n * column].
static void pack(REAL* out, const REAL* w, long K, long row, long column, const long* starts,
                 int blocks, long unit, long units, int width) {
    long valid = least(width, units - unit);
    for (int b = 0; b < blocks; b++) {
        const REAL* from = w + (starts[b] + unit) * column;
        REAL* into = out + b * width;
        long stride = long(blocks) * width;
        if (column == 1) {
            for (long k = 0; k < K; k++)
                for (long j = 0; j < width; j++)
                    into[k * stride + j] = j < valid ? from[k * row + j] : 0;
        } else {
            for (long k0 = 0; k0 < K; k0 += VL) {
                long k1 = least(k0 + VL, K);
                for (long j = 0; j < width; j++)
                    for (long k = k0; k < k1; k++)
                        into[k * stride + j] = j < valid ? from[k * row + j * column] : 0;
            }
        }
    }
}
