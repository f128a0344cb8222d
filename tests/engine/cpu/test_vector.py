"""Vectors in memory and over their lanes: at every length of a tail, beside a page of nobody's."""

import subprocess
from pathlib import Path

import pytest

from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import Isa
from flexrnn.engine.cpu.cpp import prologue

DRIVER = """
#include <sys/mman.h>
#include <unistd.h>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#define CHECK(what) if (!(what)) { printf("line %d, n = %d: %s\\n", __LINE__, n, #what); exit(1); }

REAL pairwise(REAL* v, int n) {  // halves, quarters, ...
    for (int half = n / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

void all_lengths(REAL* end) {  // of n numbers, the last of which stands before `end`
    for (int n = 0; n < VL; n++) {
        REAL* p = end - n;
        for (int i = 0; i < n; i++) p[i] = REAL(1) / (i + 3);
        vec v = load<true>(p, n);
        for (int i = 0; i < VL; i++) CHECK(v[i] == (i < n ? p[i] : REAL(0)))
        store<true>(p, v + REAL(1), n);
        for (int i = 0; i < n; i++) CHECK(p[i] == v[i] + REAL(1))
        REAL around[VL + 2];
        for (REAL& number : around) number = -7;
        store<true>(around + 1, v, n);
        for (int i = 0; i < VL + 2; i++)
            CHECK(around[i] == (0 < i && i <= n ? v[i - 1] : REAL(-7)))

        REAL first[VL] = {};
        for (int i = 0; i < n; i++) first[i] = v[i];
        vec rest = load<true>(first, n) + REAL(0);
        for (int i = n; i < VL; i++) rest[i] = NAN;  // what stands there does not matter
        mask there = lanes_below(n);
        CHECK(sum(select(there, rest, vec{})) == pairwise(first, VL))
        REAL most = -INFINITY;
        for (int i = 0; i < n; i++) most = fmax(most, v[i]);
        vec lowest = broadcast(-INFINITY);
        CHECK(max(select(there, rest, lowest)) == most)
        for (int i = 0; i < n; i++) {
            vec hole = v;
            hole[i] = NAN;
            CHECK(std::isnan(max(select(there, hole, lowest))))
            CHECK(std::isnan(sum(select(there, hole, vec{}))))
        }
    }
}

void full(REAL* end) {
    int n = VL;
    REAL* p = end - n;
    for (int i = 0; i < n; i++) p[i] = i % 3 ? REAL(1) / (i + 3) : -REAL(i);
    vec v = load<false>(p);
    store<false>(p, -v);
    REAL copy[VL], most = -INFINITY;
    for (int i = 0; i < n; i++) {
        CHECK(v[i] == -p[i])
        copy[i] = v[i];
        most = fmax(most, v[i]);
    }
    CHECK(max(v) == most)
    CHECK(sum(v) == pairwise(copy, n))
    CHECK(std::signbit(broadcast(-0.0)[VL - 1]))
    mask odd = v == load<false>(p);
    CHECK(real(odd)[0] == REAL(1) && real(odd)[1] == REAL(0))
    CHECK(truth(v)[1] == -1 && truth(v)[0] == 0 && truth(v * REAL(NAN))[0] == -1)
    CHECK(select(odd, v, broadcast(5))[0] == v[0] && select(odd, v, broadcast(5))[1] == REAL(5))
    CHECK(select(odd, ~odd, odd)[0] == 0 && select(odd, odd, ~odd)[1] == -1)
}

int main() {
    long page = sysconf(_SC_PAGESIZE);
    int open = PROT_READ | PROT_WRITE, fresh = MAP_PRIVATE | MAP_ANONYMOUS;
    char* pages = (char*)mmap(0, 2 * page, open, fresh, -1, 0);
    mprotect(pages + page, page, PROT_NONE);
    all_lengths((REAL*)(pages + page));
    full((REAL*)(pages + page));
    for (int n = 0; n < VL; n++) {  // where a sanitizer watches the end
        REAL* heap = (REAL*)malloc(n * sizeof(REAL));
        for (int i = 0; i < n; i++) heap[i] = i;
        store<true>(heap, load<true>(heap, n) * REAL(2), n);
        for (int i = 0; i < n; i++) CHECK(heap[i] == 2 * i)
        free(heap);
    }
    puts("well");
}
"""


@pytest.mark.parametrize("sanitizers", ["", "address,undefined"], ids=["bare", "sanitized"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_a_tail_is_all_that_is_touched(
    real: str, sanitizers: str, isa: Isa, tmp_path: Path
) -> None:
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"] if sanitizers else []
    source = prologue(real, isa) + DRIVER
    driver = compiler.compile_program(compiler.find(), isa, source, tmp_path, *flags)
    ran = subprocess.run([driver], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("well\n", "", 0)
