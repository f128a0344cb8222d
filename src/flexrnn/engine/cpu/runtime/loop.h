// What every generated loop needs: its memory, shares of work, and threads that do them.

extern "C" int sched_yield() noexcept;
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
extern "C" double omp_get_wtime();

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

// The number of a head, and its places along the axes that make the heads, the last axis first: to
// divide for them costs more than what most stages compute.
template <int AXES>
struct Heads {
    long number, at[AXES], sizes[AXES];

    Heads(const long (&axes)[AXES], long first = 0) : number(first) {
        for (int k = 0; k < AXES; first /= axes[k++]) {
            sizes[k] = axes[k];
            at[k] = first % axes[k];
        }
    }

    operator long() const { return number; }

    void next() {
        number++;
        for (int k = 0; k < AXES && ++at[k] == sizes[k]; k++) at[k] = 0;
    }
};

// Which units of a head, of so many, are in a share of the tiles of all heads, of so many vectors.
INLINE Range units_of(Range share, long head, long tiles, long units, long width = 1) {
    const long before = head * tiles, each = width * VL;
    return {most(share.first - before, 0) * each, least((share.last - before) * each, units)};
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
    long worked = 0, waited = 0;  // in some of them: ticks until its own was done, and from then on
};

// What a processor counts as time goes by; 0 where nobody knows how to ask it.
INLINE long ticks() {
#if defined(__x86_64__)
    return long(__builtin_ia32_rdtsc());
#elif defined(__aarch64__)
    long now;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    return 0;
#endif
}

// Threads that share work, as one of them sees them. A round is over when every share of it is done.
// A thread does its own and waits for the others'; it spins, for they are about to come. Where a
// thread does not come, because another process has its core, somebody else does its share; else two
// threads, each waiting while the other is away, would lose a slice of time at every round. What a
// share computes does not depend on who does it.
struct Team {
    // Turns of spinning, the first 100 of them without a pause; none where nobody else comes.
    static constexpr int LONG = 2000, SHORT = 150, NONE = -1;
    // Of so many rounds one is timed; and no wait counts as more than so many times what all others
    // have to do, for one that is longer is somebody who has lost a core.
    static constexpr unsigned TIMED = 11, LONGEST = 4;
    Share* shares;
    const long id;
    long count;
    int patience;  // turns until it takes a share over
    bool helps = true;
    unsigned round = 0, taken = 0;
    long worked = 0, waited = 0;

    // Runs `work(k)` for every share k that is this thread's to do, until the round is over. Who does
    // all begins with the last one if it goes `down`: what was read last is still in the cache.
    template <class Work>
    inline __attribute__((always_inline)) void each(Work work, bool down = false) {
        round++;
        const bool timed = count > 1 && round % TIMED == 2;  // behind the first, which packs
        const long before = timed ? ticks() : 0;
        long own = before;
        for (long k = 0; k < count; k++) {
            const long who = patience == NONE && down ? count - 1 - k
                             : id + k < count         ? id + k
                                                      : id + k - count;
            if (count == 1 || takes(who)) {
                work(who);
                if (count > 1) __atomic_store_n(&shares[who].done, round, __ATOMIC_RELEASE);
            }
            if (timed && k == 0) own = ticks();
        }
        if (timed) {
            worked += own - before;
            waited += least(ticks() - own, LONGEST * (count - 1) * (own - before));
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

    void ends() {
        shares[id].rounds = round, shares[id].taken = taken;
        shares[id].worked = worked, shares[id].waited = waited;
    }

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
    }, f.down);
}

// Whether one thread does the shares of all in calls of a loop by so many threads and rows. Others may
// not come, and waiting for a core costs more than a call; or they come, and wait for one another longer
// than that would take: what one thread writes gets to another in 70 ns on one machine, and in 1,000 on
// another whose cores are far apart, or on the same one a minute later, if it is a guest. They are asked
// again after so many calls and milliseconds. By then they are asleep, so several short calls may pass
// until they come. Its memory is Python's, and begins as zeros.
struct Alone {
    int left = 0, next = 0;     // calls for which it does; how many it will be, but at least FIRST
    long until = 0, since = 0;  // when the others are asked again; since when they come late, or 0
    static constexpr int FIRST = 8, MOST = 64;
    static constexpr long WAKING = 1000, EACH = 4000;  // microseconds: for waking up; for each call

    static long time() { return long(omp_get_wtime() * 1e6); }

    bool now(long begins) {
        const bool some = __atomic_load_n(&left, __ATOMIC_RELAXED) > 0;
        if (some) __atomic_fetch_sub(&left, 1, __ATOMIC_RELAXED);
        const long still = __atomic_load_n(&until, __ATOMIC_RELAXED) - begins;
        return some || (still > 0 && still <= MOST * EACH);  // more, where a clock was put back
    }

    // What has been found by a call of several threads.
    void learn(const Share* shares, int threads, long begun, long ends) {
        bool late = false;  // one has done more than half of what all others should have
        long alone = 0, together = 0;  // ticks: by one thread, and by all of them as many times
        for (int k = 0; k < threads; k++) {
            late |= 2L * shares[k].taken > (threads - 1L) * shares[k].rounds;
            alone += shares[k].worked * threads;
            together += shares[k].worked + shares[k].waited;
        }
        late |= alone < together;
        const long first = __atomic_load_n(&since, __ATOMIC_RELAXED);
        if (!late) {
            __atomic_store_n(&since, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&next, FIRST, __ATOMIC_RELAXED);
        } else if (!first || begun < first) {
            __atomic_store_n(&since, begun, __ATOMIC_RELAXED);
        } else if (begun - first >= WAKING) {
            const int calls = int(most(__atomic_load_n(&next, __ATOMIC_RELAXED), FIRST));
            __atomic_store_n(&since, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&left, calls, __ATOMIC_RELAXED);
            __atomic_store_n(&until, ends + calls * EACH, __ATOMIC_RELAXED);
            __atomic_store_n(&next, int(least(2 * calls, MOST)), __ATOMIC_RELAXED);
        }
    }
};

static_assert(sizeof(Alone) == 3 * sizeof(long));  // as kernel.py has it

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

// -- over the threads -------------------------------------------------------------------------
//
// Of a row, every thread has gathered a vector: where the first one's is, and how many numbers lie
// between two of them.

INLINE REAL sum_of_all(const REAL* gathered, long apart, long threads) {
    vec all = *(const vec*)gathered;
    for (long id = 1; id < threads; id++) all += *(const vec*)(gathered + id * apart);
    return sum(all);
}

INLINE REAL max_of_all(const REAL* gathered, long apart, long threads) {
    vec all = *(const vec*)gathered;
    for (long id = 1; id < threads; id++) all = maximum(all, *(const vec*)(gathered + id * apart));
    return max(all);
}

// Σ (x - m)² of all units, m their mean: of its own units every thread knows the sum and, of their
// own mean m_i, the squares (Chan, Golub and LeVeque 1983): Σ_i [Σ (x - m_i)² + n_i (m_i - m)²].
// `part(i)` says which are those of a thread.
template <class Part>
INLINE REAL moment_of_all(const REAL* squares, long apart, long threads, const REAL* sums, REAL mean,
                          Part part) {
    REAL all = sum_of_all(squares, apart, threads);
    if (threads == 1) return all;
    for (long id = 0; id < threads; id++) {
        const Range units = part(id);
        const REAL n = units.last - units.first;
        if (n <= 0) continue;
        const REAL from = sum(*(const vec*)(sums + id * apart)) / n - mean;
        all += n * from * from;
    }
    return all;
}
