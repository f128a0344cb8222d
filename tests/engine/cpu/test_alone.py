"""When one thread does the work of all: what a loop learns from threads that did not come."""

import subprocess
from pathlib import Path

from flexrnn.engine.cpu.build import compiler
from flexrnn.engine.cpu.build.isa import machine
from flexrnn.engine.cpu.cpp import prologue

from .sanitized import MEMORY

DRIVER = """
// How many calls one thread does after a call in which each of two had 100 rounds, and one of them
// did so many shares of the other's.
static int calls_after(Alone& alone, unsigned taken) {
    Share shares[2];
    shares[0].rounds = shares[1].rounds = 100, shares[0].taken = taken;
    alone.learn(shares, 2);
    int calls = 0;
    while (alone.now()) calls++;
    return calls;
}

int main() {
    Alone alone;
    const unsigned taken[] = {0, 50, 51, 100, 100, 100, 100, 0, 100};
    for (unsigned n : taken) printf("%d ", calls_after(alone, n));
    Share four[4];
    for (Share& share : four) share.rounds = 100;
    for (Share& share : four) share.taken = 50;  // two are away: one alone would be slower
    alone.learn(four, 4);
    printf("%d ", alone.now());
    four[3].taken = 151;
    alone.learn(four, 4);
    printf("%d\\n", alone.now());
}
"""


def test_one_thread_works_longer_each_time_that_others_do_not_come(tmp_path: Path) -> None:
    source = prologue("float", machine()) + MEMORY + DRIVER
    driver = compiler.compile_program(compiler.find(), machine(), source, tmp_path)
    ran = subprocess.run([driver], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0", "0", "8", "16", "32", "64", "64", "0", "8", "0", "1"]
