// What every generated loop needs: shares of work, threads that do them, packed weights.

extern "C" int sched_yield() noexcept;
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

struct Range {
    long first, last;
};

INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE long most(long a, long b) { return a > b ? a : b; }

INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }

// The part of `size` that thread `id` of `count` takes.
INLINE Range share(long size, long id, long count) {
    return {size * id / count, size * (id + 1) / count};
}

// Which units of a head, of so many, are in a share of the vectors of all heads.
INLINE Range units_of(Range share, long head, long vectors, long units) {
    const long before = head * vectors;
    return {most(share.first - before, 0) * VL, least((share.last - before) * VL, units)};
}

// The first row before which there is about so much work, where step t has `at[t + 1] - at[t]` rows,
// never more than the one before.
static long row_after(const long* at, long T, long B, long work) {
    long done = 0;
    for (long r = 0, steps = T; r < B; r++, done += steps) {
        while (steps > 0 && at[steps] - at[steps - 1] <= r) steps--;
        if (2 * done + steps >= 2 * work) return r;
    }
    return B;
}

// The rows that thread `id` of `count` takes there: as much work as the others have.
static Range share_of_steps(const long* at, long T, long B, long id, long count) {
    return {row_after(at, T, B, at[T] * id / count),
            id + 1 == count ? B : row_after(at, T, B, at[T] * (id + 1) / count)};
}

// While one lives, a number below the smallest that has all its digits is zero in this thread. Such
// numbers, of gradients that vanish and of gates that are shut, cost a processor many times what
// others do. Who calls gets the thread back as it was: it is torch's. It lives around a thread's
// work, not in it, where compilers joined other products and sums than in a loop that saves nothing.
struct Flushed {
#if defined(__SSE2__)
    const unsigned before = __builtin_ia32_stmxcsr();
    Flushed() { __builtin_ia32_ldmxcsr(before | 0x8040); }  // of results, and of operands
    ~Flushed() { __builtin_ia32_ldmxcsr(before); }
#endif
};

INLINE void copy(REAL* into, const REAL* from, long numbers) {
    for (long i = 0; i < numbers; i++) into[i] = from[i];
}

// A piece of memory that a loop is given, and where in it a step finds its rows.
struct Buffer {
    REAL* const base;
    REAL* const end;  // of a state, what comes before the first step, or where the last one goes
    const long time, row;  // numbers from one step to the next, and from one row to the next
    const bool brief;  // of a state only the last two steps are there, of others those of a chunk

    Buffer(void** p, const long* s)
        : base((REAL*)p[0]), end((REAL*)p[1]), time(s[0]), row(s[1]), brief(s[2]) {}

    // The rows of a step, which begin so many steps, or rows, from the first; and likewise a chunk.
    REAL* of(long here, long chunk) const { return base + (here - (brief ? chunk : 0)) * time; }

    // Those of a state. Where only two steps are there, they take turns.
    REAL* of_state(long here, long turn) const { return base + (brief ? turn & 1 : here) * time; }

    // A row's last state, from where a step has left it.
    void put_aside(const REAL* state, long r) const { copy(end + r * row, state + r * row, row); }
};

// How far one share of the work is: which round of it somebody has begun, and which is done. Others
// write to the first only to take a share over, so it lies apart from what they look at.
struct Share {
    alignas(64) unsigned begun = 0;
    alignas(64) unsigned done = 0;
    unsigned rounds = 0, taken = 0;  // of its thread: all, and shares of others that it did
};

// Threads that share work, as one of them sees them. A round is over when every share of it is done.
// A thread does its own and waits for the others'; it spins, for they are about to come. Where a
// thread does not come, because another process has its core, somebody else does its share; else two
// threads, each waiting while the other is away, would lose a slice of time at every round. What a
// share computes does not depend on who does it.
struct Team {
    // Turns of spinning, the first 100 of them without a pause; none where nobody else comes.
    static constexpr int LONG = 2000, SHORT = 150, NONE = -1;
    Share* shares;
    const long id;
    long count;
    int patience;  // turns until it takes a share over
    bool helps = true;
    unsigned round = 0, taken = 0;

    // Runs `work(k)` for every share k that is this thread's to do, until the round is over.
    template <class Work> inline __attribute__((always_inline)) void each(Work work) {
        round++;
        for (long k = 0; k < count; k++) {
            const long who = id + k < count ? id + k : id + k - count;
            if (count == 1 || takes(who)) {
                work(who);
                if (count > 1) __atomic_store_n(&shares[who].done, round, __ATOMIC_RELEASE);
            }
        }
    }

    // Whether a share is this thread's to do; if not, it is done.
    bool takes(long who) {
        if (who == id && begins(who)) return true;
        for (int spins = 0;
             int(__atomic_load_n(&shares[who].done, __ATOMIC_ACQUIRE) - round) < 0; spins++) {
            if (helps && spins >= patience && begins(who)) {
                patience = least(patience, SHORT);  // it may be away for long
                taken++;
                return true;
            }
            if (spins > 4000) sched_yield();
#if defined(__x86_64__)
            else if (spins > 100) __builtin_ia32_pause();
#elif defined(__aarch64__)
            else if (spins > 100) __asm__ volatile("isb");  // a pause; `yield` does nothing on most
#endif
        }
        return false;
    }

    void ends() { shares[id].rounds = round, shares[id].taken = taken; }

    // Whether nobody had begun a share in this round; now somebody has.
    bool begins(long who) {
        unsigned before = round - 1;
        unsigned* begun = &shares[who].begun;
        return __atomic_load_n(begun, __ATOMIC_RELAXED) == before &&
               __atomic_compare_exchange_n(begun, &before, round, false, __ATOMIC_ACQ_REL,
                                           __ATOMIC_RELAXED);
    }
};

// A round of what is done at a step: `pass` sees the step as the thread does whose share it is. By
// itself, for a step may have a hundred passes.
template <class Frame> ALONE void together(Team& team, const Frame& f, void (*pass)(const Frame&)) {
    team.each([&](long who) {
        if (who == f.id) return pass(f);
        Frame theirs = f.seen_by(who), next;
        if (f.next) next = f.next->seen_by(who), theirs.next = &next;
        pass(theirs);
    });
}

// Whether one thread does the shares of all, because the others did not come when they were last asked
// to: waiting for a core costs more than a call. They are asked again after so many calls.
struct Alone {
    int left = 0, next = FIRST;
    static constexpr int FIRST = 8, MOST = 64;

    bool now() {
        if (__atomic_load_n(&left, __ATOMIC_RELAXED) <= 0) return false;
        __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED);
        return true;
    }

    // What has been found by a call of several threads.
    void learn(const Share* shares, int threads) {
        const int before = __atomic_load_n(&next, __ATOMIC_RELAXED);
        bool absent = false;  // one has done more than half of what all others should have
        for (int k = 0; k < threads; k++)
            absent |= 2L * shares[k].taken > (threads - 1L) * shares[k].rounds;
        if (absent) __atomic_store_n(&left, before, __ATOMIC_RELAXED);
        __atomic_store_n(&next, absent ? int(least(2 * before, MOST)) : FIRST, __ATOMIC_RELAXED);
    }
};

// Adds to numbers in memory.
template <bool TAIL> INLINE void add(REAL* p, vec v, int n) {
    store<TAIL>(p, load<TAIL>(p, n) + v, n);
}

// Likewise, and remembers `part` numbers behind them what rounding cuts off, so that a sum over very
// many steps and rows errs no more than a short one (Kahan 1965). Of an infinite sum nothing is.
template <bool TAIL> INLINE void add_exactly(REAL* total, long part, vec v, int n) {
    const vec old = load<TAIL>(total, n), more = v - load<TAIL>(total + part, n), now = old + more;
    const vec lost = (now - old) - more;
    store<TAIL>(total + part, select(lost == lost, lost, vec{}), n);
    store<TAIL>(total, now, n);
}

// What has been added up behind both, of which nothing is left.
template <bool TAIL> INLINE void add_exactly(REAL* total, long part, int n) {
    add_exactly<TAIL>(total, part, load<TAIL>(total + 2 * part, n), n);
    store<TAIL>(total + 2 * part, vec{}, n);
}

// Rows `first` to `last` of one block of a weight's columns, as they lie in memory: element (k, n)
// of the block lies `(k - first) * row + n * column` numbers behind `p[pointer]`.
struct Piece {
    long pointer, block, first, last, head, row, column;
};

// out[n] += sum over k of a[k] * w[n * column + k], for R rows of a and of out: a weight whose
// columns lie in one piece each.
template <int R>
ALONE void add_dots(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
                    long column, int units) {
    constexpr int AT_ONCE = R > 2 ? 2 : 8 / R;  // columns: to hide how long a multiply-add takes
    const long whole = K / VL * VL;
    const int rest = int(K - whole);
    for (int n = 0; n < units; n += AT_ONCE) {
        vec sums[R][AT_ONCE] = {};
        const int some = int(least(AT_ONCE, units - n));
        const REAL* from[AT_ONCE];  // where fewer are left, the last is read several times
        for (int j = 0; j < AT_ONCE; j++) from[j] = w + (n + least(j, some - 1)) * column;
        for (long k = 0; k < whole; k += VL) {
            vec weights[AT_ONCE];
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++) weights[j] = load<false>(from[j] + k);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const vec x = load<false>(a + i * row + k);
#pragma GCC unroll 8
                for (int j = 0; j < AT_ONCE; j++) sums[i][j] += x * weights[j];
            }
        }
        if (rest) {
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const vec x = load<true>(a + i * row + whole, rest);
#pragma GCC unroll 8
                for (int j = 0; j < AT_ONCE; j++)
                    sums[i][j] += x * load<true>(from[j] + whole, rest);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++)
                if (j < some) out[i * apart + n + j] += sum(sums[i][j]);
    }
}

// out[n] += sum over k of a[k] * w[k * next + n], likewise: a weight whose rows lie in one piece
// each.
template <int R>
ALONE void add_rows(REAL* out, long apart, const REAL* a, long row, const REAL* w, long K,
                    long next, int units) {
    constexpr int AT_ONCE = R > 2 ? 2 : 4 / R;  // of k
    vec sums[R][AT_ONCE] = {};
    long k = 0;
    if (units == VL) {
        for (; k + AT_ONCE <= K; k += AT_ONCE) {
#pragma GCC unroll 8
            for (int j = 0; j < AT_ONCE; j++) {
                const vec weight = load<false>(w + (k + j) * next);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) sums[i][j] += broadcast(a[i * row + k + j]) * weight;
            }
        }
    }
    for (; k < K; k++) {
        const vec weight = load<true>(w + k * next, units);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) sums[i][0] += broadcast(a[i * row + k]) * weight;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        vec total = sums[i][0];
#pragma GCC unroll 8
        for (int j = 1; j < AT_ONCE; j++) total += sums[i][j];
        *(vec*)(out + i * apart) += total;
    }
}

// A product of a tile's rows with a weight as it lies in memory, for calls of so few steps and rows
// that laying it out anew would take longer.
struct TermInPlace {
    const REAL* a;  // where the first row of the left operand begins
    long row;  // from there to where the next one does
    void** p;  // where all memories begin
    const Piece* pieces;
    long count;  // of these
    long head;
    long unit, units;  // of every block the first column that the tile reads, and how many there are
};

// Adds such a product of R rows, block b to the vector `sums[b]` of each row of `out`; these are
// `apart`.
template <int R>
INLINE void add_in_place(REAL* out, long apart, const int* sums, const TermInPlace& term) {
    const int units = int(least(VL, term.units - term.unit));
    for (long i = 0; i < term.count; i++) {
        const Piece& piece = term.pieces[i];
        const REAL* w = (const REAL*)term.p[piece.pointer] + term.head * piece.head +
                        term.unit * piece.column;
        REAL* into = out + sums[piece.block] * VL;
        const REAL* from = term.a + piece.first;
        const long K = piece.last - piece.first;
        if (piece.row == 1) add_dots<R>(into, apart, from, term.row, w, K, piece.column, units);
        else add_rows<R>(into, apart, from, term.row, w, K, piece.row, units);
    }
}

// Which packed tile comes next, and how many groups of rows have read the present one: each asks for
// one vector of every k of the next, until that is on its way as a whole.
struct Ahead {
    long at, group = 0;

    const REAL* of(const REAL* next, long vectors, long most, const REAL* now) const {
        return group < most ? next + group * vectors : now;
    }
};

// A product of a tile's rows with a packed weight.
struct Term {
    const REAL* a;  // where the first row of the left operand begins
    long row;  // from there to where the next one does
    long inner;  // K
    const REAL* w;  // of every k what the tile reads: a panel of some vectors
    const REAL* ahead;  // what it asks for of the next tile's

    Term(const REAL* a, long row, long inner, const REAL* packed, long panel, long at, long next_at,
         Ahead next)
        : a(a), row(row), inner(inner), w(packed + at * inner * panel * VL),
          ahead(next.of(packed + next_at * inner * panel * VL, inner * VL, panel, w)) {}
};

// Sums that take all registers are made by themselves: what surrounds them would want some, too, and
// compilers would put sums away at every k.
template <void (*SUMS)(const Term*, REAL*)> ALONE void alone(const Term* terms, REAL* out) {
    SUMS(terms, out);
}

// What a tile will read: soon, in 8 values of k, and one vector of the tile after it. Caches load
// both ahead of time by themselves, but not enough of it where weights lie in the last of them.
template <int PANEL> INLINE void hint(const REAL* w, const REAL* ahead) {
#if HINTS
    constexpr int LINE = int(64 / sizeof(REAL));
    for (int n = 0; n < PANEL * VL; n += LINE) __builtin_prefetch(w + 8 * PANEL * VL + n, 0, 3);
    __builtin_prefetch(ahead, 0, 2);
#endif
}

// K values of k of `width` columns of a weight whose rows lie in one piece each; 0 behind those that
// are there.
static void pack_rows(REAL* into, long stride, const REAL* from, long row, long K, long there,
                      int width) {
    const long whole = there / VL * VL;
    for (long k = 0; k < K; k++, from += row, into += stride) {
        long j = 0;
        for (; j < whole; j += VL) *(vec*)(into + j) = load<false>(from + j);
        for (; j < width; j += VL)
            *(vec*)(into + j) = load<true>(from + j, int(most(there - j, 0)));
    }
}

// Likewise, of one whose columns do: squares of VL by VL are transposed.
static void pack_columns(REAL* into, long stride, const REAL* from, long column, long K, long there,
                         int width) {
    for (long j = 0; j < width; j += VL, from += VL * column, into += VL) {
        const long some = least(VL, there - j);
        for (long k = 0; k < K; k += VL) {
            const long deep = least(VL, K - k);
            vec v[VL];
            if (some == VL && deep == VL) {
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) v[i] = load<false>(from + i * column + k);
            } else {
                for (int i = 0; i < VL; i++)
                    v[i] = i < some ? load<true>(from + i * column + k, int(deep)) : vec{};
            }
            transpose(v);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                if (i < deep) *(vec*)(into + (k + i) * stride) = v[i];
        }
    }
}

// Columns of a weight, so that a tile of a product reads memory in order: for each k, the tile's
// `width` columns of every block.
static void pack(REAL* out, void** p, const Piece* pieces, long count, long head, int blocks,
                 long unit, long units, int width) {
    const long there = least(width, units - unit), stride = long(blocks) * width;
    for (long i = 0; i < count; i++) {
        const Piece& piece = pieces[i];
        const long row = piece.row, column = piece.column, K = piece.last - piece.first;
        const REAL* from = (const REAL*)p[piece.pointer] + head * piece.head + unit * column;
        REAL* into = out + piece.first * stride + piece.block * width;
        if (column == 1) pack_rows(into, stride, from, row, K, there, width);
        else if (row == 1) pack_columns(into, stride, from, column, K, there, width);
        else
            for (long k = 0; k < K; k++)
                for (long j = 0; j < width; j++)
                    into[k * stride + j] = j < there ? from[k * row + j * column] : 0;
    }
}
